"""Records by themselves: every codec by name, what is lossless is, what is wrong is named."""

from pathlib import Path

import numpy as np
import pytest
from tiercel import KvLayout, _ec, _transforms, calibrate, codec
from tiercel.artifact import NO_LAYER, Artifact, K, V

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


@pytest.fixture(scope="module", params=[0.0, 0.5])
def calibrated(request):
    """A made-up model's artifact without and with levels, and a block of it: K and V of each layer [heads, tokens, dim]."""
    layers, heads, dim, tokens = 4, 3, 64, 256
    g = np.random.default_rng(8)
    artifact = Artifact(layers, heads, dim, dim, rope_dims=dim)
    slow, fast = (base ** -(np.arange(0, dim, 2) / dim) for base in (1e6, 1e4))
    artifact.rope = calibrate.rope_of([fast, fast, slow, fast])  # A layer that is turned in a way of its own.
    assert set(artifact.rope) == {2, NO_LAYER}
    measured, planes = calibrate.Measured(), []
    for layer in range(layers):
        for kind in (K, V):
            basis = g.normal(size=(heads * dim, heads * dim)) * 0.97 ** np.arange(heads * dim)[:, None]
            rows = (g.standard_t(6, size=(1024 + tokens, heads * dim)) @ basis / 4).astype(np.float32)
            x = rows.reshape(-1, heads, dim).transpose(1, 0, 2)
            slope = g.normal(size=x.shape) * np.exp2(2 * x[:1, :, :1] / x[0, :, 0].std())
            seen = slice(0, 1024)
            measured.add_values(layer, kind, x[:, seen])
            measured.add_gradients(layer, kind, slope[:, seen])
            measured.add_tokens(layer, kind, x[:, seen], slope[:, seen])
            turns = artifact.turns(layer) if kind == K else np.zeros(0, np.uint64)
            planes.append(_ec.bf16(_transforms.rotate(x[:, 1024:], turns, 0, 0)))
    calibrate.learn(artifact, measured, 1.0, request.param)
    return artifact, planes


@pytest.mark.parametrize("name", ["EC-C", "EC-K", "EC-X"])
def test_the_reference_has_a_records_values_and_about_its_bits(calibrated, name):
    artifact, planes = calibrated
    heads, tokens, dim = planes[0].shape
    layout = KvLayout(layers=artifact.layers, kv_heads=heads, head_dim=dim, tokens_per_block=tokens, dtype="bf16")
    raw = b"".join((p.transpose(1, 0, 2).copy().view(np.uint32) >> 16).astype(np.uint16).tobytes() for p in planes)
    loaded = codec.load_artifact(artifact.dump())
    for step in (0.25, 0.5, 1.0):
        record = codec.encode(layout, name.lower(), raw, quality="balanced", artifact=loaded, step=step)
        back = floats(codec.decode(record, layout)).reshape(-1, tokens, heads, dim).transpose(0, 2, 1, 3)
        bits, values = 0.0, []
        for layer in range(artifact.layers):
            k, v, spent = _ec.codec(name, step, artifact)(planes[2 * layer], planes[2 * layer + 1], _ec.Place(layer))
            values += [k, v]
            bits += spent
        assert abs(bits / (8 * len(record)) - 1) < 0.02, (step, bits, 8 * len(record))
        if name == "EC-C":  # Whose encoder shifts wide columns by half a step.
            lost, theirs = (((x - np.stack(planes)) ** 2).mean() for x in (back, np.stack(values)))
            assert abs(theirs / lost - 1) < 0.03
        else:
            assert (back != np.stack(values)).mean() < 2e-3


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
