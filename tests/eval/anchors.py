"""What others do to a KV cache, written again on the tensors that ours sees: the fixed-rate formats.

Each is a function (K, V, place) -> (K', V', bits) of one layer's float32 [heads, tokens, dim], K after its
rotation. Bits count scales and zeros as each format stores them. Formulas: KIVI (jy-yuan/KIVI, quant/new_pack.py),
SAW-INT4 (2604.19157), TurboQuant (2504.19874, with the norm correction of vLLM's), NVFP4 and MXFP4 (OCP MX 1.0),
CacheGen (LMCache, serde/cachegen_encoder.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tiercel._ec import Codec, Coded, Place, bf16, e4m3, fp8_per_head, int8_per_token

Plane = Callable[[np.ndarray, Place], tuple[np.ndarray, float]]


def _both(k_plane: Plane, v_plane: Plane | None = None) -> Codec:
    def run(k: np.ndarray, v: np.ndarray, place: Place) -> Coded:
        (k2, a), (v2, b) = k_plane(k, place), (v_plane or k_plane)(v, place)
        return bf16(k2), bf16(v2), a + b

    return run


def _fp16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


def _asymmetric(x: np.ndarray, bits: int) -> np.ndarray:
    """Between least and greatest over the last axis, fp16 scale and zero."""
    low = _fp16(x.min(-1, keepdims=True))
    scale = np.maximum(_fp16((x.max(-1, keepdims=True) - low) / (2**bits - 1)), 6e-8)
    return np.rint((x - low) / scale).clip(0, 2**bits - 1) * scale + low


def _groups(x: np.ndarray, axis: int, size: int, inner: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """inner over groups of `size` along an axis, the last one shorter."""
    out = np.moveaxis(np.empty_like(x), axis, -1)
    moved = np.moveaxis(x, axis, -1)
    for at in range(0, moved.shape[-1], size):
        out[..., at:at + size] = inner(moved[..., at:at + size])
    return np.moveaxis(out, -1, axis)


def kivi(bits: int, group: int = 32) -> Codec:
    def plane(axis: int) -> Plane:
        return lambda x, place: (_groups(x, axis, group, lambda g: _asymmetric(g, bits)), x.size * (bits + 32 / group))

    return _both(plane(1), plane(2))


def hadamard(n: int) -> np.ndarray:
    """Sylvester's, orthonormal [n, n]; n a power of two."""
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return (h / np.sqrt(n)).astype(np.float32)


def saw_int(bits: int) -> Codec:
    """Hadamard over a head's dimensions, then asymmetric integers a (head, token)."""

    def plane(x: np.ndarray, place: Place) -> tuple[np.ndarray, float]:
        h = hadamard(x.shape[-1])
        return _asymmetric(x @ h, bits) @ h, x.size * (bits + 32 / x.shape[-1])

    return _both(plane)


def lloyd_max(bits: int) -> np.ndarray:
    """Centroids of the best quantiser of N(0, 1): f32 [2^bits]."""
    grid = np.linspace(-6, 6, 48001)
    density = np.exp(-grid**2 / 2)
    levels = np.linspace(-2.5, 2.5, 2**bits)
    for _ in range(400):
        cell = np.digitize(grid, (levels[1:] + levels[:-1]) / 2)
        levels = np.bincount(cell, density * grid) / np.bincount(cell, density)
    return levels.astype(np.float32)


def turboquant(bits: int) -> Codec:
    levels = lloyd_max(bits)

    def plane(x: np.ndarray, place: Place) -> tuple[np.ndarray, float]:
        dim = x.shape[-1]
        signs = np.random.default_rng(42).choice(np.array([-1, 1], np.float32), dim)
        norm = _fp16(np.linalg.norm(x, axis=-1, keepdims=True))
        y = (x / np.maximum(norm, 1e-20) * signs) @ hadamard(dim)
        q = levels[np.digitize(y * np.sqrt(dim), (levels[1:] + levels[:-1]) / 2)]
        q /= np.linalg.norm(q, axis=-1, keepdims=True)
        return (q @ hadamard(dim)) * signs * norm, x.size * (bits + 16 / dim)

    return _both(plane)


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def _e2m1(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * _E2M1[np.digitize(np.abs(x), (_E2M1[1:] + _E2M1[:-1]) / 2)]


def nvfp4() -> Codec:
    def plane(x: np.ndarray, place: Place) -> tuple[np.ndarray, float]:
        whole = max(float(np.abs(x).max()), 1e-30) / (6 * 448)
        groups = x.reshape(*x.shape[:-1], -1, 16)
        scale = np.maximum(e4m3(np.abs(groups).max(-1, keepdims=True) / 6 / whole), 2.0**-9) * whole
        return (_e2m1(groups / scale) * scale).reshape(x.shape), x.size * 4.5 + 32

    return _both(plane)


def mxfp4() -> Codec:
    def plane(x: np.ndarray, place: Place) -> tuple[np.ndarray, float]:
        groups = x.reshape(*x.shape[:-1], -1, 32)
        top = np.maximum(np.abs(groups).max(-1, keepdims=True), 1e-30)
        scale = np.exp2(np.floor(np.log2(top)) - 2).astype(np.float32)
        return (_e2m1(groups / scale) * scale).reshape(x.shape), x.size * 4.25

    return _both(plane)


def cachegen(layers: int) -> Codec:
    """As LMCache has it: one absmax a token over all heads, 32 or 16 levels, a table of 33 int16 a channel and chunk.

    Payload is the entropy of each channel's symbols: an arithmetic coder without loss.
    """

    def plane(fine_layers: int) -> Plane:
        def run(x: np.ndarray, place: Place) -> tuple[np.ndarray, float]:
            half = (32 if place.layer < fine_layers else 16) // 2 - 1
            out = np.empty_like(x)
            bits = 0.0
            for b in place.blocks(x.shape[1]):
                part = x[:, b]
                top = np.maximum(np.abs(part).max(axis=(0, 2), keepdims=True), 1e-30)
                q = np.rint(part * half / top)
                out[:, b] = q * top / half
                columns = (q + half).astype(int).transpose(0, 2, 1).reshape(-1, q.shape[1])
                index = np.arange(len(columns))[:, None] * 33 + columns
                counts = np.bincount(index.ravel(), minlength=33 * len(columns)).reshape(-1, 33)
                p = counts / q.shape[1]
                payload = -(counts * np.log2(np.where(p > 0, p, 1))).sum()
                bits += payload + len(columns) * (33 * 16 + 32) + 32 * q.shape[1]
            return out, bits

        return run

    return _both(plane(-(-layers // 3)), plane(2))


def fixed_rate(layers: int) -> dict[str, Codec]:
    """Anchors by name, best quality first."""
    return {
        "int8 per token": int8_per_token,
        "fp8 e4m3 per head": fp8_per_head,
        "CacheGen-like": cachegen(layers),
        "KIVI-4 g32": kivi(4),
        "NVFP4": nvfp4(),
        "SAW-INT4": saw_int(4),
        "TurboQuant-4": turboquant(4),
        "MXFP4": mxfp4(),
        "TurboQuant-3": turboquant(3),
        "KIVI-2 g32": kivi(2),
    }


# Those whose bits the goals compare with: about four bits a value.
FOUR_BIT = ("KIVI-4 g32", "NVFP4", "SAW-INT4", "TurboQuant-4", "MXFP4")
