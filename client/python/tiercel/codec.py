"""Records without a node: code a block, decode it, look at it. put and get do the same inside.

    layout = KvLayout(...)
    record = encode(layout, "lle", block)              # bytes: KVB1, docs/block-format.md
    assert decode(record, layout) == block

    artifact = load_artifact(Path("smollm2.kva1").read_bytes())     # docs/artifact-format.md
    record = encode(layout, "ec-x", block, quality="balanced", artifact=artifact)

A block is the layers' canonical bytes, layer by layer, K then V, each in the layout's axis order; anything with
the buffer protocol, an array or a tensor on the CPU.
"""

from __future__ import annotations

from ._core import CodecArtifact, KvLayout, decode_record, encode_record, inspect_record, load_artifact
from ._types import Memory

__all__ = ["CodecArtifact", "decode", "encode", "inspect", "load_artifact"]


def encode(
    layout: KvLayout,
    codec: str,
    block: Memory,
    *,
    quality: str = "balanced",
    artifact: CodecArtifact | None = None,
    pos0: int = 0,
    exact_tokens: int = 0,
    step: float = 0.0,
) -> bytes:
    """The record of a block. quality, artifact, exact_tokens (counted from position 0) and step are for lossy codecs:
    raw, llf and lle give back every bit. Errors: ValueError names what does not fit."""
    return encode_record(
        layout, codec, block, quality=quality, artifact=artifact, pos0=pos0, exact_tokens=exact_tokens, step=step
    )


def decode(record: Memory, layout: KvLayout) -> bytes:
    """The block's bytes, checked against the digest that the encoder saw. A record that names an artifact needs it
    loaded in this process."""
    return decode_record(record, layout)


def inspect(record: Memory) -> dict[str, object]:
    """Codec, class, sizes and each segment's codec and bytes."""
    return inspect_record(record)
