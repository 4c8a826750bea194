"""Records by themselves: every codec by name, what is lossless is, what is wrong is named."""

from pathlib import Path

import numpy as np
import pytest
from tiercel import KvLayout, codec

LAYOUT = KvLayout(layers=2, kv_heads=3, head_dim=64, tokens_per_block=64, dtype="bf16")


def block():
    values = np.random.default_rng(3).standard_normal((2, 2, 64, 192)).astype(np.float32)
    values *= np.exp2(np.random.default_rng(4).standard_normal(192)).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def floats(bits):
    return (np.frombuffer(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("name", ["raw", "llf", "lle"])
def test_a_lossless_codec_gives_back_every_bit(name):
    raw = block()
    record = codec.encode(LAYOUT, name, raw)
    assert codec.decode(record, LAYOUT) == raw.tobytes()
    told = codec.inspect(record)
    assert told["codec"] == name and told["quality"] == "exact" and len(told["segments"]) == 4
    assert name == "raw" or len(record) < 0.8 * raw.nbytes


@pytest.mark.parametrize("name", ["f8", "i8", "i8e", "i4h", "ec-c"])
def test_a_lossy_codec_is_near_and_says_so(name):
    raw = block()
    record = codec.encode(LAYOUT, name, raw)
    back, true = floats(codec.decode(record, LAYOUT)), floats(raw.tobytes())
    assert np.mean((back - true) ** 2) < 0.05 * np.mean(true**2)
    assert len(record) < 0.6 * raw.nbytes
    assert codec.inspect(record)["quality"] != "exact"


@pytest.mark.parametrize("name", ["ec-c", "ec-k", "ec-x"])
def test_an_artifact_that_foretells_levels_gives_each_token_its_own_step(name):
    golden = Path(__file__).resolve().parents[2] / "kernels/golden"
    layout = KvLayout(layers=1, kv_heads=2, head_dim=16, tokens_per_block=128, dtype="bf16")
    values = np.random.default_rng(5).standard_normal((2, 128, 32)).astype(np.float32)
    raw = (values.view(np.uint32) >> 16).astype(np.uint16)
    versions = []
    for file in ("layer-of-2x16.kva1", "layer-of-2x16-levels.kva1"):
        artifact = codec.load_artifact((golden / file).read_bytes())
        record = codec.encode(layout, name, raw, quality="balanced", artifact=artifact)
        segments = codec.inspect(record)["segments"]
        assert [s["codec"] for s in segments] == [name, name]
        directory = int.from_bytes(record[6:8], "little")  # docs/block-format.md; entries of 32 bytes.
        versions += [record[64 * int.from_bytes(record[directory + 32 * i + 4:directory + 32 * i + 8], "little")] for i in (0, 1)]
        back, true = floats(codec.decode(record, layout)), floats(raw.tobytes())
        assert np.mean((back - true) ** 2) < 0.2 * np.mean(true**2)
    assert versions == [1, 1, 2, 2]


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="no codec 'zip'"):
        codec.encode(LAYOUT, "zip", block())
    with pytest.raises(ValueError, match="no class 'best'"):
        codec.encode(LAYOUT, "ec-c", block(), quality="best")
    with pytest.raises(ValueError, match="needs an artifact"):
        codec.encode(LAYOUT, "ec-x", block())
    with pytest.raises(ValueError, match="the block is"):
        codec.encode(LAYOUT, "raw", block()[:1])
    record = bytearray(codec.encode(LAYOUT, "lle", block()))
    record[-2000] ^= 1
    with pytest.raises(Exception, match="DATA_LOSS: record, segment"):
        codec.decode(record, LAYOUT)
