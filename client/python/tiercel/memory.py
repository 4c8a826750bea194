"""MemoryBackend: Client's names over a dict in this process, to test what is built on Client."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

from . import keys
from ._core import Chain, ClosedError, KvLayout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

    from ._types import Addresses, Key, Memory, Stats

_BYTE_SCOPE = keys.byte_scope()


class Result:
    """BlockResult's fields."""

    __slots__ = ("status", "reason", "tier", "quality", "bytes", "record_bytes", "durable")

    def __init__(
        self, status: str, reason: str = "none", nbytes: int = 0, tier: str = "none"
    ) -> None:
        self.status = status
        self.reason = reason
        self.tier = tier
        self.quality = "exact"
        self.bytes = nbytes
        self.record_bytes = nbytes
        self.durable = False

    @property
    def ok(self) -> bool:
        return self.status == "OK"

    def __repr__(self) -> str:
        return f"Result(status={self.status!r}, reason={self.reason!r}, bytes={self.bytes})"


class MemoryBackend:
    """Unbounded, exact, immediate. Planes are copied as bytes, so any layout will do."""

    def __init__(
        self, endpoint: str | Sequence[str] = "", *, name_space: str = "default", **_: Any
    ) -> None:
        self.name_space = name_space
        self._values: dict[bytes, list[bytes]] = {}
        self._lock = threading.Lock()
        self.closed = False
        self._asked = self._served = self._puts = self._stored = 0

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        if self.closed:
            raise ClosedError("the client is closed")

    def lookup(self, chain: Chain, deadline_s: float | None = None) -> list[Result]:
        self._open()
        out = []
        for i in range(len(chain)):
            value = self._values.get(chain.key(i))
            if value is None:
                out.append(Result("MISS", "never_seen"))
            else:
                out.append(Result("OK", nbytes=sum(map(len, value)), tier="host"))
        return out

    def match_prefix(self, chain: Chain, deadline_s: float | None = None, hold: bool = False) -> int:
        prefix = 0
        for entry in self.lookup(chain):
            if not entry.ok:
                break
            prefix += 1
        return prefix

    def pin_prefix(self, chain: Chain, seconds: float, deadline_s: float | None = None) -> int:
        return self.match_prefix(chain)

    def unpin_prefix(self, chain: Chain, deadline_s: float | None = None) -> int:
        return self.match_prefix(chain)

    def put_blocks(
        self,
        chain: Chain,
        first: int,
        n: int,
        layout: KvLayout,
        k_ptrs: Addresses,
        v_ptrs: Addresses | None = None,
        **opts: Any,
    ) -> list[Result]:
        self._open()
        sizes = self._planes(chain, first, n, layout, v_ptrs)
        out = []
        for i in range(n):
            value = [ctypes.string_at(int(k), sizes[0]) for k in k_ptrs[i]]
            if v_ptrs is not None:
                value += [ctypes.string_at(int(v), sizes[1]) for v in v_ptrs[i]]
            out.append(self._store(chain.key(first + i), value))
        return out

    def get_blocks(
        self,
        chain: Chain,
        first: int,
        n: int,
        layout: KvLayout,
        k_ptrs: Addresses,
        v_ptrs: Addresses | None = None,
        **opts: Any,
    ) -> list[Result]:
        self._open()
        self._planes(chain, first, n, layout, v_ptrs)
        out = []
        for i in range(n):
            value = self._load(chain.key(first + i))
            if value is None:
                out.append(Result("MISS", "never_seen"))
                continue
            places = list(k_ptrs[i]) + ([] if v_ptrs is None else list(v_ptrs[i]))
            for place, plane in zip(places, value):
                ctypes.memmove(int(place), plane, len(plane))
            out.append(Result("OK", nbytes=sum(map(len, value)), tier="host"))
        return out

    @staticmethod
    def _planes(
        chain: Chain, first: int, n: int, layout: KvLayout, v_ptrs: Addresses | None
    ) -> tuple[int, int]:
        if first < 0 or n < 1 or first + n > len(chain):
            raise ValueError(f"blocks {first} to {first + n - 1} of a chain of {len(chain)}")
        if (layout.packing == "split") != (v_ptrs is not None):
            raise ValueError("v_ptrs: for split layouts, and only those")
        if layout.packing == "split":
            return layout.k_plane_bytes, layout.v_plane_bytes
        return layout.k_plane_bytes + layout.v_plane_bytes, 0

    def key_chain(self, key: Key, scope: bytes | None = None, value_bytes: int = 0) -> Chain:
        chain = Chain(scope or _BYTE_SCOPE, name_space=self.name_space)
        chain.append(keys.byte_hash(key))
        return chain

    def put(
        self, key: Key, data: Memory, scope: bytes | None = None, **opts: Any
    ) -> Result:
        return self.batch_put([key], [data], scope)[0]

    def batch_put(
        self,
        keys: Sequence[Key],
        datas: Sequence[Memory],
        scope: bytes | None = None,
        **opts: Any,
    ) -> list[Result]:
        self._open()
        return [
            self._store(self.key_chain(k, scope).key(0), [bytes(d)]) for k, d in zip(keys, datas)
        ]

    def get(
        self, key: Key, scope: bytes | None = None, deadline_s: float | None = None
    ) -> bytes | None:
        self._open()
        value = self._load(self.key_chain(key, scope).key(0))
        return None if value is None else value[0]

    def get_into(
        self, key: Key, buffer: Memory, scope: bytes | None = None, **opts: Any
    ) -> int:
        result = self.batch_get_into([key], [buffer], scope)[0]
        if result.status == "NO_SPACE":
            raise ValueError("the buffer is smaller than the value")
        return result.bytes if result.ok else -1

    def batch_get_into(
        self,
        keys: Sequence[Key],
        buffers: Sequence[Memory],
        scope: bytes | None = None,
        **opts: Any,
    ) -> list[Result]:
        self._open()
        out = []
        for key, buffer in zip(keys, buffers):
            value = self._load(self.key_chain(key, scope).key(0))
            view = memoryview(buffer).cast("B")
            if value is None:
                out.append(Result("MISS", "never_seen"))
            elif len(view) < len(value[0]):
                out.append(Result("NO_SPACE", "unknown"))
            else:
                view[: len(value[0])] = value[0]
                out.append(Result("OK", nbytes=len(value[0]), tier="host"))
        return out

    def exists(
        self,
        key: Key,
        scope: bytes | None = None,
        deadline_s: float | None = None,
        value_bytes: int = 0,
    ) -> bool:
        return self.match_prefix(self.key_chain(key, scope)) == 1

    def batch_exists(
        self, keys: Sequence[Key], scope: bytes | None = None, deadline_s: float | None = None
    ) -> list[bool]:
        return [self.exists(key, scope) for key in keys]

    def stats(self) -> Stats:
        self._open()
        return {
            "blocks_asked": self._asked,
            "blocks_served": self._served,
            "misses": {"never_seen": self._asked - self._served},
            "puts": self._puts,
            "puts_stored": self._stored,
        }

    def _store(self, key: bytes, value: list[bytes]) -> Result:
        with self._lock:
            self._puts += 1
            self._stored += 1
            kept = self._values.setdefault(key, value)
        return Result("OK", nbytes=sum(map(len, kept)), tier="host")

    def _load(self, key: bytes) -> list[bytes] | None:
        with self._lock:
            self._asked += 1
            found = self._values.get(key)
            self._served += found is not None
            return found
