"""The calls that engines make of mooncake.store, and what they answer: one line of JSON each, [name, answer]. The same
program runs on Mooncake's own module and on Tiercel's: test_mooncake.py compares.

    python mooncake_calls.py MASTER
"""

import ctypes
import json
import sys

from mooncake.store import MooncakeDistributedStore, ReplicateConfig

MIB = 1 << 20
held = []  # Memory that the store was told of.


def told(name, answer):
    print(json.dumps([name, answer if not isinstance(answer, (bytes, bytearray)) else bytes(answer).hex()]), flush=True)


def memory(data):
    buffer = ctypes.create_string_buffer(bytes(data), len(data))
    held.append(buffer)
    return buffer, ctypes.addressof(buffer)


def main():
    store = MooncakeDistributedStore()
    told("setup", store.setup("127.0.0.1", "P2PHANDSHAKE", 64 * MIB, 16 * MIB, "tcp", "", sys.argv[1]))
    told("health_check", store.health_check())

    told("put", store.put("a", b"value"))
    told("put.again", store.put("a", b"other"))
    told("put.with-config", store.put("b", b"second", ReplicateConfig()))
    told("put.empty", store.put("empty", b""))
    told("put_parts", store.put_parts("parts", b"one", b"two"))
    told("put_batch", store.put_batch(["c", "d"], [b"third", b"4"]))
    told("put_batch.again", store.put_batch(["c", "e"], [b"third", b"5"]))
    told("put_batch.unequal", store.put_batch(["f", "g"], [b"6"]))
    told("get", store.get("a"))
    told("get.parts", store.get("parts"))
    told("get.absent", store.get("absent"))
    told("get_batch", [bytes(one).hex() for one in store.get_batch(["a", "absent", "d"])])
    told("is_exist", store.is_exist("a"))
    told("is_exist.absent", store.is_exist("absent"))
    told("batch_is_exist", store.batch_is_exist(["a", "absent", "e"]))
    told("batch_is_exist.none", store.batch_is_exist([]))
    told("get_size", store.get_size("a"))
    told("get_size.absent", store.get_size("absent"))

    source, at = memory(bytes(range(256)) * 64)
    room, to = memory(bytes(1 << 14))
    told("register_buffer", store.register_buffer(at, 1 << 14))
    told("register_buffer.room", store.register_buffer(to, 1 << 14))
    told("register_buffer.again", store.register_buffer(at, 1 << 14))
    told("put_from", store.put_from("from", at, 5000))
    told("put_from.again", store.put_from("from", at, 5000))
    told("batch_put_from", store.batch_put_from(["f0", "f1", "from"], [at, at + 4096, at], [4096, 100, 5000]))
    told("batch_put_from.unequal", store.batch_put_from(["u0", "u1"], [at], [10]))
    told("get_into", store.get_into("from", to, 1 << 14))
    told("get_into.bytes", room.raw[:5000] == source.raw[:5000])
    told("get_into.exact", store.get_into("from", to, 5000))
    told("get_into.small", store.get_into("from", to, 100))
    told("get_into.absent", store.get_into("absent", to, 100))
    told("batch_get_into", store.batch_get_into(["f0", "absent", "f1"], [to, to + 4096, to + 8192], [4096, 4096, 100]))
    told("batch_get_into.larger", store.batch_get_into(["f1"], [to], [4096]))
    told("batch_get_into.small", store.batch_get_into(["f0"], [to], [100]))
    told("batch_get_into.unequal", store.batch_get_into(["f0", "f1"], [to], [100]))
    told("batch_put_from_multi_buffers", store.batch_put_from_multi_buffers(["m0", "m1"], [[at, at + 4096], [at + 100]], [[1000, 24], [8]]))
    told("batch_put_from_multi_buffers.again", store.batch_put_from_multi_buffers(["m0"], [[at, at + 4096]], [[1000, 24]]))
    told("batch_put_from_multi_buffers.value", store.get("m0") == source.raw[:1000] + source.raw[4096:4120])
    told("batch_get_into_multi_buffers", store.batch_get_into_multi_buffers(["m0", "absent"], [[to, to + 2000], [to + 4000]], [[1000, 24], [8]]))
    told("batch_get_into_multi_buffers.bytes", room.raw[:1000] == source.raw[:1000] and room.raw[2000:2024] == source.raw[4096:4120])
    told("batch_get_into_multi_buffers.larger", store.batch_get_into_multi_buffers(["m0"], [[to]], [[2000]]))
    told("batch_get_into_multi_buffers.small", store.batch_get_into_multi_buffers(["m0"], [[to]], [[100]]))
    told("batch_get_into_multi_buffers.split-otherwise", store.batch_get_into_multi_buffers(["m0"], [[to, to + 2000]], [[500, 524]]))
    replicas = store.batch_get_replica_desc(["a", "absent"])
    told("batch_get_replica_desc.keys", sorted(replicas))
    told("unregister_buffer", store.unregister_buffer(at))
    told("unregister_buffer.again", store.unregister_buffer(at))
    told("unregister_buffer.room", store.unregister_buffer(to))

    told("remove.absent", store.remove("absent"))
    told("remove.forced", store.remove("b", True))
    told("remove.forced.is_exist", store.is_exist("b"))
    told("remove.forced.get", store.get("b"))
    told("remove.forced.again", store.remove("b", True))
    told("remove.then-put", store.put("b", b"anew"))
    told("remove.then-get", store.get("b"))
    told("batch_remove", store.batch_remove(["c", "absent"], True))
    told("batch_remove.is_exist", store.batch_is_exist(["c", "d"]))
    told("remove_all", store.remove_all(True))
    told("remove_all.is_exist", store.batch_is_exist(["a", "b", "d"]))
    told("close", store.close())
    told("close.again", store.close())


main()
