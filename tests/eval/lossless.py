"""Lossless codecs on bf16 KV, by the bits a value takes: SplitZip-like, zstd, lz4, and a reference of LLE.

A block's plane is bf16 [tokens, heads, dim], as engines keep it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tiercel._ec import Place

SEGMENT_BITS = 8 * (32 + 72)  # A segment's directory entry and one stream's states and length.
Size = Callable[[np.ndarray], float]  # u16 [tokens, heads * dim] -> bits.


def _words(x: np.ndarray) -> np.ndarray:
    """Float32 [heads, tokens, dim] with values of bf16 to u16 [tokens, heads * dim]."""
    rows = np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(x.shape[1], -1)
    return (rows.view(np.uint32) >> 16).astype(np.uint16)


def split_zip(words: np.ndarray) -> float:
    """The 16 commonest exponents in 4 bits, sign and mantissa as they are; others with their place, 24 bits."""
    counts = np.bincount((words >> 7 & 0xFF).ravel(), minlength=256)
    return words.size * 12.0 + 24.0 * (words.size - np.sort(counts)[-16:].sum()) + 16 * 8


def lle(header: Path) -> Size:
    """Exponents of a column less their rounded mean, under the coder's frozen tables; 8 bits as they are."""
    text = header.read_text().split("kExponentFrequencies", 1)[1].split("};", 1)[0]
    rows = [[int(n) for n in row.split(",")] for row in re.findall(r"\{([\d, ]+)\}", text)]
    costs = -np.log2(np.array(rows, np.float64) / 4096)

    def size(words: np.ndarray) -> float:
        exponents = (words >> 7 & 0xFF).astype(int).T
        centred = exponents - np.rint(exponents.mean(axis=1, keepdims=True)).astype(int) + 2
        symbol = np.where(np.abs(centred) <= 7, centred + 7, 15)
        index = np.arange(len(symbol))[:, None] * 16 + symbol
        counts = np.bincount(index.ravel(), minlength=16 * len(symbol)).reshape(-1, 16)
        payload = (counts @ costs.T).min(axis=1) + 8 * counts[:, 15] + 16  # Class and base.
        return float(payload.sum()) + 8.0 * words.size + SEGMENT_BITS

    return size


def sizes(root: Path) -> dict[str, Size]:
    import lz4.frame
    import zstandard

    return {
        "LLE (reference)": lle(root / "kernels" / "rans_frozen.h"),
        "SplitZip-like": split_zip,
        "zstd -3": lambda w: 8.0 * len(zstandard.ZstdCompressor(level=3).compress(w.tobytes())),
        "lz4": lambda w: 8.0 * len(lz4.frame.compress(w.tobytes())),
    }


def bits(kv: list[tuple[np.ndarray, np.ndarray]], size: Size, block: int, exact: int) -> float:
    """A value, over all blocks of a prefix."""
    spent = 0.0
    values = 0
    for layer, planes in enumerate(kv):
        for x in planes:
            words = _words(x[:, exact:])
            spent += sum(size(words[b]) for b in Place(layer, exact, block).blocks(len(words)))
            values += words.size
    return spent / values
