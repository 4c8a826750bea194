"""AsyncClient: Client's names with await, on the running event loop's own thread."""

import asyncio

from .client import Client, _written
from .memory import Result


class AsyncClient:
    """Made inside a running loop, or on its first await; one loop for its life.

    `async with AsyncClient(...) as client:` connects off the loop's thread.
    """

    def __init__(self, *args, **kwargs):
        self._make = lambda: Client(*args, **kwargs)
        self._client = None
        self._loop = None
        self._fd = -1
        self._waiting = {}

    async def connect(self):
        if self._client is None:
            self._loop = asyncio.get_running_loop()
            self._client = await self._loop.run_in_executor(None, self._make)
            self._fd = self._client.event_fd()
            self._loop.add_reader(self._fd, self._ready)
        return self

    async def close(self):
        client, self._client = self._client, None
        if client is None:
            return
        self._loop.remove_reader(self._fd)
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.cancel()
        await self._loop.run_in_executor(None, client.close)

    async def __aenter__(self):
        return await self.connect()

    async def __aexit__(self, *exc):
        await self.close()

    def _ready(self):
        if self._client is None:
            return
        for done in self._client.poll(256):
            future = self._waiting.get(done.ticket)
            if future is None:
                continue
            if done.released:  # Only then is the caller's memory the caller's.
                del self._waiting[done.ticket]
                first = getattr(future, "first", None)
                if not future.done():
                    future.set_result(first or done)
            else:
                future.first = done

    async def _submitted(self, ticket, n):
        """Completion of a ticket, or BUSY results where the queue was full."""
        if ticket == 0:
            return _Refused(n)
        future = _Future(loop=self._loop)
        self._waiting[ticket] = future
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if self._client is not None and ticket in self._waiting:
                self._client.cancel(ticket)
            raise

    def _core(self):
        if self._client is None:
            from ._core import ClosedError

            raise ClosedError("the client is closed or not connected")
        return self._client

    async def match_prefix(self, chain, deadline_s=None, hold=False):
        client = self._core()
        if hold:
            raise NotImplementedError("hold: the client library does not hold matches")
        if len(chain) == 0:
            return 0
        ticket = client.submit_match_prefix(chain, deadline_s)
        return (await self._submitted(ticket, len(chain))).prefix

    async def lookup(self, chain, deadline_s=None):
        client = self._core()
        if len(chain) == 0:
            return []
        return (await self._submitted(client.submit_lookup(chain, deadline_s), len(chain))).blocks

    async def get_blocks(self, chain, first, n, layout, k_ptrs, v_ptrs=None, **opts):
        ticket = self._core().submit_get_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts)
        return (await self._submitted(ticket, n)).blocks

    async def put_blocks(self, chain, first, n, layout, k_ptrs, v_ptrs=None, **opts):
        ticket = self._core().submit_put_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts)
        return (await self._submitted(ticket, n)).blocks

    async def get_pages(self, chain, first, layout, paged, page_table, **opts):
        ticket = self._core().submit_get_pages(chain, first, layout, paged, page_table, **opts)
        return (await self._submitted(ticket, len(page_table))).blocks

    async def put_pages(self, chain, first, layout, paged, page_table, **opts):
        ticket = self._core().submit_put_pages(chain, first, layout, paged, page_table, **opts)
        return (await self._submitted(ticket, len(page_table))).blocks

    async def batch_put(self, keys, datas, scope=None, **opts):
        ticket = self._core().submit_batch_put(keys, datas, scope, **opts)
        return (await self._submitted(ticket, len(keys))).blocks

    async def batch_get_into(self, keys, buffers, scope=None, **opts):
        ticket = self._core().submit_batch_get_into(keys, buffers, scope, **opts)
        return (await self._submitted(ticket, len(keys))).blocks

    async def put(self, key, data, scope=None, **opts):
        return (await self.batch_put([key], [data], scope, **opts))[0]

    async def get_into(self, key, buffer, scope=None, **opts):
        return _written((await self.batch_get_into([key], [buffer], scope, **opts))[0])

    async def get(self, key, scope=None, deadline_s=None):
        found = (await self.lookup(self._core().key_chain(key, scope), deadline_s))[0]
        if not found.ok:
            return None
        room = bytearray(found.record_bytes)  # A record is never smaller than opaque bytes in it.
        result = (await self.batch_get_into([key], [room], scope, deadline_s=deadline_s))[0]
        return bytes(memoryview(room)[: result.bytes]) if result.ok else None

    async def exists(self, key, scope=None, deadline_s=None):
        return await self.match_prefix(self._core().key_chain(key, scope), deadline_s) == 1

    def stats(self):
        return self._core().stats()

    def nodes(self):
        return self._core().nodes()

    def view(self):
        return self._core().view()

    def set_view(self, json):
        self._core().set_view(json)


class _Future(asyncio.Future):
    """With room for a first completion that was not the last."""

    first = None


class _Refused:
    prefix = 0

    def __init__(self, n):
        self.blocks = [Result("BUSY", "busy") for _ in range(n)]
