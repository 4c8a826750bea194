import os
import types

import numpy as np
import pytest
import tiercel


def test_a_value_comes_back(client, key):
    data = os.urandom(100_000)
    assert client.get(key) is None
    assert not client.exists(key)
    result = client.put(key, data)
    assert result.status == "OK" and result.bytes == len(data)
    assert client.exists(key)
    assert client.get(key) == data


@pytest.mark.parametrize("size", [1, 63, 4096, 1 << 20, 16 << 20])
def test_sizes(client, key, size):
    data = os.urandom(size)
    assert client.put(key, data, deadline_s=10).ok
    assert client.get(key, deadline_s=10) == data


def test_a_value_over_sixteen_mebibytes_is_there_whole(client, key):
    data = os.urandom((40 << 20) + 5)
    assert not client.exists(key, value_bytes=len(data))
    assert client.put(key, data, deadline_s=20).ok
    assert client.exists(key, value_bytes=len(data))
    into = bytearray(len(data))
    assert client.get_into(key, into, deadline_s=20) == len(data)
    assert into == data
    # Its first piece is not a value, and another size is another value.
    assert client.get(key) is None and not client.exists(key)
    assert client.get_into(key, bytearray(20 << 20), deadline_s=20) == -1
    with pytest.raises(ValueError, match="numbers of pieces"):
        client.batch_put([key + b"1", key + b"2"], [data, b"small"])


def test_keys_are_text_or_bytes_of_any_length(client):
    for name in ("text", "über", b"b", os.urandom(100), os.urandom(16).hex()):
        unique = name + (os.urandom(4).hex() if isinstance(name, str) else os.urandom(4))
        assert client.put(unique, b"v").ok
        assert client.get(unique) == b"v"
    with pytest.raises(ValueError):
        client.put("", b"v")


def test_the_first_value_of_a_key_stays(client, key):
    assert client.put(key, b"one").ok
    assert client.put(key, b"two").status in ("OK", "EXISTS")
    assert client.get(key) == b"one"


def test_into_a_buffer(client, key):
    client.put(key, b"hello")
    room = bytearray(64)
    assert client.get_into(key, room) == 5
    assert room[:5] == b"hello"
    assert client.get_into(key, np.zeros(5, np.uint8)) == 5
    assert client.get_into(os.urandom(16), room) == -1
    with pytest.raises(ValueError, match="smaller"):
        client.get_into(key, bytearray(4))
    with pytest.raises(TypeError, match="read-only"):
        client.get_into(key, b"12345")
    with pytest.raises(TypeError):
        client.put(key, "text")


def test_a_strided_buffer_is_refused(client, key):
    with pytest.raises(tiercel.NotContiguous):
        client.put(key, np.zeros((4, 4), np.uint8)[:, ::2])
    with pytest.raises(tiercel.NotContiguous):
        client.get_into(key, memoryview(bytearray(64))[::2])


def test_batches(client):
    names = [os.urandom(16) for _ in range(100)]
    datas = [os.urandom(1 + 37 * i) for i in range(100)]
    assert all(r.ok for r in client.batch_put(names, datas))
    rooms = [bytearray(len(d)) for d in datas] + [bytearray(8)]
    got = client.batch_get_into(names + [b"not there" + names[0]], rooms)
    assert [r.status for r in got] == ["OK"] * 100 + ["MISS"]
    assert [r.bytes for r in got[:100]] == [len(d) for d in datas]
    assert [bytes(r) for r in rooms[:100]] == datas
    with pytest.raises(ValueError, match="buffers"):
        client.batch_put(names, datas[1:])


def test_batches_by_address(client):
    names = [os.urandom(16) for _ in range(5)]
    out = np.random.default_rng(1).integers(0, 256, (5, 1000), dtype=np.uint8)
    into = np.zeros_like(out)
    sizes = np.full(5, 1000, np.int64)

    def ptrs(array):
        return array.ctypes.data + np.arange(5, dtype=np.int64) * 1000

    assert all(r.ok for r in client.batch_put_ptrs(names, ptrs(out), sizes))
    assert all(r.ok for r in client.batch_get_into_ptrs(names, ptrs(into), sizes))
    assert np.array_equal(out, into)
    with pytest.raises(tiercel.NotContiguous):
        client.batch_put_ptrs(names, np.zeros(10, np.int64)[::2], sizes)


def test_scopes_keep_values_apart(client, key):
    scope = tiercel.make_scope(model="other")
    client.put(key, b"here", scope)
    assert client.get(key) is None
    assert client.get(key, scope) == b"here"


def test_too_much_and_too_little(client, key):
    with pytest.raises(ValueError):
        client.put(key, b"")


def test_durable(client, key):
    result = client.put(key, os.urandom(1000), durable=True, deadline_s=10)
    assert result.ok and result.durable


def test_a_buffer_stays_while_its_ticket_lives(client, key):
    data = bytearray(os.urandom(1 << 20))
    ticket = client.submit_put(key, data, deadline_s=10)
    with pytest.raises(BufferError):
        data.append(0)  # Held: it must not move.
    assert client.wait(ticket).blocks[0].ok
    data.append(0)
    assert client.get(key) == bytes(data[:-1])


def array_interface(array):
    """Shows nothing of the array but __array_interface__."""
    return types.SimpleNamespace(__array_interface__=array.__array_interface__, keep=array)


def dlpack(array):
    class Tensor:
        def __dlpack__(self, **options):
            return array.__dlpack__(**options)

        def __dlpack_device__(self):
            return array.__dlpack_device__()

    return Tensor()


@pytest.mark.parametrize("show", [array_interface, dlpack])
def test_memory_by_other_protocols(client, key, show):
    out = np.arange(600, dtype=np.float32).reshape(2, 300)
    into = np.zeros_like(out)
    assert client.put(key, show(out)).bytes == 2400
    assert client.get_into(key, show(into)) == 2400
    assert np.array_equal(out, into)
    with pytest.raises(tiercel.NotContiguous):
        client.put(os.urandom(16), show(out[:, ::2]))
    with pytest.raises(tiercel.NotContiguous):
        client.get_into(key, show(into.T))


def test_read_only_memory_is_not_written(client, key):
    client.put(key, b"12345678")
    frozen = np.zeros(8, np.uint8)
    frozen.flags.writeable = False
    for buffer in (frozen, array_interface(frozen)):
        with pytest.raises(TypeError, match="read-only"):
            client.get_into(key, buffer)
    assert not frozen.any()


def test_what_is_not_memory_is_a_type_error(client, key):
    def interface(fields):
        return types.SimpleNamespace(__array_interface__=fields)

    good = dict(typestr="|u1", shape=(4,), data=(1 << 12, False), version=3)
    bad = [
        interface({}),
        interface({**good, "typestr": "|uX"}),
        interface({**good, "typestr": "|O8"}),
        interface({**good, "data": None}),
        interface({**good, "shape": (1 << 62, 16)}),
        interface({**good, "shape": (-4,)}),
        interface({**good, "strides": (1, 1)}),
    ]
    for thing in (None, 5, "text", [1, 2], object(), *bad):
        with pytest.raises(TypeError):
            client.put(key, thing)
    assert not client.exists(key)


def test_many_keys_at_once_exist_or_not(client):
    names = [os.urandom(16) for _ in range(300)]
    client.batch_put(names[::2], [b"v"] * 150)
    assert client.batch_exists(names) == [True, False] * 150
    assert client.batch_exists([]) == []


def test_addresses_without_waiting(client):
    names = [os.urandom(16) for _ in range(5)]
    out = np.random.default_rng(2).integers(0, 256, (5, 1000), dtype=np.uint8)
    into = np.zeros_like(out)
    sizes = np.full(5, 1000, np.int64)
    rows = np.arange(5, dtype=np.int64) * 1000
    put = client.submit_batch_put_ptrs(names, out.ctypes.data + rows, sizes)
    assert all(r.ok for r in client.wait(put).blocks)
    got = client.submit_batch_get_into_ptrs(names, into.ctypes.data + rows, sizes)
    assert all(r.ok for r in client.wait(got).blocks)
    assert np.array_equal(out, into)
