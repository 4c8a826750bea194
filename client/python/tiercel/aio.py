"""AsyncClient: Client's names with await, on the running event loop's own thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from ._core import BlockResult, Chain, ClosedError, Completion, KvLayout, PagedKv
from .client import Client, _written
from .memory import Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from ._types import (
        Addresses,
        BlockOptions,
        BytesOptions,
        Key,
        Memory,
        NodeInfo,
        PageTable,
        Stats,
    )


class AsyncClient:
    """Client's arguments; one event loop for its life.

    `async with AsyncClient(...) as client:` connects off the loop's thread, as `connect()` does.
    Data calls submit, and complete through the loop's reader of event_fd(): no other thread runs
    Python. Memory behind addresses is the caller's again when the await has ended; where the await
    was cancelled, when close() has.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._make = lambda: Client(*args, **kwargs)
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1
        self._waiting: dict[int, _Future] = {}

    async def connect(self) -> Self:
        if self._client is None:
            self._loop = asyncio.get_running_loop()
            self._client = await self._loop.run_in_executor(None, self._make)
            self._fd = self._client.event_fd()
            self._loop.add_reader(self._fd, self._ready)
        return self

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is None or self._loop is None:
            return
        self._loop.remove_reader(self._fd)
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.cancel()
        await self._loop.run_in_executor(None, client.close)

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # KV blocks

    async def match_prefix(
        self, chain: Chain, deadline_s: float | None = None, hold: bool = False, min_class: str = "exact"
    ) -> int:
        client = self._open()
        if len(chain) == 0:
            return 0
        ticket = client.submit_match_prefix(chain, deadline_s, hold, min_class)
        return (await self._submitted(ticket, len(chain))).prefix

    async def pin_prefix(
        self, chain: Chain, seconds: float, deadline_s: float | None = None, min_class: str = "exact"
    ) -> int:
        client = self._open()
        if len(chain) == 0:
            return 0
        ticket = client.submit_pin_prefix(chain, seconds, deadline_s, min_class)
        return (await self._submitted(ticket, len(chain))).prefix

    async def unpin_prefix(self, chain: Chain, deadline_s: float | None = None, min_class: str = "exact") -> int:
        return await self.pin_prefix(chain, 0.0, deadline_s, min_class)

    async def lookup(
        self, chain: Chain, deadline_s: float | None = None, min_class: str = "exact"
    ) -> list[BlockResult]:
        client = self._open()
        if len(chain) == 0:
            return []
        return (await self._submitted(client.submit_match_prefix(chain, deadline_s, min_class=min_class), len(chain))).blocks

    async def get_blocks(
        self,
        chain: Chain,
        first: int,
        n: int,
        layout: KvLayout,
        k_ptrs: Addresses,
        v_ptrs: Addresses | None = None,
        **options: Unpack[BlockOptions],
    ) -> list[BlockResult]:
        client = self._open()
        ticket = client.submit_get_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **options)
        return (await self._submitted(ticket, n)).blocks

    async def put_blocks(
        self,
        chain: Chain,
        first: int,
        n: int,
        layout: KvLayout,
        k_ptrs: Addresses,
        v_ptrs: Addresses | None = None,
        **options: Unpack[BlockOptions],
    ) -> list[BlockResult]:
        client = self._open()
        ticket = client.submit_put_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **options)
        return (await self._submitted(ticket, n)).blocks

    async def get_pages(
        self,
        chain: Chain,
        first: int,
        layout: KvLayout,
        paged: PagedKv,
        page_table: PageTable,
        **options: Unpack[BlockOptions],
    ) -> list[BlockResult]:
        ticket = self._open().submit_get_pages(chain, first, layout, paged, page_table, **options)
        return (await self._submitted(ticket, len(page_table))).blocks

    async def put_pages(
        self,
        chain: Chain,
        first: int,
        layout: KvLayout,
        paged: PagedKv,
        page_table: PageTable,
        **options: Unpack[BlockOptions],
    ) -> list[BlockResult]:
        ticket = self._open().submit_put_pages(chain, first, layout, paged, page_table, **options)
        return (await self._submitted(ticket, len(page_table))).blocks

    # Bytes by key

    async def put(
        self, key: Key, data: Memory, scope: bytes | None = None, **options: Unpack[BytesOptions]
    ) -> BlockResult:
        return (await self.batch_put([key], [data], scope, **options))[0]

    async def get(
        self, key: Key, scope: bytes | None = None, deadline_s: float | None = None
    ) -> bytes | None:
        found = (await self.lookup(self._open().key_chain(key, scope), deadline_s))[0]
        if not found.ok:
            return None
        room = bytearray(min(found.record_bytes, 1 << 24))  # A record is never smaller than opaque bytes in it.
        result = (await self.batch_get_into([key], [room], scope, deadline_s=deadline_s))[0]
        return bytes(memoryview(room)[: result.bytes]) if result.ok else None

    async def get_into(
        self, key: Key, buffer: Memory, scope: bytes | None = None, **options: Unpack[BytesOptions]
    ) -> int:
        return _written((await self.batch_get_into([key], [buffer], scope, **options))[0])

    async def exists(
        self,
        key: Key,
        scope: bytes | None = None,
        deadline_s: float | None = None,
        value_bytes: int = 0,
    ) -> bool:
        chain = self._open().key_chain(key, scope, value_bytes)
        return await self.match_prefix(chain, deadline_s) == 1

    async def batch_exists(
        self, keys: Sequence[Key], scope: bytes | None = None, deadline_s: float | None = None
    ) -> list[bool]:
        """One bool a key; False also where the node could not be asked."""
        return list(await asyncio.gather(*(self.exists(key, scope, deadline_s) for key in keys)))

    async def batch_put(
        self,
        keys: Sequence[Key],
        datas: Sequence[Memory],
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> list[BlockResult]:
        ticket = self._open().submit_batch_put(keys, datas, scope, **options)
        return (await self._submitted(ticket, len(keys))).blocks

    async def batch_get_into(
        self,
        keys: Sequence[Key],
        buffers: Sequence[Memory],
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> list[BlockResult]:
        ticket = self._open().submit_batch_get_into(keys, buffers, scope, **options)
        return (await self._submitted(ticket, len(keys))).blocks

    async def batch_put_ptrs(
        self,
        keys: Sequence[Key],
        ptrs: Addresses,
        sizes: Addresses,
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> list[BlockResult]:
        ticket = self._open().submit_batch_put_ptrs(keys, ptrs, sizes, scope, **options)
        return (await self._submitted(ticket, len(keys))).blocks

    async def batch_get_into_ptrs(
        self,
        keys: Sequence[Key],
        ptrs: Addresses,
        sizes: Addresses,
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> list[BlockResult]:
        ticket = self._open().submit_batch_get_into_ptrs(keys, ptrs, sizes, scope, **options)
        return (await self._submitted(ticket, len(keys))).blocks

    # Around; these do not wait.

    def register_memory(self, address: int, nbytes: int) -> None:
        self._open().register_memory(address, nbytes)

    def unregister_memory(self, address: int, nbytes: int) -> None:
        self._open().unregister_memory(address, nbytes)

    def stats(self) -> Stats:
        return self._open().stats()

    def nodes(self) -> list[NodeInfo]:
        return self._open().nodes()

    def view(self) -> str:
        return self._open().view()

    def set_view(self, json: str) -> None:
        self._open().set_view(json)

    def _open(self) -> Client:
        if self._client is None:
            raise ClosedError("the client is closed or not connected")
        return self._client

    def _ready(self) -> None:
        if self._client is None:
            return
        for done in self._client.poll(256):
            future = self._waiting.get(done.ticket)
            if future is None:
                continue
            if done.released:  # Only then is the caller's memory the caller's.
                del self._waiting[done.ticket]
                if not future.done():
                    future.set_result(future.first or done)
            else:
                future.first = done

    async def _submitted(self, ticket: int, n: int) -> Completion:
        """Completion of a ticket, or BUSY results where the queue was full."""
        if ticket == 0:
            return cast(Completion, _Refused(n))
        future = _Future(loop=self._loop)
        self._waiting[ticket] = future
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if self._client is not None and ticket in self._waiting:
                self._client.cancel(ticket)
            raise


class _Future(asyncio.Future[Completion]):
    """With room for a first completion that was not the last."""

    first: Completion | None = None


class _Refused:
    """A Completion of what was not submitted."""

    ticket = 0
    prefix = 0
    released = True

    def __init__(self, n: int) -> None:
        self.blocks = [Result("BUSY", "busy") for _ in range(n)]
