"""StoreClient: the calls that LMCache's NativeConnectorL2Adapter makes of a store, over tiercel.Client.

A batch is one or more tickets; when the last has ended, the batch is a completion. The descriptor is readable while
there is one. Any number of threads may submit; one drains.

A value is an LMCache object, opaque bytes. What its key does not say and its bytes depend on (shapes, dtypes) is
part of the scope that each key is given, so an object of another shape is a miss.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tiercel

log = logging.getLogger("lmcache.tiercel")

PIECE_BYTES = 16 << 20
Done = tuple[int, bool, str, "list[bool] | None"]


@dataclass(frozen=True)
class Name:
    """Of one object: its key, the scope of its shape, its bytes."""

    key: str
    scope: bytes
    size: int


@dataclass
class _Batch:
    id: int
    good: list[bool]
    asking: bool = False  # Then an answer is good, whatever it is.
    left: set[int] = field(default_factory=set)
    why: str = ""


class StoreClient:
    def __init__(self, options: dict[str, Any], deadline_s: float) -> None:
        """Errors: tiercel.ConnectError, ValueError."""
        self._deadline_s = deadline_s
        self._client = tiercel.Client(deadline_s=deadline_s, **options)
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # One descriptor for what the client has finished and for what never reached it.
        self._both = select.epoll()
        self._both.register(self._ready, select.EPOLLIN)
        self._both.register(self._client.event_fd(), select.EPOLLIN)
        self._lock = threading.Lock()
        self._next = 1
        self._tickets: dict[int, tuple[_Batch, list[int], list[int]]] = {}  # Ticket to batch, places, least bytes.
        self._ended: list[_Batch] = []

    def event_fd(self) -> int:
        return self._both.fileno()

    def submit_batch_set(self, names: Sequence[Name], values: Sequence[Any]) -> int:
        return self._submit(names, lambda group: self._client.submit_batch_put(
            [names[i].key for i in group], [values[i] for i in group], names[group[0]].scope), exact=False)

    def submit_batch_get(self, names: Sequence[Name], buffers: Sequence[Any]) -> int:
        return self._submit(names, lambda group: self._client.submit_batch_get_into(
            [names[i].key for i in group], [buffers[i] for i in group], names[group[0]].scope), exact=True)

    def submit_batch_exists(self, names: Sequence[Name]) -> int:
        batch = self._batch(len(names), asking=True)
        with self._lock:
            for i, name in enumerate(names):
                self._add(batch, [i], [0], lambda name=name: self._client.submit_match_prefix(
                    self._client.key_chain(name.key, name.scope, name.size), hold=True))
            self._end_if_done(batch)
        return batch.id

    def drain_completions(self) -> list[Done]:
        try:
            os.eventfd_read(self._ready)
        except BlockingIOError:
            pass
        with self._lock:
            for completion in self._client.poll(1024):
                if not completion.released:
                    continue  # The buffers are not LMCache's yet; a second completion says when.
                found = self._tickets.pop(completion.ticket, None)
                if found is None:
                    continue
                batch, places, sizes = found
                for place, size, block in zip(places, sizes, completion.blocks):
                    # A value that is shorter than its place is not the one that was asked for.
                    batch.good[place] = block.status == "OK" and (size == 0 or block.bytes == size)
                    if not batch.good[place] and not batch.why:
                        batch.why = f"{block.status} {block.reason}"
                batch.left.discard(completion.ticket)
                self._end_if_done(batch, tell=False)
            ended, self._ended = self._ended, []
        return [(batch.id, batch.asking or all(batch.good), batch.why, batch.good) for batch in ended]

    def close(self) -> None:
        self._client.close()
        self._both.close()
        os.close(self._ready)

    def stats(self) -> dict[str, Any]:
        return dict(self._client.stats())

    def nodes(self) -> list[Any]:
        return list(self._client.nodes())

    def _batch(self, count: int, asking: bool = False) -> _Batch:
        with self._lock:
            self._next += 1
            return _Batch(self._next, [False] * count, asking)

    def _submit(self, names: Sequence[Name], submit: Callable[[list[int]], int], exact: bool) -> int:
        batch = self._batch(len(names))
        groups: dict[tuple[bytes, int], list[int]] = {}
        for i, name in enumerate(names):  # Of one ticket: one scope, one number of pieces.
            groups.setdefault((name.scope, -(-name.size // PIECE_BYTES)), []).append(i)
        with self._lock:
            for group in groups.values():
                sizes = [names[i].size if exact else 0 for i in group]
                self._add(batch, group, sizes, lambda group=group: submit(group))
            self._end_if_done(batch)
        return batch.id

    def _add(self, batch: _Batch, places: list[int], sizes: list[int], submit: Callable[[], int]) -> None:
        try:
            ticket = submit()
        except Exception as error:  # Nothing of the cache may reach LMCache's threads.
            log.debug("Tiercel: %s", error)
            ticket, batch.why = 0, str(error)
        if ticket:
            batch.left.add(ticket)
            self._tickets[ticket] = (batch, places, sizes)
        else:
            batch.why = batch.why or "BUSY"

    def _end_if_done(self, batch: _Batch, tell: bool = True) -> None:
        if not batch.left:
            self._ended.append(batch)
            if tell:
                os.eventfd_write(self._ready, 1)
