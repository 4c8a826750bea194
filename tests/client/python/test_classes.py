"""Blocks in classes: what is stored as lossy is served to who accepts it, and to nobody else."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tiercel
from tiercel import Chain, KvLayout, codec, keys
from tiercel.artifact import CODECS, Artifact, Step
from tiercel.calibrate import main as calibrate

SHAPE = {"layers": 2, "kv_heads": 2, "head_dim": 64, "tokens_per_block": 64, "dtype": "bf16"}
LAYOUT = KvLayout(**SHAPE)


def planes(seed):
    values = np.random.default_rng(seed).standard_normal((2, LAYOUT.layers, 64, 128)).astype(np.float32)
    values *= np.exp2(np.random.default_rng(9).standard_normal(128)).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def floats(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def addresses(planes, side):
    return np.array([[planes[side, layer].ctypes.data for layer in range(LAYOUT.layers)]], np.int64)


class Store:
    """One chain of a fresh scope, block by block."""

    def __init__(self, client):
        self.client = client
        self.scope = keys.scope(model="classes", salt=os.urandom(8).hex(), **SHAPE)
        self.chain = Chain(self.scope)
        self.hashes = []

    def put(self, seed, **options):
        self.hashes.append(os.urandom(32))
        self.chain.append(self.hashes[-1])
        data = planes(seed)
        first = len(self.chain) - 1
        result = self.client.put_blocks(self.chain, first, 1, LAYOUT, addresses(data, 0), addresses(data, 1), **options)[0]
        assert result.ok, result
        return first, data

    def get(self, first, client=None, **options):
        out = np.zeros_like(planes(0))
        result = (client or self.client).get_blocks(
            self.chain, first, 1, LAYOUT, addresses(out, 0), addresses(out, 1), **options
        )[0]
        return result, out


@pytest.fixture
def store(client):
    return Store(client)


def test_a_lossy_block_is_served_to_who_accepts_it_and_to_nobody_else(store):
    first, data = store.put(1, put_class="balanced", codec="ec-c")
    result, _ = store.get(first)
    assert result.status == "MISS" and result.reason == "other_class"
    result, _ = store.get(first, min_class="high")
    assert result.status == "MISS" and result.reason == "other_class"
    assert store.client.match_prefix(store.chain) == 0 and store.client.match_prefix(store.chain, min_class="balanced") == 1
    assert [r.reason for r in store.client.lookup(store.chain)] == ["other_class"]
    result, out = store.get(first, min_class="balanced")
    assert result.ok and result.quality == "balanced" and result.record_bytes < 0.4 * data.nbytes
    error = np.mean((floats(out) - floats(data)) ** 2) / np.mean(floats(data) ** 2)
    assert 0 < error < 0.05


def test_the_exact_one_comes_beside_the_lossy_one_and_the_reader_may_prefer_either(store):
    first, data = store.put(2, put_class="near", codec="i8")
    k, v = addresses(data, 0), addresses(data, 1)
    assert store.client.put_blocks(store.chain, first, 1, LAYOUT, k, v, codec="raw")[0].ok
    result, out = store.get(first, min_class="near", prefer_small=False)
    assert result.quality == "exact" and np.array_equal(out, data)
    result, out = store.get(first, min_class="near", prefer_small=True)
    assert result.quality == "near" and result.record_bytes < 0.6 * data.nbytes
    result, out = store.get(first)
    assert result.quality == "exact" and np.array_equal(out, data)


@pytest.mark.parametrize("name", ["raw", "llf", "lle", "f8", "i8", "i8e", "i4h", "ec-c"])
def test_every_codec_by_name_goes_through_a_node(store, name):
    first, data = store.put(3, put_class="balanced", codec=name)
    result, out = store.get(first, min_class="balanced")
    assert result.ok
    lossless = name in ("raw", "llf", "lle")
    assert (result.quality == "exact") == lossless and np.array_equal(out, data) == lossless


def test_a_codec_lossier_than_the_put_allows_is_refused(store):
    store.chain.append(os.urandom(32))
    data = planes(4)
    k, v = addresses(data, 0), addresses(data, 1)
    result = store.client.put_blocks(store.chain, 0, 1, LAYOUT, k, v, put_class="near", codec="i4h")[0]
    assert not result.ok
    with pytest.raises(ValueError, match="no quality class 'good'"):
        store.client.put_blocks(store.chain, 0, 1, LAYOUT, k, v, put_class="good")


def test_the_controller_picks_and_explains(store):
    for seed in range(6):
        store.put(10 + seed)
    picked = store.client.stats()["puts_by_codec"]
    assert sum(picked.values()) == 6 and set(picked) <= {"raw", "llf", "lle"}
    told = store.client.explain_codecs(store.scope, LAYOUT)
    assert [one["quality"] for one in told] == ["exact"] * 3
    assert sum(one["measured"] for one in told) == 6
    costs = [one["cost_s"] for one in told]
    assert costs == sorted(costs)
    assert {one["codec"] for one in store.client.explain_codecs(store.scope, LAYOUT, "small")} >= {"ec-c", "ec-x", "i4h"}


@pytest.fixture(scope="module")
def artifact_bytes(tmp_path_factory):
    """By covariance alone, with a step for each class."""
    folder = tmp_path_factory.mktemp("blocks")
    for at in range(4):
        data = floats(planes(100 + at)).reshape(2, LAYOUT.layers, 64, 2, 64)
        for layer in range(LAYOUT.layers):
            for side, name in enumerate("kv"):
                np.save(folder / f"layer-{layer:03d}.{name}.{at * 64}.npy", data[side, layer].transpose(1, 0, 2))
    out = folder / "model.kva1"
    assert calibrate(["--blocks", str(folder), "--out", str(out)]) == 0
    artifact = Artifact.parse(out.read_bytes())
    artifact.steps = [Step(CODECS["EC-X"], 1 + at, 0.05 * 2**at, 1e-4 * 4**at, 4.0 - at) for at in range(4)]
    return artifact.dump()


READER = """
import sys
import numpy as np
import tiercel
from test_classes import LAYOUT, Store, planes

endpoint, scope, block, artifact = sys.argv[1:]
with tiercel.Client(endpoint) as client:
    try:
        client.load_artifact(0x1234)
    except KeyError:
        print("no such artifact")
    store = Store(client)
    store.chain = tiercel.Chain(bytes.fromhex(scope))
    store.chain.append(bytes.fromhex(block))
    result, _ = store.get(0)
    print("exact:", result.status, result.reason)
    result, out = store.get(0, min_class="balanced")
    print("balanced:", result.status, client.load_artifact(int(artifact)).id == int(artifact))
    sys.stdout.flush()
    np.save(sys.argv[0] + ".npy", out)
"""


def test_who_has_no_artifact_finds_it_in_the_cache(endpoint, artifact_bytes, tmp_path):
    held = codec.load_artifact(artifact_bytes)
    with tiercel.Client(endpoint, artifact=held) as writer:
        store = Store(writer)
        first, data = store.put(5, put_class="balanced", codec="ec-x")
        result, out = store.get(first, min_class="balanced")
        assert result.ok and result.quality == "balanced" and result.record_bytes < 0.4 * data.nbytes
        script = tmp_path / "reader.py"
        script.write_text(READER)
        command = [sys.executable, str(script), endpoint, store.scope.hex(), store.hashes[first].hex(), str(held.id)]
        env = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)}
        # As long as the cache does not have it: a miss that says so.
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
        assert told.returncode != 0 and "balanced" not in told.stdout, told.stdout
        writer.store_artifact(held)
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
        assert told.returncode == 0, told.stderr
        assert told.stdout.split("\n")[:3] == ["no such artifact", "exact: MISS other_class", "balanced: OK True"]
        assert np.array_equal(np.load(str(script) + ".npy"), out)


def test_a_damaged_artifact_is_not_taken(endpoint, artifact_bytes, client):
    for at in (3, 70, len(artifact_bytes) // 2):
        bad = bytearray(artifact_bytes)
        bad[at] ^= 1
        with pytest.raises(Exception, match="artifact"):
            codec.load_artifact(bytes(bad))
