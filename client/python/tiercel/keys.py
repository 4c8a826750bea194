"""Keys in pure Python: scopes, block keys and run anchors, to the byte what docs/wire.md says.

The C++ core computes the same; this is for tools, tests and whoever has no extension module.
"""

import hashlib
import struct

DTYPES = {"opaque": 0, "bf16": 1, "fp16": 2, "fp32": 3, "fp8_e4m3": 4, "fp8_e5m2": 5, "int8": 6}
ORDERS = {"thd": 0, "htd": 1, "hdt": 2}
PACKINGS = {"split": 0, "interleaved": 1, "latent": 2}
CLASSES = {"exact": 0, "near": 1, "high": 2, "balanced": 3, "small": 4}
BLOCKS_PER_RUN = 32


def _bytes(value):
    return value.encode() if isinstance(value, str) else bytes(value)


def field_hash(tag, *fields):
    """SHA-256 over length-prefixed fields; an int is a field of four bytes."""
    digest = hashlib.sha256()
    for field in (tag, *fields):
        data = struct.pack("<I", field) if isinstance(field, int) else _bytes(field)
        digest.update(struct.pack("<I", len(data)))
        digest.update(data)
    return digest.digest()


def _code(value, names):
    return value if isinstance(value, int) else names[value]


def scope(
    *,
    model,
    revision="",
    adapters=(),
    rope="",
    salt="",
    dtype="opaque",
    layers=0,
    kv_heads=0,
    head_dim=0,
    head_dim_v=0,
    tokens_per_block=0,
    k_order="thd",
    v_order="thd",
    packing="split",
    world=1,
    engine="",
    isa="",
):
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


def _check_hash(engine_hash, allow_short_hashes):
    low = 1 if allow_short_hashes else 16
    if not low <= len(engine_hash) <= 32:
        raise ValueError(f"engine hash has {len(engine_hash)} bytes, not {low}..32")


def block_key(
    scope, engine_hash, *, name_space="default", part=0, lineage="exact", allow_short_hashes=False
):
    _check_hash(engine_hash, allow_short_hashes)
    lineage = _code(lineage, CLASSES)
    return field_hash("tiercel block key v1", name_space, scope, part, lineage, engine_hash)


def run_anchor(
    scope, engine_hash, *, name_space="default", lineage="exact", allow_short_hashes=False
):
    """What placement sees: of the first block of each run of 32."""
    _check_hash(engine_hash, allow_short_hashes)
    return field_hash(
        "tiercel run anchor v1", name_space, scope, _code(lineage, CLASSES), engine_hash
    )


# The byte store's keys are those of the command line tool: `tiercel put KEY` and Client.get(KEY) agree.
def byte_scope():
    return scope(model="tiercel cli")


def byte_hash(key):
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


def _is_hex(text):
    return all(c in "0123456789abcdefABCDEF" for c in text)
