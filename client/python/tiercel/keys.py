"""Keys in pure Python: scopes, block keys and run anchors, to the byte what docs/wire.md says.

The C++ core computes the same; this is for tools, tests and whoever has no extension module.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Union

DTYPES = {"opaque": 0, "bf16": 1, "fp16": 2, "fp32": 3, "fp8_e4m3": 4, "fp8_e5m2": 5, "int8": 6}
ORDERS = {"thd": 0, "htd": 1, "hdt": 2}
PACKINGS = {"split": 0, "interleaved": 1, "latent": 2}
CLASSES = {"exact": 0, "near": 1, "high": 2, "balanced": 3, "small": 4}
BLOCKS_PER_RUN = 32

_Named = Union[int, str]  # A code, or its name in the tables above.


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def field_hash(tag: str, *fields: str | bytes | int) -> bytes:
    """SHA-256 over length-prefixed fields; an int is a field of four bytes."""
    digest = hashlib.sha256()
    for field in (tag, *fields):
        data = struct.pack("<I", field) if isinstance(field, int) else _bytes(field)
        digest.update(struct.pack("<I", len(data)))
        digest.update(data)
    return digest.digest()


def _code(value: _Named, names: Mapping[str, int]) -> int:
    return value if isinstance(value, int) else names[value]


def scope(
    *,
    model: str,
    revision: str = "",
    adapters: Sequence[str] = (),
    rope: str = "",
    salt: str = "",
    dtype: _Named = "opaque",
    layers: int = 0,
    kv_heads: int = 0,
    head_dim: int = 0,
    head_dim_v: int = 0,
    tokens_per_block: int = 0,
    k_order: _Named = "thd",
    v_order: _Named = "thd",
    packing: _Named = "split",
    world: int = 1,
    engine: str = "",
    isa: str = "",
) -> bytes:
    """The 16 bytes that say whose KV fits whose."""
    return field_hash(
        "tiercel scope v1",
        model,
        revision,
        len(adapters),
        *adapters,
        rope,
        salt,
        _code(dtype, DTYPES),
        layers,
        kv_heads,
        head_dim,
        head_dim_v,
        tokens_per_block,
        _code(k_order, ORDERS),
        _code(v_order, ORDERS),
        _code(packing, PACKINGS),
        world,
        engine,
        isa,
    )[:16]


def _check_hash(engine_hash: bytes, allow_short_hashes: bool) -> None:
    low = 1 if allow_short_hashes else 16
    if not low <= len(engine_hash) <= 32:
        raise ValueError(f"engine hash has {len(engine_hash)} bytes, not {low}..32")


def block_key(
    scope: bytes,
    engine_hash: bytes,
    *,
    name_space: str = "default",
    part: int = 0,
    lineage: _Named = "exact",
    allow_short_hashes: bool = False,
) -> bytes:
    _check_hash(engine_hash, allow_short_hashes)
    lineage = _code(lineage, CLASSES)
    return field_hash("tiercel block key v1", name_space, scope, part, lineage, engine_hash)


def run_anchor(
    scope: bytes,
    engine_hash: bytes,
    *,
    name_space: str = "default",
    lineage: _Named = "exact",
    allow_short_hashes: bool = False,
) -> bytes:
    """What placement sees: of the first block of each run of 32."""
    _check_hash(engine_hash, allow_short_hashes)
    return field_hash(
        "tiercel run anchor v1", name_space, scope, _code(lineage, CLASSES), engine_hash
    )


# The byte store's keys are the command line tool's: `tiercel put KEY` and Client.get(KEY) agree.
def byte_scope() -> bytes:
    return scope(model="tiercel cli")


def byte_hash(key: str | bytes) -> bytes:
    """The engine hash of a byte-store key: 16..32 bytes as they are or in hex, else a digest."""
    if isinstance(key, str):
        if not key:
            raise ValueError("the key is empty")
        if len(key) % 2 == 0 and 32 <= len(key) <= 64 and _is_hex(key):
            return bytes.fromhex(key)
        return field_hash("tiercel cli key v1", key)
    key = bytes(key)
    if not key:
        raise ValueError("the key is empty")
    return key if 16 <= len(key) <= 32 else field_hash("tiercel cli key v1", key)


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in text)
