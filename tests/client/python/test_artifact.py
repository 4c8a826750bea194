"""Artifacts and the mathematics behind them, on small random models."""

import pathlib
import re
import struct

import numpy as np
import pytest
from tiercel import _ec, _transforms, calibrate
from tiercel.artifact import CODECS, NO_LAYER, WHOLE_LAYER, Artifact, ArtifactError, K, Step, V, crc32c

HEADS, DIM, LAYERS = 2, 16, 3
rng = np.random.default_rng(4)


def correlated(tokens, n, seed=1):
    """Rows with a strong common structure: [tokens, n]."""
    g = np.random.default_rng(seed)
    basis = g.normal(size=(n, n)) * 2.0 ** -np.arange(n)[:, None]
    return (g.normal(size=(tokens, n)) @ basis + g.normal(size=n)).astype(np.float32)


def keys_say(x):
    """How loud a token's gradient is here, log2: linear in one dimension of its key. x [heads, tokens, dim]."""
    return 2 * (x[0, :, 0] - x[0, :, 0].mean()) / x[0, :, 0].std()


def small_artifact(strength=0.0):
    out = Artifact(LAYERS, HEADS, DIM, DIM, rope_dims=DIM, about={"model": "small, of our own"})
    out.rope = calibrate.rope_of([10000.0 ** -(np.arange(0, DIM, 2) / DIM)] * (LAYERS - 1)
                                 + [np.full(DIM // 2, 0.5)])
    measured = calibrate.Measured()
    for layer in range(LAYERS):
        for kind in (K, V):
            x = correlated(600, HEADS * DIM, layer * 2 + kind).reshape(-1, HEADS, DIM).transpose(1, 0, 2)
            measured.add_values(layer, kind, x)
            slope = rng.normal(size=x.shape) * np.exp2(keys_say(x))[None, :, None]
            measured.add_gradients(layer, kind, slope)
            measured.add_tokens(layer, kind, x, slope)
    calibrate.learn(out, measured, 1.0, strength)
    out.steps = [Step(9, 3, 0.25, 1e-3, 2.5), Step(7, 2, 0.125, 1e-4, 4.0), Step(9, 1, 0.0625, 1e-5, 5.0)]
    return out


def test_crc32c_is_rfc_3720s():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    data = bytes(rng.integers(0, 256, 5000, np.uint8))
    assert crc32c(data[:4999]) != crc32c(data)


def test_an_artifact_comes_back_as_it_was():
    made = small_artifact()
    data = made.dump()
    assert len(data) % 64 == 0 and made.dump() == data
    back = Artifact.parse(data)
    assert back.dump() == data
    assert (back.layers, back.kv_heads, back.head_dim_k, back.rope_dims) == (LAYERS, HEADS, DIM, DIM)
    assert back.about == made.about
    assert [(s.codec, s.quality) for s in back.steps] == [(7, 2), (9, 1), (9, 3)]
    assert set(back.transforms) == {(la, k, g) for la in range(LAYERS) for k in (K, V) for g in (0, 1, WHOLE_LAYER)}
    np.testing.assert_array_equal(back.transforms[1, V, 1].synthesis, made.transforms[1, V, 1].synthesis)
    np.testing.assert_array_equal(back.turns(2), made.rope[2])
    np.testing.assert_array_equal(back.turns(0), made.rope[NO_LAYER])


def test_levels_come_back_and_foretell_what_the_keys_say():
    made = small_artifact(strength=1.0)
    data = made.dump()
    back = Artifact.parse(data)
    assert back.dump() == data and set(back.levels) == {(la, k) for la in range(LAYERS) for k in (K, V)}
    x = correlated(600, HEADS * DIM, K).reshape(-1, HEADS, DIM).transpose(1, 0, 2)  # Keys of layer 0.
    levels = back.levels[0, K].of(x.transpose(1, 0, 2).reshape(600, -1), 4)
    # Twice the log: a step of half the size for four times the information.
    assert np.corrcoef(levels, 2 * keys_say(x))[0, 1] > 0.95
    assert levels.min() == -8 and levels.max() == 7 and abs(levels.mean()) < 0.5
    np.testing.assert_array_equal(levels, made.levels[0, K].of(x.transpose(1, 0, 2).reshape(600, -1), 4))
    assert not Artifact.parse(small_artifact().dump()).levels


@pytest.mark.parametrize(("at", "value", "word"), [
    (0, struct.pack("<f", np.nan), "position"), (8, b"\x01", "reserved"), (16, struct.pack("<f", np.inf), "mean"),
    (16 + 4 * HEADS * DIM, struct.pack("<f", -np.inf), "weight"),
])
def test_a_wrong_field_of_levels_is_named(at, value, word):
    data = bytearray(small_artifact(strength=1.0).dump())
    (count,) = struct.unpack_from("<I", data, 28)
    entries = [struct.unpack_from("<HHBBHQQ", data, 64 + 32 * i) for i in range(count)]
    where = next(e[5] for e in entries if e[0] == 6)
    data[where + at:where + at + len(value)] = value
    data[60:64] = bytes(4)
    data[60:64] = struct.pack("<I", crc32c(bytes(data)))
    with pytest.raises(ArtifactError, match=f"section 6 of layer 0, kind 1.*{word}"):
        Artifact.parse(bytes(data))


def test_the_step_of_a_class_is_the_next_better_one_measured():
    made = small_artifact()
    assert made.step_of(9, 3).step == 0.25
    assert made.step_of(9, 2).step == 0.0625
    assert made.step_of(7, 1) is None


def test_every_cut_and_every_flip_is_refused():
    data = small_artifact().dump()
    for size in (0, 63, 64, 100, len(data) - 64, len(data) - 1):
        with pytest.raises(ArtifactError):
            Artifact.parse(data[:size])
    for at in np.random.default_rng(1).integers(0, len(data), 60):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(at) % 8
        with pytest.raises(ArtifactError):
            Artifact.parse(bytes(flipped))


@pytest.mark.parametrize(("at", "value", "word"), [
    (18, b"\x09", "dimensions|heads"),
    (24, b"\x0e", "rope_dims|bytes for"),
    (26, b"\x07", "rope_style"),
    (64, b"\x05\x00", "out of order|layer"),
    (64 + 8, b"\x01", "bytes"),
])
def test_a_wrong_field_is_named_though_the_sum_is_right(at, value, word):
    data = bytearray(small_artifact().dump())
    data[at:at + len(value)] = value
    data[60:64] = bytes(4)
    data[60:64] = struct.pack("<I", crc32c(bytes(data)))
    with pytest.raises(ArtifactError, match=word):
        Artifact.parse(bytes(data))


def test_a_rotation_undone_gives_what_was_there():
    turns = _transforms.turns_of(10000.0 ** -(np.arange(0, DIM, 2) / DIM))
    x = rng.normal(size=(HEADS, 20, DIM))
    for style in (0, 1):
        there = _transforms.rotate(x, turns, style, 1000)
        np.testing.assert_allclose(_transforms.rotate(there, turns, style, 1000, back=True), x, atol=1e-12)
    one = _transforms.rotate(np.eye(DIM)[None, :1], turns, 0, 3)  # Dimension 0 at position 3: 3 radians.
    np.testing.assert_allclose(one[0, 0, [0, DIM // 2]], [np.cos(3), np.sin(3)], atol=1e-9)


def test_a_transform_inverts_itself_and_orders_by_variance():
    x = correlated(4000, 24)
    fisher = np.cov(rng.normal(size=(24, 500)) * np.linspace(0.1, 3, 24)[:, None])
    t = _transforms.klt(x.mean(0), np.cov(x.T, bias=True), fisher, 0.5)
    synthesis = t.scale[:, None].astype(np.float64) * t.synthesis
    np.testing.assert_allclose(t.analysis @ synthesis, np.eye(24), atol=1e-4)
    variances = ((x - t.mean) @ t.analysis.T).var(0)
    assert (np.diff(variances) < 1e-4 * variances[0]).all()  # Rounding to int8 leaves a floor.
    # An error of e in the coefficients costs e' e in the metric, whatever the direction.
    regular = fisher + 0.5 * np.mean(np.diag(fisher)) * np.eye(24)
    np.testing.assert_allclose(synthesis.T @ regular @ synthesis, np.eye(24), atol=0.12)


def test_the_frozen_tables_are_the_coders():
    header = pathlib.Path(__file__).parents[3] / "kernels" / "rans_frozen.h"
    text = header.read_text().split("kQuantizedFrequencies", 1)[1].split("};", 1)[0]
    rows = [[int(n) for n in row.split(",")] for row in re.findall(r"\{([\d, ]+)\}", text)]
    np.testing.assert_array_equal(_ec.FREQUENCIES, rows)


def test_bits_of_columns_are_near_their_entropy():
    g = np.random.default_rng(3)
    for sigma in (0.3, 1.0, 3.0, 40.0):
        q = np.rint(g.normal(size=(64, 256)) * sigma).astype(int)
        _, counts = np.unique(q, return_counts=True)
        p = counts / counts.sum()
        entropy = -(p * np.log2(p)).sum()
        assert entropy - 0.05 < _ec.matrix_bits(q, None) / q.size < entropy + 0.15
    assert _ec.matrix_bits(np.zeros((3, 256), int), None) == 5 + 3


def test_an_integer_list_takes_its_shortest_way():
    assert _ec.list_bits(np.zeros(10, int)) == 5 + 10
    assert _ec.list_bits(np.arange(100, 120)) < 5 + 20 * 4
    assert _ec.list_bits(np.array([5])) == 5 + 5  # Zigzag 10 and order 2: 14 has 4 bits; 2 x 4 - 1 - 2.
    g = np.random.default_rng(2)
    values = g.integers(-8, 8, 256)
    assert 4 * 256 <= _ec.list_bits(values) <= 4 * 256 + 5 + 256


def test_tokens_of_a_level_together_take_fewer_bits():
    g = np.random.default_rng(3)
    levels = np.rint(g.normal(size=256) * 2).clip(-8, 7).astype(int)
    q = np.rint(g.normal(size=(64, 256)) * 2 * np.exp2(levels / 2)).astype(int)
    assert _ec.matrix_bits(q, levels) < 0.97 * _ec.matrix_bits(q, None)


def test_fp8_has_its_values():
    x = np.array([0, 1, 1.06, 1.07, 447, 500, -0.0019, 0.0009, 2**-9, 17.1, 2**-6 * 1.1], np.float32)
    assert _ec.e4m3(x).tolist() == [0, 1, 1, 1.125, 448, 448, -2**-9, 0, 2**-9, 18, 2**-6 * 1.125]


def test_blocks_end_at_multiples_of_their_size():
    assert [(b.start, b.stop) for b in _ec.Place(0, 4, 256).blocks(764)] == [(0, 252), (252, 508), (508, 764)]
    assert [(b.start, b.stop) for b in _ec.Place(0, 0, 16).blocks(20)] == [(0, 16), (16, 20)]


@pytest.mark.parametrize("name", CODECS)
def test_a_smaller_step_takes_more_bits_and_loses_less(name):
    made = Artifact.parse(small_artifact().dump())
    planes = [correlated(256, HEADS * DIM, kind).reshape(-1, HEADS, DIM).transpose(1, 0, 2) for kind in (K, V)]
    k = _ec.bf16(_transforms.rotate(planes[0], made.turns(0), 0, 4).astype(np.float32))
    v = _ec.bf16(planes[1])
    before = None
    for step in (1.0, 0.25, 0.0625):
        k2, v2, bits = _ec.codec(name, step, made)(k, v, _ec.Place(0, 4, 256))
        error = float(((k2 - k) ** 2).mean() + ((v2 - v) ** 2).mean())
        if before:
            assert error < before[0] and bits > before[1]
        before = error, bits
    assert before[0] < 2e-3


def test_a_step_is_found_for_a_limit():
    def measure(step):
        return 3.0 * step**1.8, 4 - np.log2(step)

    seen = {}
    for limit in (1e-2, 3e-2, 1e-3, 1e-5):
        step, kl, _ = calibrate.find_step(measure, limit, seen, 1.0)
        assert 0.85 * limit < kl <= limit and measure(step)[0] == kl
    assert calibrate.find_step(lambda step: (1.0, 1.0), 1e-9, {}, 1.0) is None


def test_captured_blocks_alone_give_transforms(tmp_path, capsys):
    turns = _transforms.turns_of(10000.0 ** -(np.arange(0, DIM, 2) / DIM))
    for layer in range(2):
        for first in (0, 256):
            x = correlated(256, HEADS * DIM, layer).reshape(-1, HEADS, DIM).transpose(1, 0, 2)
            np.save(tmp_path / f"layer-{layer:03}.k.{first}.npy", _transforms.rotate(x, turns, 0, first))
            np.save(tmp_path / f"layer-{layer:03}.v.{first}.npy", x)
    out = tmp_path / "model.kva1"
    assert calibrate.main(["--blocks", str(tmp_path), "--rope-theta", "10000", "--out", str(out)]) == 0
    made = Artifact.parse(out.read_bytes())
    assert f"{Artifact.id_of(out.read_bytes()):016x}" in capsys.readouterr().out
    assert len(made.transforms) == 2 * 2 * 3 and not made.head_scales and not made.steps and not made.levels
    # K was turned back: K and V were the same before the rotation.
    np.testing.assert_allclose(made.transforms[0, K, 0].mean, made.transforms[0, V, 0].mean, atol=1e-3)


def test_a_folder_without_blocks_is_named(tmp_path, capsys):
    assert calibrate.main(["--blocks", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_small_model_is_calibrated_from_text(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, head_dim=16, bos_token_id=0, eos_token_id=0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={chr(i): i for i in range(256)}, merges=[]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    (tmp_path / "text").write_text("".join(chr(int(i)) for i in rng.integers(32, 127, 4000)))
    out = tmp_path / "model.kva1"
    wanted = f"--model {tmp_path} --text {tmp_path}/text --out {out}"
    assert calibrate.main([*wanted.split(), *["--prefix", "64", "--suffix", "16", "--sequences", "3", "--held-out", "2", "--block", "32"]]) == 0
    made = Artifact.parse(out.read_bytes())
    assert len(made.transforms) == 2 * 2 * 3 and len(made.head_scales) == 4 and len(made.levels) == 4
    assert all(s.mean_kl >= 0 and s.bits > 0 for s in made.steps) and made.steps
    assert made.about["metric"]["name"] == "fisher" and made.about["levels"]["strength"] == calibrate.STRENGTH
