"""Artifacts of models, KVA1, in pure Python and numpy: written and read as docs/artifact-format.md says.

    Artifact(...) --> dump() --> bytes --> Artifact.parse() --> an equal Artifact

An artifact is named by its bytes (`Artifact.id_of`). `parse` checks what kernels/artifact.cc checks and
raises ArtifactError naming the field or section.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAGIC = b"KVA1"
VERSION = 1
HEADER_BYTES = 64
ENTRY_BYTES = 32
MAX_BYTES = 1 << 30
MAX_DIMENSIONS = 1024
NO_LAYER = 0xFFFF
WHOLE_LAYER = 255  # Group of a transform over all heads (EC-X).
K, V = 1, 2  # Kinds.
HALVES, NEIGHBOURS = 0, 1  # Rope styles.
CODECS = {"EC-C": 7, "EC-K": 8, "EC-X": 9}
CLASSES = {"near": 1, "high": 2, "balanced": 3, "small": 4}

_ABOUT, _ROPE, _HEAD_SCALES, _STEPS, _TRANSFORM, _LEVELS = 1, 2, 3, 4, 5, 6
LOWEST_LEVEL, HIGHEST_LEVEL = -8, 7


class ArtifactError(ValueError):
    """Bytes that are no artifact; the message names the field."""


@dataclass(eq=False)
class Transform:
    """Of a group of n dimensions: x = (scale * step) * (synthesis @ q) + mean, q = analysis @ (x - mean) / step.

    mean, scale: f32 [n]; synthesis: i8 [n, n], dimension by coefficient; analysis: f32 [n, n],
    coefficient by dimension.
    """

    mean: np.ndarray
    scale: np.ndarray
    synthesis: np.ndarray
    analysis: np.ndarray

    @property
    def n(self) -> int:
        return len(self.mean)


@dataclass(eq=False)
class Levels:
    """How much finer than the class's step a token's is, in half octaves, from the layer's keys before rotation.

    mean, weight: f32 [kv_heads * head_dim_k], head by head.
    """

    position_weight: float
    position_mean: float
    mean: np.ndarray
    weight: np.ndarray

    def foretold(self, keys: np.ndarray, first: int) -> np.ndarray:
        """keys [tokens, kv_heads * head_dim_k], the first at position `first`: f32 [tokens], from -8 to 7."""
        positions = np.log2(np.maximum(np.arange(first, first + len(keys)), 1)).astype(np.float32)
        z = np.float32(self.position_weight) * (positions - np.float32(self.position_mean))
        return np.clip(z + (np.asarray(keys, np.float32) - self.mean) @ self.weight, LOWEST_LEVEL, HIGHEST_LEVEL)

    def of(self, keys: np.ndarray, first: int) -> np.ndarray:
        """What was foretold, rounded: i64 [tokens]."""
        return np.rint(self.foretold(keys, first)).astype(np.int64)


@dataclass(frozen=True)
class Step:
    """The step that gives a class, with what was measured: nats a token, bits a value."""

    codec: int
    quality: int
    step: float
    mean_kl: float
    bits: float


@dataclass(eq=False)
class Artifact:
    """What docs/artifact-format.md describes. `rope[NO_LAYER]` serves layers without a table of their own."""

    layers: int
    kv_heads: int
    head_dim_k: int
    head_dim_v: int
    rope_dims: int = 0
    rope_style: int = HALVES
    about: dict[str, Any] = field(default_factory=dict)
    rope: dict[int, np.ndarray] = field(default_factory=dict)  # layer -> u64 [rope_dims / 2].
    head_scales: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)  # (layer, kind) -> f32 [kv_heads].
    steps: list[Step] = field(default_factory=list)
    transforms: dict[tuple[int, int, int], Transform] = field(default_factory=dict)  # (layer, kind, group) ->
    levels: dict[tuple[int, int], Levels] = field(default_factory=dict)  # (layer, kind) ->

    @staticmethod
    def id_of(data: bytes) -> int:
        return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")

    def head_dim(self, kind: int) -> int:
        return self.head_dim_v if kind == V else self.head_dim_k

    def turns(self, layer: int) -> np.ndarray:
        """Frequency of each rotated pair of that layer, turns a position times 2^64: u64 [rope_dims / 2]."""
        return self.rope.get(layer, self.rope.get(NO_LAYER, np.zeros(0, np.uint64)))

    def step_of(self, codec: int, quality: int) -> Step | None:
        """The step for that class, or for the next better one that was measured."""
        fitting = [s for s in self.steps if s.codec == codec and s.quality <= quality]
        return max(fitting, key=lambda s: s.quality, default=None)

    def dump(self) -> bytes:
        sections: list[tuple[int, int, int, int, int, bytes]] = []
        about = json.dumps(self.about, sort_keys=True, ensure_ascii=False).encode()
        sections.append((_ABOUT, NO_LAYER, 0, 0, 0, about))
        for layer, turns in self.rope.items():
            sections.append((_ROPE, layer, 0, 0, 0, np.asarray(turns, "<u8").tobytes()))
        for (layer, kind), scales in self.head_scales.items():
            sections.append((_HEAD_SCALES, layer, kind, 0, 0, np.asarray(scales, "<f4").tobytes()))
        steps = sorted(self.steps, key=lambda s: (s.codec, s.quality))
        packed = b"".join(struct.pack("<BBHfff", s.codec, s.quality, 0, s.step, s.mean_kl, s.bits) for s in steps)
        sections.append((_STEPS, NO_LAYER, 0, 0, 0, packed))
        for (layer, kind, group), transform in self.transforms.items():
            sections.append((_TRANSFORM, layer, kind, group, transform.n, _pack(transform)))
        for (layer, kind), levels in self.levels.items():
            head = struct.pack("<ffII", levels.position_weight, levels.position_mean, 0, 0)
            content = head + np.asarray(levels.mean, "<f4").tobytes() + np.asarray(levels.weight, "<f4").tobytes()
            sections.append((_LEVELS, layer, kind, 0, len(levels.mean), content))
        sections.sort(key=lambda s: s[:4])

        at = _up(HEADER_BYTES + ENTRY_BYTES * len(sections))
        table = b""
        body = b""
        for type_, layer, kind, group, n, content in sections:
            table += struct.pack("<HHBBHQQQ", type_, layer, kind, group, n, at + len(body), len(content), 0)
            body += content + bytes(-len(content) % 64)
        rest = (table + bytes(at - HEADER_BYTES - len(table)) + body)
        head = MAGIC + struct.pack(
            "<HHQHHHHHBBI28x", VERSION, 0, HEADER_BYTES + len(rest), self.layers, self.kv_heads,
            self.head_dim_k, self.head_dim_v, self.rope_dims, self.rope_style, 0, len(sections))
        return head + struct.pack("<I", crc32c(head + bytes(4) + rest)) + rest

    @classmethod
    def parse(cls, data: bytes) -> Artifact:
        if len(data) < HEADER_BYTES:
            raise ArtifactError(f"artifact: {len(data)} bytes cannot hold the header")
        if len(data) > MAX_BYTES:
            raise ArtifactError(f"artifact: {len(data)} bytes, at most {MAX_BYTES}")
        if data[:4] != MAGIC:
            raise ArtifactError(f"artifact: magic is {data[:4]!r}, not KVA1")
        (version, zero, file_bytes, layers, heads, dim_k, dim_v, rope_dims, style, zero2, count) = struct.unpack_from(
            "<HHQHHHHHBBI", data, 4)
        (crc,) = struct.unpack_from("<I", data, 60)
        if version != VERSION:
            raise ArtifactError(f"artifact: version {version} is not known here, only {VERSION}")
        if file_bytes != len(data):
            raise ArtifactError(f"artifact: file_bytes is {file_bytes}, {len(data)} bytes are here")
        found = crc32c(data[:60] + bytes(4) + data[64:])
        if found != crc:
            raise ArtifactError(f"artifact: its bytes sum to crc32c {found:08x}, {crc:08x} was written")
        if not (layers and heads and dim_k):
            raise ArtifactError("artifact: layers, kv_heads or head_dim_k is 0")
        if rope_dims % 2 or rope_dims > dim_k:
            raise ArtifactError(f"artifact: rope_dims is {rope_dims} of {dim_k}")
        if style > 1:
            raise ArtifactError(f"artifact: rope_style is {style}")
        if zero or zero2 or any(data[32:60]):
            raise ArtifactError("artifact: a reserved field of the header is not 0")
        if count > (len(data) - HEADER_BYTES) // ENTRY_BYTES:
            raise ArtifactError(f"artifact: {count} sections do not fit")
        out = cls(layers, heads, dim_k, dim_v, rope_dims, style)
        before = (-1,)
        end = HEADER_BYTES + ENTRY_BYTES * count
        for i in range(count):
            entry = struct.unpack_from("<HHBBHQQ", data, HEADER_BYTES + ENTRY_BYTES * i)
            type_, layer, kind, group, n, at, size = entry
            name = f"section {type_} of layer {layer}, kind {kind}, group {group}"
            if not before < (type_, layer, kind, group):
                raise ArtifactError(f"artifact: {name} is out of order or there twice")
            before = (type_, layer, kind, group)
            if at % 64 or at < end or at + size > len(data):
                raise ArtifactError(f"artifact: {name}: bytes {at}+{size} of {len(data)}")
            end = at + size
            out._read(type_, layer, kind, group, n, data[at:end], name)
        missing = set() if NO_LAYER in out.rope else set(range(layers)) - set(out.rope)
        if rope_dims and missing:
            raise ArtifactError(f"artifact: rope_dims is {rope_dims}, layer {min(missing)} has no frequencies")
        return out

    def _read(self, type_: int, layer: int, kind: int, group: int, n: int, content: bytes, name: str) -> None:
        placed = type_ in (_HEAD_SCALES, _TRANSFORM, _LEVELS)
        if placed and (layer >= self.layers or kind not in (K, V)):
            raise ArtifactError(f"artifact: {name}: no such layer or kind")
        alone = layer == NO_LAYER or (type_ == _ROPE and layer < self.layers)
        if type_ in (_ABOUT, _ROPE, _STEPS) and (not alone or kind or group):
            raise ArtifactError(f"artifact: {name} belongs to no layer")
        if type_ == _ABOUT:
            try:
                self.about = json.loads(content.decode())
            except ValueError as error:
                raise ArtifactError(f"artifact: {name}: {error}") from error
        elif type_ == _ROPE:
            if len(content) != 4 * self.rope_dims:
                raise ArtifactError(f"artifact: {name}: {len(content)} bytes for {self.rope_dims} dimensions")
            self.rope[layer] = np.frombuffer(content, "<u8")
        elif type_ == _HEAD_SCALES:
            if len(content) != 4 * self.kv_heads:
                raise ArtifactError(f"artifact: {name}: {len(content)} bytes for {self.kv_heads} heads")
            scales = _floats(content, f"{name}: head_scales")
            if (scales <= 0).any():
                raise ArtifactError(f"artifact: {name}: a scale is not positive")
            self.head_scales[layer, kind] = scales
        elif type_ == _STEPS:
            if len(content) % 16 or len(content) > 64 * 16:
                raise ArtifactError(f"artifact: {name}: {len(content)} bytes")
            for codec, quality, zero, step, kl, bits in struct.iter_unpack("<BBHfff", content):
                if codec not in CODECS.values() or quality not in CLASSES.values() or zero or not 0 < step < np.inf:
                    raise ArtifactError(f"artifact: {name}: codec {codec}, class {quality}, step {step}")
                if not (np.isfinite(kl) and np.isfinite(bits)):
                    raise ArtifactError(f"artifact: {name}: a figure is not finite")
                self.steps.append(Step(codec, quality, step, kl, bits))
        elif type_ == _TRANSFORM:
            wanted = self.head_dim(kind) * (self.kv_heads if group == WHOLE_LAYER else 1)
            if n != wanted or not 0 < n <= MAX_DIMENSIONS or (group != WHOLE_LAYER and group >= self.kv_heads):
                raise ArtifactError(f"artifact: {name}: {n} dimensions, the model has {wanted}")
            self.transforms[layer, kind, group] = _unpack(content, n, name)
        elif type_ == _LEVELS:
            wanted = self.head_dim_k * self.kv_heads
            if n != wanted or group:
                raise ArtifactError(f"artifact: {name}: {n} dimensions, the model's keys have {wanted}")
            if len(content) != 16 + 8 * n:
                raise ArtifactError(f"artifact: {name}: {len(content)} bytes for {n} dimensions")
            if any(content[8:16]):
                raise ArtifactError(f"artifact: {name}: a reserved field is not 0")
            weight, mean = _floats(content[:8], f"{name}: position").tolist()
            self.levels[layer, kind] = Levels(weight, mean, _floats(content[16:16 + 4 * n], f"{name}: mean"),
                                              _floats(content[16 + 4 * n:], f"{name}: weight"))


def _up(size: int) -> int:
    return -(-size // 64) * 64


def _pack(t: Transform) -> bytes:
    synthesis = np.asarray(t.synthesis, np.int8).tobytes()
    parts = [np.asarray(t.mean, "<f4").tobytes(), np.asarray(t.scale, "<f4").tobytes(),
             synthesis, bytes(-len(synthesis) % 4), np.asarray(t.analysis, "<f4").tobytes()]
    return b"".join(parts)


def _unpack(content: bytes, n: int, name: str) -> Transform:
    matrix = -(-n * n // 4) * 4
    if len(content) != 8 * n + matrix + 4 * n * n:
        raise ArtifactError(f"artifact: {name}: {len(content)} bytes for {n} dimensions")
    mean = _floats(content[:4 * n], f"{name}: mean")
    scale = _floats(content[4 * n:8 * n], f"{name}: scale")
    if (scale == 0).any():
        raise ArtifactError(f"artifact: {name}: a scale is 0")
    synthesis = np.frombuffer(content, np.int8, n * n, 8 * n).reshape(n, n)
    analysis = _floats(content[8 * n + matrix:], f"{name}: analysis").reshape(n, n)
    return Transform(mean, scale, synthesis, analysis)


def _floats(content: bytes, what: str) -> np.ndarray:
    numbers = np.frombuffer(content, "<f4")
    if not np.isfinite(numbers).all():
        raise ArtifactError(f"artifact: {what}[{int(np.argmin(np.isfinite(numbers)))}] is not finite")
    return numbers


def _crc_table() -> np.ndarray:
    """CRC-32C (RFC 3720) of each byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C, many lanes at a time: the data is cut into equal lanes whose sums are then joined.

    A sum over A then B is shift(sum(A), len(B)) ^ sum(B), where shift multiplies by x^(8 len(B)) in GF(2):
    M. Adler's crc32_combine.
    """
    lanes = 1024
    length = len(data) // lanes
    state = 0xFFFFFFFF
    if length:
        rows = np.frombuffer(data, np.uint8, lanes * length).reshape(lanes, length).T.copy()
        sums = np.zeros(lanes, np.uint32)
        for row in rows:
            sums = _TABLE[(sums ^ row) & 0xFF] ^ (sums >> np.uint32(8))
        shift = _shift_by(length)
        for lane in sums.tolist():
            state = _times(shift, state) ^ lane
    table = _TABLE.tolist()
    for byte in data[lanes * length:]:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def _times(matrix: list[int], vector: int) -> int:
    out, i = 0, 0
    while vector:
        if vector & 1:
            out ^= matrix[i]
        vector >>= 1
        i += 1
    return out


def _shift_by(count: int) -> list[int]:
    """The matrix (32 columns) that a state goes through for `count` bytes of zeros."""
    table = _TABLE.tolist()
    power = [table[(1 << i) & 0xFF] ^ ((1 << i) >> 8) for i in range(32)]
    out = [1 << i for i in range(32)]
    while count:
        if count & 1:
            out = [_times(power, column) for column in out]
        power = [_times(power, column) for column in power]
        count >>= 1
    return out
