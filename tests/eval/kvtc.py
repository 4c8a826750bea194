"""A KVTC-like codec (2511.01815): PCA over a layer's heads before rotation, whole bits by least squared error, DEFLATE.

Bits go to the components of all layers at once, of K and of V apart; a component's quantiser is the best uniform one
for a Gaussian of its calibrated variance, so nothing beside the packed indices is stored (kinder than ranges in band).
"""

from __future__ import annotations

import zlib

import numpy as np
from tiercel._ec import Codec, Coded, Place, bf16
from tiercel._transforms import rotate
from tiercel.artifact import Artifact, K, V
from tiercel.calibrate import Measured

# Of the best uniform quantiser of N(0, 1) with 0 .. 8 bits: its error and its step (J. Max, 1960).
_ERROR = np.array([1, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.00104, 0.000304, 0.0000877])
_STEP = np.array([0, 1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308])


class Kvtc:
    def __init__(self, artifact: Artifact, measured: Measured) -> None:
        self._artifact = artifact
        self._basis: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for key, moments in measured.values.items():
            values, vectors = np.linalg.eigh(moments.covariance)
            self._basis[key] = (moments.mean, vectors[:, ::-1], np.maximum(values[::-1], 1e-20))

    def _allocate(self, budget: float) -> dict[tuple[int, int], np.ndarray]:
        """Whole bits of every component: those of greatest gain while the mean is within the budget."""
        out = {}
        for kind in (K, V):
            keys = sorted(key for key in self._basis if key[1] == kind)
            variances = np.stack([self._basis[key][2] for key in keys])
            gains = variances[..., None] * (_ERROR[:-1] - _ERROR[1:])  # Falling with each further bit.
            taken = int(budget * variances.size)
            least = np.partition(gains.ravel(), -taken)[-taken]
            for key, bits in zip(keys, (gains >= least).sum(-1)):
                out[key] = bits
        return out

    def codec(self, budget: float) -> Codec:
        allocation = self._allocate(budget)
        artifact = self._artifact

        def plane(x: np.ndarray, place: Place, kind: int) -> tuple[np.ndarray, float]:
            heads, tokens, dim = x.shape
            mean, basis, variance = self._basis[place.layer, kind]
            bits = allocation[place.layer, kind]
            sigma = np.sqrt(variance)
            step = np.where(bits > 0, _STEP[bits] * sigma, 1)
            y = (x.transpose(1, 0, 2).reshape(tokens, -1) - mean) @ basis
            half = 1 << np.maximum(bits - 1, 0)
            q = np.floor(y / step).clip(-half, half - 1).astype(int)
            back = np.where(bits > 0, (q + 0.5) * step, 0) @ basis.T + mean
            spent = sum(8.0 * len(zlib.compress(_pack(q[b] + half, bits), 9)) for b in place.blocks(tokens))
            return back.reshape(tokens, heads, dim).transpose(1, 0, 2), spent

        def run(k: np.ndarray, v: np.ndarray, place: Place) -> Coded:
            turns = artifact.turns(place.layer)
            k2, a = plane(rotate(k, turns, artifact.rope_style, place.first, back=True), place, K)
            v2, b = plane(v, place, V)
            return bf16(rotate(k2, turns, artifact.rope_style, place.first)), bf16(v2), a + b

        return run


def _pack(q: np.ndarray, bits: np.ndarray) -> bytes:
    """Indices [tokens, components] component by component, each in its own count of bits."""
    planes = []
    for count in np.unique(bits[bits > 0]):
        columns = q[:, bits == count].T.ravel()
        planes.append((columns[:, None] >> np.arange(count)[::-1] & 1).astype(np.uint8).ravel())
    return np.packbits(np.concatenate(planes)).tobytes() if planes else b""
