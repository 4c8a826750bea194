"""KV caches of numpy arrays, and chains of random hashes."""

import os

import numpy as np
import tiercel

LAYOUT = dict(layers=4, kv_heads=2, head_dim=64, tokens_per_block=16, dtype="bf16")


def layout(**changes):
    return tiercel.KvLayout(**{**LAYOUT, **changes})


def chain(layout, blocks, **options):
    scope = tiercel.make_scope(model=os.urandom(8).hex(), layout=layout)
    out = tiercel.Chain(scope, **options)
    out.extend(os.urandom(32) for _ in range(blocks))
    return out


class Cache:
    """One array [blocks, layers, plane bytes] for each of K and V."""

    def __init__(self, layout, blocks, fill=None):
        def planes(size):
            shape = (blocks, layout.layers, size // 2)
            if fill is None:
                return np.zeros(shape, np.uint16)
            # Exponents of bf16 activations, so that the lossless codec has something to do.
            values = np.random.default_rng(fill).normal(size=shape).astype(np.float32)
            return (values.view(np.uint32) >> 16).astype(np.uint16)

        self.k = planes(layout.k_plane_bytes)
        self.v = planes(layout.v_plane_bytes)

    @staticmethod
    def _ptrs(array):
        start = array.ctypes.data
        index = np.arange(array.shape[0] * array.shape[1], dtype=np.int64)
        return (start + index * array.strides[1]).reshape(array.shape[:2])

    @property
    def k_ptrs(self):
        return self._ptrs(self.k)

    @property
    def v_ptrs(self):
        return self._ptrs(self.v)

    def __eq__(self, other):
        return np.array_equal(self.k, other.k) and np.array_equal(self.v, other.v)
