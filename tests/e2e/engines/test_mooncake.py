"""The calls of mooncake.store and their codes, against a node, and beside Mooncake 0.3.13.post1's own, which runs here."""

import ctypes
import importlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MOONCAKE

mooncake = pytest.importorskip("mooncake.store")


@pytest.fixture
def store(node, monkeypatch):
    monkeypatch.setenv("TIERCEL_ENDPOINT", node.grpc)
    one = mooncake.MooncakeDistributedStore()
    assert one.setup("localhost", "P2PHANDSHAKE", 512 << 20, 128 << 20, "tcp", "", "127.0.0.1:50051") == 0
    yield one
    one.close()


def key():
    return f"model@{os.urandom(8).hex()}"


def memory(data):
    buffer = ctypes.create_string_buffer(bytes(data), len(data))
    return buffer, ctypes.addressof(buffer)


def test_a_value_comes_back_and_an_absent_one_is_no_bytes(store):
    name = key()
    assert store.put(name, b"value") == 0 and store.get(name) == b"value"
    assert store.get(key()) == b"" and store.get_batch([name, key()]) == [b"value", b""]
    assert store.put(name, b"other") == 0 and store.get(name) == b"value"


def test_existence_is_one_or_zero(store):
    name = key()
    assert store.is_exist(name) == 0
    store.put(name, b"v")
    assert store.batch_is_exist([name, key(), name]) == [1, 0, 1]
    assert store.get_size(name) == 1 and store.get_size(key()) == -704
    absent = key()
    assert list(store.batch_get_replica_desc([name, absent])) == [name]


def test_memory_at_addresses_is_stored_and_filled(store):
    names, datas = [key() for _ in range(3)], [os.urandom(5000 + i) for i in range(3)]
    held = [memory(data) for data in datas]
    assert store.register_buffer(held[0][1], 5000) == 0 and store.unregister_buffer(held[0][1]) == 0
    assert store.batch_put_from(names, [at for _, at in held], [len(d) for d in datas]) == [0, 0, 0]
    rooms = [memory(bytes(len(data))) for data in datas]
    assert store.batch_get_into(names, [at for _, at in rooms], [len(d) for d in datas]) == [len(d) for d in datas]
    assert [room.raw for room, _ in rooms] == datas
    small, at = memory(bytes(10))
    assert store.get_into(names[0], at, 10) == -600
    assert store.get_into(key(), at, 10) == -704


def test_a_value_of_many_buffers_is_one_value(store):
    name, parts = key(), [os.urandom(n) for n in (100, 4000, 1)]
    held = [memory(part) for part in parts]
    ptrs, sizes = [[at for _, at in held]], [[len(part) for part in parts]]
    assert store.batch_put_from_multi_buffers([name], ptrs, sizes) == [0]
    assert store.get(name) == b"".join(parts)
    rooms = [memory(bytes(len(part))) for part in parts]
    assert store.batch_get_into_multi_buffers([name], [[at for _, at in rooms]], sizes) == [4101]
    assert [room.raw for room, _ in rooms] == parts
    assert store.batch_get_into_multi_buffers([name], [[rooms[0][1]]], [[100]]) == [-600]
    more, at = memory(bytes(5000))
    assert store.batch_get_into_multi_buffers([name], [[at]], [[5000]]) == [-800] and not any(more.raw)
    assert store.batch_get_into_multi_buffers([key()], [[at]], [[5000]]) == [-704]


def test_big_values_are_whole_or_not_there(store):
    name, data = key(), os.urandom(20 << 20)
    assert store.put(name, data) == 0 and store.is_exist(name) == 1 and store.get_size(name) == len(data)
    assert store.get(name) == data


def test_wrong_use_is_a_code(store):
    assert store.put(key(), b"") == -600
    assert store.batch_put_from([key()], [0], [10]) == [-600] and store.batch_get_into([key()], [1, 2], [3]) == [-600]
    assert store.register_buffer(0, 10) == -600
    name = key()
    assert store.remove(name) == -704
    store.put(name, b"v")
    assert store.remove(name) == -1011 and store.batch_remove([name]) == [-1011] and store.remove_all() == -1011 and store.is_exist(name) == 1


def test_without_setup_or_node_nothing_raises(monkeypatch):
    one = mooncake.MooncakeDistributedStore()
    assert one.put(key(), b"v") == -600 and one.get(key()) == b"" and one.is_exist(key()) == -600 and one.health_check() == 1
    monkeypatch.setenv("TIERCEL_ENDPOINT", "127.0.0.1:9")
    assert one.setup("localhost", "", 0, 0, "tcp", "", "") == -900 and one.close() == 0


def test_a_node_that_dies_is_a_code(dying, monkeypatch):
    monkeypatch.setenv("TIERCEL_ENDPOINT", dying.grpc)
    one = mooncake.MooncakeDistributedStore()
    assert one.setup({"local_hostname": "localhost", "tenant_id": "t"}) == 0 and one.health_check() == 0
    name = key()
    one.put(name, b"v")
    dying.kill()
    assert one.put(key(), b"v") in (-800, -900) and one.batch_is_exist([name])[0] in (-800, -900) and one.get(name) == b""
    one.close()


def test_tenants_do_not_see_each_other(node, monkeypatch):
    monkeypatch.setenv("TIERCEL_ENDPOINT", node.grpc)
    red, blue = mooncake.MooncakeDistributedStore(), mooncake.MooncakeDistributedStore()
    assert red.setup({"tenant_id": "red"}) == 0 and blue.setup({"tenant_id": "blue"}) == 0
    name = key()
    red.put(name, b"v")
    assert red.is_exist(name) == 1 and blue.is_exist(name) == 0 and blue.get(name) == b""
    red.close(), blue.close()


def test_whoever_looks_for_the_transfer_engine_finds_no_mooncake():
    """LMCache's server does without it only then."""
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module("mooncake.engine")
    assert raised.value.name == "mooncake"


CALLS = Path(__file__).with_name("mooncake_calls.py")
# What a user of Mooncake meets here: one value is not removed. Everything else is the same.
OTHERWISE = {
    "remove.forced": -1011, "remove.forced.is_exist": 1, "remove.forced.get": b"second".hex(), "remove.forced.again": -1011,
    "remove.then-get": b"second".hex(), "batch_remove": [-1011, -704], "batch_remove.is_exist": [1, 1],
    "remove_all": -1011, "remove_all.is_exist": [1, 1, 1],
}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answers(master, **env):
    done = subprocess.run([sys.executable, CALLS, master], capture_output=True, text=True, timeout=120, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def test_engines_calls_answer_as_mooncakes_own_do(node):
    port = free_port()
    master = Path(MOONCAKE) / "mooncake/mooncake_master"
    master.chmod(0o755)
    process = subprocess.Popen([master, "--rpc_port", str(port), "--metrics_port", str(free_port())], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        theirs = answers(f"127.0.0.1:{port}", PYTHONPATH=MOONCAKE)
    finally:
        process.kill()
        process.wait()
    ours = answers(f"127.0.0.1:{port}", TIERCEL_ENDPOINT=node.grpc, TIERCEL_NAMESPACE="default")
    print(f"\n{len(theirs)} answers compared")
    assert len(theirs) > 50 and theirs.keys() == ours.keys()
    assert {name: ours[name] for name in ours if ours[name] != theirs[name]} == OTHERWISE
