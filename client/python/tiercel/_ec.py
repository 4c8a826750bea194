"""Reference of EC-C, EC-K and EC-X in numpy: what the values become, and about how many bits they take.

The values are those of docs/artifact-format.md and docs/block-format.md; the bits are the costs of the coder's
frozen tables, the integer lists of levels, classes and means, and the fixed bytes of a segment, not those of a written
record: calibration needs them where no compiled codec is at hand. K and V of one layer are float arrays
[heads, tokens, dim]. Where the artifact has levels, each token has a step of its own (version 2 of the segments).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ._transforms import rotate
from .artifact import WHOLE_LAYER, Artifact, K, V

MAX_VALUE = (1 << 14) - 1
RANKS = 88  # Classes of a column.
SEGMENT_BITS = 8 * 286  # Of a segment beside what is counted: entry, header, states, padding, as in records.
CARGO_BITS = 8 * 60  # Of means, in the states.

# kernels/rans_frozen.h, kQuantizedFrequencies: symbol s is value s - 7, symbol 15 the escape.
FREQUENCIES = np.array((
    (1, 1, 1, 1, 1, 1, 2, 4079, 2, 1, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 1, 15, 4053, 15, 1, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 1, 48, 4011, 24, 1, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 1, 30, 3991, 62, 1, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 1, 93, 3931, 59, 1, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 2, 75, 3867, 139, 2, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 2, 162, 3812, 107, 2, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 3, 159, 3674, 245, 4, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 3, 244, 3674, 161, 3, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 2, 8, 332, 3490, 246, 7, 2, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 2, 6, 258, 3441, 370, 8, 2, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 2, 13, 461, 3259, 340, 10, 2, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 2, 16, 360, 3202, 484, 20, 3, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 10, 573, 2939, 554, 9, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 2, 7, 48, 509, 2974, 493, 47, 7, 2, 1, 1, 1, 1),
    (1, 1, 1, 1, 2, 27, 709, 2617, 703, 27, 2, 1, 1, 1, 1, 1),
    (1, 1, 2, 4, 14, 81, 589, 2690, 607, 84, 14, 4, 2, 1, 1, 1),
    (1, 1, 1, 1, 4, 71, 831, 2288, 819, 70, 4, 1, 1, 1, 1, 1),
    (1, 2, 3, 7, 26, 123, 675, 2442, 658, 120, 25, 7, 3, 2, 1, 1),
    (1, 1, 1, 2, 12, 143, 912, 1962, 903, 141, 12, 2, 1, 1, 1, 1),
    (2, 2, 5, 13, 43, 159, 684, 2258, 699, 163, 44, 13, 5, 2, 2, 2),
    (2, 2, 5, 15, 52, 197, 774, 2043, 742, 189, 50, 14, 5, 2, 2, 2),
    (1, 1, 2, 5, 36, 247, 940, 1633, 939, 246, 36, 5, 2, 1, 1, 1),
    (3, 6, 13, 31, 83, 238, 743, 1859, 742, 238, 83, 31, 13, 6, 3, 4),
    (1, 2, 5, 20, 93, 349, 897, 1363, 895, 349, 93, 20, 5, 2, 1, 1),
    (5, 10, 23, 54, 129, 315, 775, 1479, 768, 313, 128, 53, 23, 10, 5, 6),
    (8, 15, 29, 59, 126, 284, 713, 1599, 719, 286, 126, 60, 30, 15, 9, 18),
    (2, 5, 16, 58, 178, 437, 815, 1070, 816, 438, 178, 58, 16, 5, 2, 2),
    (13, 24, 45, 86, 170, 343, 718, 1283, 711, 340, 169, 85, 44, 23, 13, 29),
    (8, 19, 46, 105, 222, 429, 732, 969, 731, 428, 221, 104, 46, 19, 8, 9),
    (4, 12, 39, 114, 266, 491, 713, 808, 714, 494, 268, 115, 40, 12, 4, 2),
), np.float64)
_COSTS = -np.log2(FREQUENCIES / 4096)  # [table][symbol], bits.
_WIDE = 23  # Tables from here on serve columns whose low bits stand apart.


def list_bits(values: np.ndarray) -> int:
    """Of an integer list, in the shortest of its ways."""
    values = np.asarray(values, np.int64)
    least = 0.0
    for way, plain in enumerate((values, np.diff(values, prepend=0))):
        code = np.where(plain >= 0, 2 * plain, -2 * plain - 1)
        for order in range(16):
            length = np.frexp((code + (1 << order)).astype(np.float64))[1]
            bits = float((2 * length - 1 - order).sum())
            least = bits if way == order == 0 else min(least, bits)
    return 5 + int(least)


def class_bits(q: np.ndarray) -> np.ndarray:
    """Of columns of integers [columns, tokens], bits in every class: f64 [columns, RANKS].

    The shift is the encoder's choice (kernels/rans_core.h), the table free; what may not be is infinite.
    """
    q = np.asarray(q, np.int64)
    columns, tokens = q.shape
    total = np.abs(q).sum(axis=1)
    shift = np.zeros(columns, np.int64)
    for _ in range(7):
        shift += 4 * total > (7 * tokens) << shift
    half = np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
    reduced = (q + half[:, None]) >> shift[:, None]
    symbol = np.where(np.abs(reduced) <= 7, reduced + 7, 15)
    counts = np.bincount((np.arange(columns)[:, None] * 16 + symbol).ravel(), minlength=16 * columns).reshape(-1, 16)
    code = np.where(reduced >= 0, 2 * reduced, -2 * reduced - 1) - 15
    escapes = 8.0 * (symbol == 15).sum(axis=1) + 16.0 * ((symbol == 15) & (code >= 255)).sum(axis=1)
    costs = counts @ _COSTS.T + (escapes + shift * tokens)[:, None]
    out = np.full((columns, RANKS), np.inf)
    out[total == 0, 0] = 0
    plain = shift == 0
    out[plain, 1:32] = costs[plain]
    for k in range(1, 8):
        mine = np.flatnonzero(shift == k)
        out[mine[:, None], np.arange(24 + 8 * k, 32 + 8 * k)] = costs[mine][:, _WIDE:]
    return out


def bands(tokens: int) -> int:
    """Into how many an encoder cuts tokens that have levels."""
    return 4 if tokens % 128 == 0 else 2 if tokens % 64 == 0 else 1


def matrix_bits(q: np.ndarray, levels: np.ndarray | None, exact: int = 0) -> float:
    """Of integers [columns, tokens] with the classes of their columns and, where given, the levels [tokens].

    The first `exact` tokens are zeros: nothing is sent for their levels, and they come last.
    """
    columns, tokens = q.shape
    if levels is None or not levels[exact:].any():
        costs = class_bits(q)
        return float(costs.min(axis=1).sum()) + list_bits(costs.argmin(axis=1))
    order = np.concatenate([exact + np.argsort(-levels[exact:], kind="stable"), np.arange(exact)])
    count = bands(tokens)
    costs = class_bits(q[:, order].reshape(columns * count, -1)).reshape(columns, count, RANKS)
    ranks = costs.argmin(axis=2)
    bits = float(costs.min(axis=2).sum()) + list_bits(levels[exact:]) + list_bits(ranks[:, 0]) + 8 * (count - 1)
    for before, after in zip(ranks.T, ranks.T[1:]):
        both = np.sort((after - before)[(before > 0) & (after > 0)])
        offset = int(both[(len(both) - 1) // 2]) if len(both) else 0
        bits += list_bits(after - np.clip(before + offset, 0, RANKS - 1))
    return bits


@dataclass(frozen=True)
class Place:
    """Which layer, and where its first token stands."""

    layer: int
    first: int = 0
    block: int = 256  # Tokens coded together; blocks begin at multiples of it.

    def blocks(self, tokens: int) -> list[slice]:
        """Of tokens at positions first and on: slices that end where a block does."""
        cuts = [c - self.first for c in range(self.block, self.first + tokens, self.block) if c > self.first]
        return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, tokens])]


Coded = tuple[np.ndarray, np.ndarray, float]  # K', V', bits.
Codec = Callable[[np.ndarray, np.ndarray, Place], Coded]


def bf16(x: np.ndarray) -> np.ndarray:
    """Float32 rounded to the nearest bf16, ties to even, as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _finer(levels: np.ndarray | None, tokens: int) -> np.ndarray:
    """What a token's level makes of the step: f32 [tokens, 1]."""
    return np.exp2(-(np.zeros(tokens) if levels is None else levels)[:, None] / 2).astype(np.float32)


def _spent(q: np.ndarray, levels: np.ndarray | None, place: Place) -> float:
    """Bits of integers [tokens, columns], block by block; tokens before the first are exact and so zeros."""
    bits = 0.0
    for b in place.blocks(len(q)):
        exact = (place.first + b.start) % place.block
        padded = np.pad(q[b], ((exact, 0), (0, 0)))
        bits += matrix_bits(padded.T, None if levels is None else np.pad(levels[b], (exact, 0)), exact)
    return bits


def _klt(x: np.ndarray, levels: np.ndarray | None, artifact: Artifact, place: Place, kind: int, step: float,
         whole: bool) -> tuple[np.ndarray, float]:
    """EC-X (whole) or EC-K of one plane [heads, tokens, dim] before rotation."""
    heads, tokens, dim = x.shape
    out = np.empty_like(x)
    finer = _finer(levels, tokens)
    coefficients = []
    groups = [(WHOLE_LAYER, slice(0, heads))] if whole else [(h, slice(h, h + 1)) for h in range(heads)]
    for group, part in groups:
        t = artifact.transforms[place.layer, kind, group]
        rows = x[part].transpose(1, 0, 2).reshape(tokens, -1)
        q = np.rint((rows - t.mean) @ t.analysis.T / (np.float32(step) * finer)).clip(-MAX_VALUE, MAX_VALUE)
        back = (q @ t.synthesis.T.astype(np.float32)) * (t.scale * np.float32(step)) * finer + t.mean
        out[part] = back.reshape(tokens, -1, dim).transpose(1, 0, 2)
        coefficients.append(q)
    return out, _spent(np.concatenate(coefficients, axis=1), levels, place)


def _channels(x: np.ndarray, levels: np.ndarray | None, place: Place, steps: np.ndarray) -> tuple[np.ndarray, float]:
    """EC-C of one plane [heads, tokens, dim]: each channel's mean, in eighths of a step, taken out, one step a head."""
    heads, tokens, dim = x.shape
    rows = x.transpose(1, 0, 2).reshape(tokens, -1)
    step = np.repeat(bf16(np.asarray(steps, np.float32)), dim)
    finer = _finer(levels, tokens)
    q, back = np.empty_like(rows), np.empty_like(rows)
    bits = 0.0
    for b in place.blocks(tokens):
        mean = np.rint(np.rint(rows[b] * (8 / step)).mean(axis=0))
        q[b] = np.rint((rows[b] * (8 / step) - mean) / 8 / finer[b]).clip(-MAX_VALUE, MAX_VALUE)
        back[b] = q[b] * step * finer[b] + mean * (step / 8)
        bits += max(list_bits(mean) - CARGO_BITS, 0) + 16 * heads
    return back.reshape(tokens, heads, dim).transpose(1, 0, 2), bits + _spent(q, levels, place)


def codec(name: str, step: float, artifact: Artifact | None = None) -> Codec:
    """EC-X, EC-K, EC-C (with the artifact's head scales, K before rotation) or, with none, plain EC-C."""

    def run(k: np.ndarray, v: np.ndarray, place: Place) -> Coded:
        heads, tokens, _ = k.shape
        planes = []
        bits = 2.0 * SEGMENT_BITS * len(place.blocks(tokens))
        none = np.zeros(0, np.uint64)
        style = artifact.rope_style if artifact else 0
        of_layer = artifact.turns(place.layer) if artifact else none
        keys = rotate(np.asarray(k, np.float32), of_layer, style, place.first, back=True).astype(np.float32)
        keys = keys.transpose(1, 0, 2).reshape(tokens, -1)
        # A record of EC-C tells one rotation: K of a layer with one of its own stays as it is.
        stays = name == "EC-C" and artifact is not None and place.layer in artifact.rope
        for kind, x in ((K, k), (V, v)):
            turns = of_layer if kind == K and not stays else none
            x = rotate(np.asarray(x, np.float32), turns, style, place.first, back=True).astype(np.float32)
            predictor = artifact.levels.get((place.layer, kind)) if artifact else None
            levels = predictor.of(keys, place.first) if predictor else None
            if name == "EC-C":
                scales = artifact.head_scales[place.layer, kind] if artifact else np.ones(heads, np.float32)
                y, cost = _channels(x, levels, place, step * scales)
            else:
                assert artifact is not None
                y, cost = _klt(x, levels, artifact, place, kind, step, name == "EC-X")
            planes.append(bf16(rotate(y, turns, style, place.first)))
            bits += cost
        return planes[0], planes[1], bits

    return run


def e4m3(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest fp8 e4m3fn, saturating at 448."""
    x = np.asarray(x, np.float32)
    _, exponent = np.frexp(x)
    grid = np.ldexp(np.float32(1), np.maximum(exponent, -5) - 4)  # 3 bits behind the first; denormals below 2^-6.
    return np.clip(np.rint(x / grid) * grid, -448, 448)


def fp8_per_head(k: np.ndarray, v: np.ndarray, place: Place) -> Coded:
    """e4m3, one float32 scale a head: the KV that engines call fp8."""

    def one(x: np.ndarray) -> np.ndarray:
        scale = np.maximum(np.abs(x).max(axis=(1, 2), keepdims=True), 1e-30) / 448
        return bf16(e4m3(x / scale) * scale)

    return one(k), one(v), 8.0 * (k.size + v.size) + 64 * len(k)


def int8_per_token(k: np.ndarray, v: np.ndarray, place: Place) -> Coded:
    """8 bits between the least and the greatest of a head's token, with an fp16 scale and zero each."""

    def one(x: np.ndarray) -> np.ndarray:
        low = x.min(axis=2, keepdims=True).astype(np.float16).astype(np.float32)
        scale = np.maximum((x.max(axis=2, keepdims=True) - low) / 255, 6.2e-5).astype(np.float16).astype(np.float32)
        return bf16(np.rint((x - low) / scale).clip(0, 255) * scale + low)

    vectors = k.shape[0] * k.shape[1] * 2
    return one(k), one(v), 8.0 * (k.size + v.size) + 32.0 * vectors
