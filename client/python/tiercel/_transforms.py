"""The linear algebra of calibration, numpy in float64: rotations, moments, and the transforms of KVA1.

Formulas: docs/artifact-format.md, "How it is measured".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .artifact import HALVES, Levels, Transform

_TURN = 2.0**64


def turns_of(inverse_frequency: np.ndarray) -> np.ndarray:
    """Radians a position [pairs] to turns a position times 2^64, u64 [pairs]."""
    turns = np.asarray(inverse_frequency, np.float64) / (2 * np.pi)
    return np.array([round(float(t) * _TURN) % (1 << 64) for t in turns], np.uint64)


def rotate(x: np.ndarray, turns: np.ndarray, style: int, first: int, back: bool = False) -> np.ndarray:
    """Rotary embedding of x [..., tokens, dim], whose first token is at position `first`; back: undone.

    Angles are exact: position times turns modulo 2^64, as u64. style: HALVES or NEIGHBOURS.
    """
    pairs = len(turns)
    if not pairs:
        return x
    tokens = x.shape[-2]
    positions = np.arange(first, first + tokens, dtype=np.uint64)
    angle = (positions[:, None] * np.asarray(turns, np.uint64)).astype(np.float64) * (2 * np.pi / _TURN)
    cos, sin = np.cos(angle), np.sin(angle) * (-1 if back else 1)
    if style == HALVES:
        a, b = slice(0, pairs), slice(pairs, 2 * pairs)
    else:
        a, b = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    out = np.array(x, np.result_type(x, np.float32))
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., b] * cos + x[..., a] * sin
    return out


class Moments:
    """First and second moments of rows [count, n], summed up; rows may have weights."""

    def __init__(self, n: int) -> None:
        self.count = 0.0
        self.sum = np.zeros(n)
        self.outer = np.zeros((n, n))

    def add(self, rows: np.ndarray, weights: np.ndarray | None = None) -> None:
        rows = np.asarray(rows, np.float64)
        weighted = rows if weights is None else rows * weights[:, None]
        self.count += len(rows) if weights is None else float(weights.sum())
        self.sum += weighted.sum(0)
        self.outer += weighted.T @ rows

    def merge(self, other: Moments) -> None:
        self.count += other.count
        self.sum += other.sum
        self.outer += other.outer

    @property
    def mean(self) -> np.ndarray:
        return self.sum / max(self.count, 1e-300)

    @property
    def covariance(self) -> np.ndarray:
        return self.outer / max(self.count, 1e-300) - np.outer(self.mean, self.mean)

    @property
    def second(self) -> np.ndarray:
        """E[x x^T], the mean not taken out."""
        return self.outer / max(self.count, 1e-300)


def metric(fisher: np.ndarray, eps: float) -> np.ndarray:
    """S = (F + eps * mean(diag F))^(1/2), symmetric [n, n]."""
    regular = fisher + max(eps * float(np.mean(np.diag(fisher))), 1e-300) * np.eye(len(fisher))
    values, vectors = np.linalg.eigh(regular)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def klt(mean: np.ndarray, covariance: np.ndarray, fisher: np.ndarray, eps: float) -> Transform:
    """The transform of a group: analysis U^T S, with U the eigenvectors of S C S by falling variance.

    Its inverse S^-1 U is rounded to int8 with a scale per row (dimension), and analysis is then the exact
    inverse of what was rounded. mean [n]; covariance and fisher [n, n].
    """
    s = metric(fisher, eps)
    variances, u = np.linalg.eigh(s @ covariance @ s)
    u = u[:, np.argsort(-variances)]
    inverse = np.linalg.solve(s, u)
    scale = np.abs(inverse).max(axis=1) / 127
    scale = scale.astype(np.float32)
    synthesis = np.rint(inverse / scale[:, None]).clip(-127, 127).astype(np.int8)
    analysis = np.linalg.inv(scale.astype(np.float64)[:, None] * synthesis)
    return Transform(mean.astype(np.float32), scale, synthesis, analysis.astype(np.float32))


def head_scales(fisher: np.ndarray, heads: int) -> np.ndarray:
    """(mean(diag F) of the head)^(-1/2), f32 [heads], from the F of a layer's K or V over all heads."""
    diagonal = np.diag(fisher).reshape(heads, -1).mean(axis=1)
    return (np.maximum(diagonal, 1e-30) ** -0.5).astype(np.float32)


def levels(keys: Sequence[np.ndarray], energy: Sequence[np.ndarray], first: int, strength: float,
           ridge: float = 300.0) -> Levels:
    """What foretells the log of a token's Fisher information from its key before rotation and its position.

    Ridge regression. Of each sequence, whose tokens begin at position `first`: keys [tokens, n]; energy [tokens], the
    squared gradient. A step of energy^(-1/2) is a level of log2(energy), half octaves; strength scales it.
    """
    positions = [np.log2(np.maximum(np.arange(first, first + len(k)), 1)) for k in keys]
    x = np.column_stack([np.concatenate(positions), np.concatenate(keys).astype(np.float64)])
    seen = np.concatenate(energy).astype(np.float64)
    y = np.log2(np.maximum(seen, max(float(seen.mean()) * 2.0**-20, 1e-300)))  # None beyond a sliding window.
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    z = (x - mean) / spread
    weight = strength * np.linalg.solve(z.T @ z + ridge * np.eye(z.shape[1]), z.T @ (y - y.mean())) / spread
    return Levels(float(np.float32(weight[0])), float(np.float32(mean[0])),
                  mean[1:].astype(np.float32), weight[1:].astype(np.float32))
