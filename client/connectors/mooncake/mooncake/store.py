"""MooncakeDistributedStore's calls that engines use, with its return codes, over a Tiercel node.

0 is success, a negative number says what failed (Mooncake's own numbers, below), and no call raises. The node is
TIERCEL_ENDPOINT, or 127.0.0.1:7400; what setup() is told about masters, metadata and segments is not needed.

What Tiercel does not do: a key's value never changes (a second put keeps the first and answers 0, as Mooncake does), and
single keys are not removed: remove() answers UNAVAILABLE_IN_CURRENT_MODE for a key that is there.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tiercel

OK = 0
NO_AVAILABLE_HANDLE = -200
INVALID_PARAMS = -600
OBJECT_NOT_FOUND = -704
TRANSFER_FAIL = -800
RPC_FAIL = -900
UNAVAILABLE_IN_CURRENT_MODE = -1011

_PIECE_BYTES = 16 << 20
_PUT_CODES = {"OK": OK, "EXISTS": OK, "BUSY": NO_AVAILABLE_HANDLE, "NO_SPACE": NO_AVAILABLE_HANDLE, "TIMEOUT": TRANSFER_FAIL,
              "CORRUPT": TRANSFER_FAIL, "REFUSED": INVALID_PARAMS, "UNAVAILABLE": RPC_FAIL}
_GET_CODES = {"MISS": OBJECT_NOT_FOUND, "NO_SPACE": INVALID_PARAMS, "BUSY": NO_AVAILABLE_HANDLE, "TIMEOUT": TRANSFER_FAIL,
              "CORRUPT": OBJECT_NOT_FOUND, "UNAVAILABLE": RPC_FAIL}
_SIZE = struct.Struct("<Q")


class ReplicateConfig:
    """Taken and not needed: Tiercel places copies by itself."""

    def __init__(self) -> None:
        self.replica_num = 1
        self.with_soft_pin = False
        self.with_hard_pin = False
        self.preferred_segment = ""
        self.preferred_segments: list[str] = []
        self.group_ids: list[str] = []
        self.data_type = None
        self.prefer_alloc_in_same_node = False


class MooncakeDistributedStore:
    def __init__(self) -> None:
        self._client: Any = None
        self._hostname = ""
        self._scope = self._sizes = b""
        self._registered: dict[int, int] = {}

    # Life

    def setup(self, local_hostname: Any = "", metadata_server: str = "", global_segment_size: int = 0, local_buffer_size: int = 0,
              protocol: str = "tcp", rdma_devices: str = "", master_server_addr: str = "", engine: Any = None, *more: Any,
              tenant_id: str = "default", **options: Any) -> int:
        """Also of one dict, as Mooncake's."""
        if isinstance(local_hostname, dict):
            config = local_hostname
            local_hostname, tenant_id = config.get("local_hostname", ""), config.get("tenant_id", tenant_id)
        if self._client is not None:
            return INVALID_PARAMS
        try:
            self._client = tiercel.Client(name_space=os.environ.get("TIERCEL_NAMESPACE", "default"), client_name="mooncake")
        except (ConnectionError, OSError):
            return RPC_FAIL
        except ValueError:
            return INVALID_PARAMS
        self._hostname = str(local_hostname)
        self._scope = tiercel.make_scope(model="mooncake.store", salt=str(tenant_id))
        self._sizes = tiercel.make_scope(model="mooncake.store size", salt=str(tenant_id))
        return OK

    def init_all(self, protocol: str = "tcp", device_name: str = "", mount_segment_size: int = 0) -> int:
        return self.setup("", protocol=protocol)

    def close(self) -> int:
        if self._client is not None:
            self._client.close()
            self._client = None
        return OK

    def get_hostname(self) -> str:
        return self._hostname

    def health_check(self) -> int:
        """0: well; 1: not set up, or closed; 2: no node answers."""
        if self._client is None:
            return 1
        return 0 if any(node["connected"] for node in self._client.nodes()) else 2

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        if self._client is None or buffer_ptr == 0 or size <= 0 or buffer_ptr in self._registered:
            return INVALID_PARAMS
        code = self._each(1, lambda: [self._client.register_memory(buffer_ptr, size) or OK])[0]
        if code == OK:
            self._registered[buffer_ptr] = size
        return code

    def unregister_buffer(self, buffer_ptr: int) -> int:
        size = self._registered.pop(buffer_ptr, 0)
        return self._each(1, lambda: [self._client.unregister_memory(buffer_ptr, size) or OK])[0] if size else INVALID_PARAMS

    # What is there

    def is_exist(self, key: str) -> int:
        return self.batch_is_exist([key])[0]

    def batch_is_exist(self, keys: Sequence[str]) -> list[int]:
        """1, 0, or a negative number where nobody could be asked."""
        return self._each(len(keys), lambda: [self._here(key) for key in keys])

    def get_size(self, key: str) -> int:
        return self._each(1, lambda: [self._size(key)])[0]  # Of a small value by fetching it.

    def batch_get_replica_desc(self, keys: Sequence[str]) -> dict[str, list[Any]]:
        """Of those that are there: no replica that a caller could reach by itself."""
        return {key: [] for key, here in zip(keys, self.batch_is_exist(keys)) if here == 1}

    # Put

    def put(self, key: str, value: Any, config: ReplicateConfig | None = None) -> int:
        return self.put_batch([key], [value])

    def put_parts(self, key: str, *parts: Any, config: ReplicateConfig | None = None) -> int:
        return self.put(key, b"".join(bytes(part) for part in parts))

    def put_batch(self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig | None = None) -> int:
        """0, or the first failure."""
        if len(keys) != len(values):
            return INVALID_PARAMS
        codes = self._each(len(keys), lambda: [self._put(key, value) for key, value in zip(keys, values)])
        return next((code for code in codes if code != OK), OK)

    def put_from(self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig | None = None) -> int:
        return self.batch_put_from([key], [buffer_ptr], [size])[0]

    def batch_put_from(self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int],
                       config: ReplicateConfig | None = None) -> list[int]:
        if not len(keys) == len(buffer_ptrs) == len(sizes):
            return [INVALID_PARAMS] * len(keys)
        return self._each(len(keys), lambda: self._move(keys, buffer_ptrs, sizes, put=True))

    def batch_put_from_multi_buffers(self, keys: Sequence[str], all_buffer_ptrs: Sequence[Sequence[int]],
                                     all_sizes: Sequence[Sequence[int]], config: ReplicateConfig | None = None) -> list[int]:
        """A value is its buffers, one after the other; they are gathered first."""
        if not _fit(keys, all_buffer_ptrs, all_sizes):
            return [INVALID_PARAMS] * len(keys)
        return self._each(len(keys), lambda: [
            self._put(key, b"".join(ctypes.string_at(ptr, size) for ptr, size in zip(ptrs, sizes)))
            for key, ptrs, sizes in zip(keys, all_buffer_ptrs, all_sizes)])

    # Get

    def get(self, key: str) -> bytes:
        """The value; no bytes when it is not there."""
        return self.get_batch([key])[0]

    def get_batch(self, keys: Sequence[str]) -> list[bytes]:
        values: list[bytes] = []
        self._each(len(keys), lambda: [values.append(self._value(key) or b"") or OK for key in keys])
        return values + [b""] * (len(keys) - len(values))

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        return self.batch_get_into([key], [buffer_ptr], [size])[0]

    def batch_get_into(self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """Bytes of each, or a negative number."""
        if not len(keys) == len(buffer_ptrs) == len(sizes):
            return [INVALID_PARAMS] * len(keys)
        return self._each(len(keys), lambda: self._move(keys, buffer_ptrs, sizes, put=False))

    def batch_get_into_multi_buffers(self, keys: Sequence[str], all_buffer_ptrs: Sequence[Sequence[int]], all_sizes: Sequence[Sequence[int]],
                                     prefer_same_node: bool = False) -> list[int]:
        """Buffers that hold less than the value: INVALID_PARAMS; more: TRANSFER_FAIL; either way they are left as they were."""
        if not _fit(keys, all_buffer_ptrs, all_sizes):
            return [INVALID_PARAMS] * len(keys)
        return self._each(len(keys), lambda: [
            self._scatter(key, ptrs, sizes) for key, ptrs, sizes in zip(keys, all_buffer_ptrs, all_sizes)])

    # Remove

    def remove(self, key: str, force: bool = False) -> int:
        return UNAVAILABLE_IN_CURRENT_MODE if self.is_exist(key) == 1 else OBJECT_NOT_FOUND

    def batch_remove(self, keys: Sequence[str], force: bool = False) -> list[int]:
        return [self.remove(key) for key in keys]

    def remove_all(self, force: bool = False) -> int:
        """Other engines share the name space; `tiercel clear` forgets it."""
        return UNAVAILABLE_IN_CURRENT_MODE

    # Inside

    def _each(self, count: int, call: Callable[[], list[int]]) -> list[int]:
        if self._client is None:
            return [INVALID_PARAMS] * count
        try:
            return call()
        except (ValueError, TypeError):
            return [INVALID_PARAMS] * count
        except Exception:
            return [RPC_FAIL] * count

    def _here(self, key: str) -> int:
        status = self._client.lookup(self._client.key_chain(key, self._scope))[0].status
        if status == "MISS":
            return 1 if self._big_size(key) else 0
        return 1 if status == "OK" else _GET_CODES.get(status, RPC_FAIL)

    def _big_size(self, key: str) -> int:
        """Of a value in pieces, or 0. It stands beside the value, and is stored after it."""
        told = self._client.get(key, self._sizes)
        size = _SIZE.unpack(told)[0] if told is not None else 0
        return size if size and self._client.exists(key, self._scope, value_bytes=size) else 0

    def _size(self, key: str) -> int:
        value = self._client.get(key, self._scope)
        return len(value) if value is not None else self._big_size(key) or OBJECT_NOT_FOUND

    def _value(self, key: str) -> bytes | bytearray | None:
        value = self._client.get(key, self._scope)
        if value is not None:
            return value
        room = bytearray(self._big_size(key))
        return room if room and self._get_into(key, room) == len(room) else None

    def _put(self, key: str, value: Any) -> int:
        code = _PUT_CODES.get(self._client.put(key, value, self._scope).status, RPC_FAIL)
        size = memoryview(value).nbytes
        return code if code != OK or size <= _PIECE_BYTES else self._told(key, size)

    def _told(self, key: str, size: int) -> int:
        return _PUT_CODES.get(self._client.put(key, _SIZE.pack(size), self._sizes).status, RPC_FAIL)

    def _get_into(self, key: str, room: Any) -> int:
        result = self._client.batch_get_into([key], [room], self._scope)[0]
        return result.bytes if result.status == "OK" else _GET_CODES.get(result.status, RPC_FAIL)

    def _move(self, keys: Sequence[str], ptrs: Sequence[int], sizes: Sequence[int], put: bool) -> list[int]:
        codes = [INVALID_PARAMS] * len(keys)
        groups: dict[int, list[int]] = {}
        for i, (ptr, size) in enumerate(zip(ptrs, sizes)):
            if ptr and size > 0:
                groups.setdefault(-(-size // _PIECE_BYTES), []).append(i)
        call = self._client.batch_put_ptrs if put else self._client.batch_get_into_ptrs
        for pieces, at in groups.items():
            results = call([keys[i] for i in at], np.array([ptrs[i] for i in at], np.int64), np.array([sizes[i] for i in at], np.int64), self._scope)
            for i, result in zip(at, results):
                if put:
                    codes[i] = _PUT_CODES.get(result.status, RPC_FAIL)
                    if pieces > 1 and codes[i] == OK:
                        codes[i] = self._told(keys[i], sizes[i])
                else:
                    codes[i] = result.bytes if result.status == "OK" else _GET_CODES.get(result.status, RPC_FAIL)
        return codes

    def _scatter(self, key: str, ptrs: Sequence[int], sizes: Sequence[int]) -> int:
        value = self._value(key)
        if value is None:
            return OBJECT_NOT_FOUND
        if len(value) != sum(sizes):
            return INVALID_PARAMS if sum(sizes) < len(value) else TRANSFER_FAIL
        at = 0
        for ptr, size in zip(ptrs, sizes):
            ctypes.memmove(ptr, bytes(value[at:at + size]), size)
            at += size
        return len(value)


def _fit(keys: Sequence[str], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]) -> bool:
    return len(keys) == len(ptrs) == len(sizes) and all(len(a) == len(b) > 0 for a, b in zip(ptrs, sizes))
