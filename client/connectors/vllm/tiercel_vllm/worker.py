"""A worker's side: moves blocks between vLLM's pages and the cache.

Loads and saves are tickets of the client: they run on its thread while the model computes. A loaded request waits
between steps, in vLLM's own queue; a page that is being stored stays its request's until the ticket ended. Every
ticket has a deadline, so every wait has an end.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tiercel
from tiercel import codec

from .layout import Pages, Scratch, Shape
from .link import Link
from .messages import Load, Loaded, Save, StepMeta, WorkerMeta
from .stats import TiercelStats

if TYPE_CHECKING:
    import torch

    from .settings import Settings

log = logging.getLogger("vllm.tiercel")

_IDLE_WAIT_S = 0.002  # Of a step in which nothing is computed: the processor is the client's meanwhile.


@dataclass
class _Loading:
    load: Load
    began: float
    parts: dict[int, tuple[int, int]]  # Ticket to (first, blocks), relative to the load.
    statuses: list[str]
    scratch: Scratch | None = None


@dataclass
class _Saving:
    save: Save
    began: float
    blocks: int


class WorkerSide:
    def __init__(self, settings: Settings, shape: Shape, num_blocks: int, link: Link | None = None) -> None:
        self._settings = settings
        self._shape = shape
        self._num_blocks = num_blocks
        self._link = link
        self._pages: Pages | None = None
        self._layout = shape.layout
        self._saves = True
        self._chains: dict[str, tiercel.Chain] = {}
        self._loads: dict[int, _Loading] = {}  # By ticket; one with two tickets is here twice.
        self._puts: dict[int, _Saving] = {}
        self._putting: dict[str, set[int]] = {}
        self._delayed: set[str] = set()
        self._loaded: set[str] = set()
        self._bad: set[int] = set()
        self._meta = WorkerMeta()
        self.stats = TiercelStats()

    def register(self, tensors: Mapping[str, torch.Tensor], rank: int | None = None) -> None:
        self._pages = Pages(self._shape, tensors, self._num_blocks)
        if rank is None:
            from vllm.distributed import get_tensor_model_parallel_rank

            rank = int(get_tensor_model_parallel_rank())
        self._layout = self._shape.layout_of(rank // self._shape.replicas)
        self._saves = rank % self._shape.replicas == 0
        options = self._settings.client_options()
        if self._settings.artifact:
            options["artifact"] = codec.load_artifact(Path(self._settings.artifact).read_bytes())
        if self._link is None:
            self._link = Link(options, self._probe, f"worker {rank}")

    @property
    def link(self) -> Link:
        assert self._link is not None
        return self._link

    # Loads

    def load(self, meta: StepMeta) -> None:
        for request, extend in meta.extends.items():
            chain = self._chains.get(request)
            if chain is None:
                chain = self._chains[request] = tiercel.Chain(
                    extend.scope, name_space=self._settings.namespace, part=self._layout.rank, layout=self._layout)
            assert len(chain) == extend.first
            chain.extend(extend.hashes)
        for load in meta.loads:
            self._begin(load)

    def _begin(self, load: Load) -> None:
        assert self._pages is not None
        loading = _Loading(load, time.monotonic(), {}, ["UNAVAILABLE"] * len(load.pages))
        client = self.link.client
        if client is None or not load.exact_pages:
            self._end(loading)
            return
        first = 0
        try:
            if load.skip:
                # A page before it is in use by others: the block goes beside the cache, and its new pages from there.
                loading.scratch = self._pages.scratch()
                self._submit(client, loading, 0, loading.scratch.paged, loading.scratch.table)
                first = 1
            if first < len(load.pages):
                self._submit(client, loading, first, self._pages.paged, self._pages.table(np.array(load.pages[first:], np.int64)))
        except (RuntimeError, ValueError) as error:
            log.warning("Tiercel: load of request %s: %s", load.request, error)
        if not loading.parts:
            self._end(loading)

    def _submit(self, client: Any, loading: _Loading, first: int, paged: Any, table: np.ndarray) -> None:
        load = loading.load
        ticket = client.submit_get_pages(self._chains[load.request], load.first + first, self._layout, paged, table,
                                         deadline_s=load.deadline_s, min_class=self._settings.quality)
        if not ticket:
            loading.statuses[first:first + len(table)] = ["BUSY"] * len(table)
            return
        loading.parts[ticket] = (first, len(table))
        self._loads[ticket] = loading

    def _loaded_part(self, loading: _Loading, completion: Any) -> None:
        first, blocks = loading.parts.pop(completion.ticket)
        loading.statuses[first:first + blocks] = [block.status for block in completion.blocks]
        for block in completion.blocks:
            if block.status == "OK":
                self.stats.add("bytes_loaded", block.bytes)
            else:
                self.stats.add(f"missed_{block.reason}")
        if not loading.parts:
            self._end(loading)

    def _end(self, loading: _Loading) -> None:
        load = loading.load
        served = next((i for i, status in enumerate(loading.statuses) if status != "OK"), len(loading.statuses))
        if served and loading.scratch is not None:
            for index in range(load.skip, self._shape.pages_per_block):
                loading.scratch.copy_into(load.pages[0][index], index)
        seconds = time.monotonic() - loading.began
        reason = "" if served == len(load.pages) else loading.statuses[served]
        for i in range(served, len(load.pages)):
            self._bad.update(load.pages[i][load.skip if i == 0 else 0:])
        if reason:
            self.stats.add("loads_failed")
        self.stats.add("blocks_loaded", served)
        self.stats.add("load_seconds", seconds)
        self._loaded.add(load.request)
        self._meta.loaded.append(Loaded(load.request, load.first, len(load.pages), served, seconds, reason))
        if reason in ("TIMEOUT", "UNAVAILABLE"):
            self._trouble(f"a load ended with {reason} after {seconds:.2f} s")

    # Saves

    def save(self, meta: StepMeta) -> None:
        for save in meta.saves:
            if not self._saves:
                continue
            ticket = self._put(save)
            if not ticket:
                self.stats.add("saves_skipped", len(save.pages))
                self._saved(save, [False] * len(save.pages))
                continue
            self._puts[ticket] = _Saving(save, time.monotonic(), len(save.pages))
            self._putting.setdefault(save.request, set()).add(ticket)

    def _put(self, save: Save) -> int:
        assert self._pages is not None
        client = self.link.client
        under_way = sum(saving.blocks for saving in self._puts.values()) + len(save.pages)
        if client is None or not self.link.open or under_way * self._layout.block_bytes > self._settings.max_put_bytes:
            return 0
        try:
            return int(client.submit_put_pages(
                self._chains[save.request], save.first, self._layout, self._pages.paged,
                self._pages.table(np.array(save.pages, np.int64)), deadline_s=self._settings.put_deadline_s,
                put_class=self._settings.quality, reuse=save.reuse))
        except (RuntimeError, ValueError) as error:
            log.warning("Tiercel: save of request %s: %s", save.request, error)
            return 0

    def _saved_part(self, saving: _Saving, completion: Any) -> None:
        request = saving.save.request
        self._putting.get(request, set()).discard(completion.ticket)
        if not self._putting.get(request):
            self._putting.pop(request, None)
        self._saved(saving.save, [block.status in ("OK", "EXISTS") for block in completion.blocks])
        self.stats.add("save_seconds", time.monotonic() - saving.began)
        troubles = set()
        for block in completion.blocks:
            if block.status in ("OK", "EXISTS"):
                self.stats.add("blocks_saved")
                self.stats.add("bytes_saved", block.record_bytes)
            else:
                self.stats.add("saves_failed")
                troubles.add(block.status)
        if troubles & {"TIMEOUT", "UNAVAILABLE"}:
            self._trouble(f"a save ended with {', '.join(sorted(troubles))}")

    def _saved(self, save: Save, there: list[bool]) -> None:
        # What a replica does not store counts with the rank that does, so the scheduler counts ranks, not workers.
        self._meta.saved[save.request] = self._meta.saved.get(save.request, 0) + len(save.pages)
        self._meta.stored += [(save.request, save.first + i, good) for i, good in enumerate(there)]

    def settle(self, requests: list[str]) -> None:
        """Waits until no page of theirs is being stored: they are about to be another request's."""
        for request in requests:
            for ticket in list(self._putting.get(request, ())):
                completion = self.link.client.wait(ticket)
                while not completion.released:
                    completion = self.link.client.wait(ticket)
                self._take(completion)

    # Each step

    def finished(self, meta: StepMeta) -> tuple[set[str], set[str]]:
        """Requests whose saves have ended and whose pages may go; requests whose loads have ended."""
        self._delayed.update(meta.delayed)
        for request in meta.ended:
            self._chains.pop(request, None)
        self._poll(meta.idle)
        saved = {request for request in self._delayed if request not in self._putting}
        self._delayed -= saved
        for request in saved:
            self._chains.pop(request, None)
        loaded, self._loaded = self._loaded, set()
        return saved, loaded

    def _poll(self, idle: bool) -> None:
        client = self._link.client if self._link else None
        if client is None:
            return
        if idle:
            # Where requests wait for answers and nothing can be computed, vLLM would ask without a pause.
            waited = select.poll()
            if self._loads or self._putting:
                waited.register(client.event_fd(), select.POLLIN)
            waited.poll(_IDLE_WAIT_S * 1e3 if self._loads or self._putting else _IDLE_WAIT_S * 1e3 / 4)
        while self._loads or self._puts:
            completions = client.poll()
            for completion in completions:
                self._take(completion)
            if not completions:
                break

    def _take(self, completion: Any) -> None:
        if not completion.released:
            return  # The memory is not ours yet: a second completion says when.
        loading = self._loads.pop(completion.ticket, None)
        if loading is not None:
            self._loaded_part(loading, completion)
        saving = self._puts.pop(completion.ticket, None)
        if saving is not None:
            self._saved_part(saving, completion)

    def take_bad_pages(self) -> set[int]:
        bad, self._bad = self._bad, set()
        return bad

    def take_meta(self) -> WorkerMeta:
        meta, self._meta = self._meta, WorkerMeta()
        return meta

    def _trouble(self, what: str) -> None:
        self._meta.trouble = what
        self.link.trouble(what)

    def _probe(self, client: tiercel.Client) -> bool:
        unnamed = tiercel.Chain(self._shape.scope(), name_space=self._settings.namespace, part=self._layout.rank, layout=self._layout)
        unnamed.append(bytes(32))
        results = client.lookup(unnamed, self._settings.match_wait_s)
        return all(block.status not in ("TIMEOUT", "UNAVAILABLE") for block in results)

    def close(self) -> None:
        if self._link is None:
            return
        # Blocks under way get their time: another engine may be waiting for them.
        until = time.monotonic() + self._settings.put_deadline_s
        while self._puts and time.monotonic() < until and self.link.client is not None:
            self._poll(True)
        self.link.close()
