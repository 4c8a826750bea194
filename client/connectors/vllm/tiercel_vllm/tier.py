"""TiercelTier: Tiercel as a secondary tier of vLLM's own offloading, which copies between GPU and host by itself.

vLLM's primary tier is host memory of rows, one a chunk, with the bytes of every rank; a row is a value here. Nothing of
this sees the GPU. All methods run in vLLM's scheduler loop: none waits, and none raises because of the cache.

    "kv_connector": "OffloadingConnector", "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec", ...,
      "secondary_tiers": [{"type": "TiercelTier", "module_path": "tiercel_vllm.tier", "endpoint": "127.0.0.1:7400", "revision": "main"}]}
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tiercel
from typing_extensions import override
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from .link import Link

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec

log = logging.getLogger("vllm.tiercel")


class _Clients:
    """One moves rows and is polled by the scheduler; the other asks, on the thread of lookups."""

    def __init__(self, **options: Any) -> None:
        self.rows = tiercel.Client(**options)
        self.ask = tiercel.Client(**options)

    def close(self) -> None:
        self.rows.close()
        self.ask.close()


class _Lookups(AsyncLookupManager):
    def __init__(self, tier: TiercelTier) -> None:
        self._tier = tier
        super().__init__(tier.tier_type)

    @override
    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        return self._tier.there(keys)


@dataclass
class _Moving:
    job: TransferJob
    load: bool
    keys: list[OffloadKey]
    began: float


class TiercelTier(SecondaryTierManager):
    medium: ClassVar[Medium | None] = Medium.STORAGE

    def __init__(self, offloading_spec: OffloadingSpec, primary_kv_view: memoryview, tier_type: str, *, revision: str,
                 endpoint: str | Sequence[str] = "", namespace: str = "default", view_file: str = "", transports: Sequence[str] = (),
                 ucx_devices: str = "", tls_ca_file: str = "", tls_cert_file: str = "", tls_key_file: str = "", deadline_s: float = 2.0,
                 match_wait_s: float = 0.25, enable_kv_events: bool = False, locality: str | None = "REMOTE",
                 backpressure_detector: Any = None) -> None:
        """revision: which weights the model's name stands for. An option that is not here is vLLM's TypeError."""
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        if not revision:
            raise ValueError("revision: say which weights the model's name stands for")
        self.locality = Locality(locality) if locality else None
        self._rows = np.asarray(primary_kv_view).reshape(len(primary_kv_view), -1).view(np.uint8)
        self._row = int(self._rows.strides[0])
        self._deadline_s, self._match_wait_s = deadline_s, match_wait_s
        self._scope = _scope(offloading_spec.config, revision, self._row)
        events = enable_kv_events and offloading_spec.kv_events_config.enable_kv_cache_events
        self._events: list[OffloadingEvent] | None = [] if events else None
        self._moving: dict[int, _Moving] = {}
        self._results: list[JobResult] = []
        options = {"endpoint": list(endpoint) if not isinstance(endpoint, str) else endpoint or None, "view_file": view_file or None,
                   "name_space": namespace, "transports": list(transports) or None, "ucx_devices": ucx_devices, "tls_ca_file": tls_ca_file,
                   "tls_cert_file": tls_cert_file, "tls_key_file": tls_key_file, "client_name": "vllm tier"}
        self.link = Link(options, self._probe, "tier", factory=_Clients)
        self._lookups = _Lookups(self)

    # Lookups

    @override
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if not self.link.open:
            return LookupResult.MISS
        there = self._lookups.lookup(key, req_context)
        return LookupResult.RETRY if there is None else LookupResult.HIT if there else LookupResult.MISS

    def there(self, keys: Sequence[OffloadKey]) -> list[bool]:
        """On the thread of lookups."""
        if not self.link.open:
            return [False] * len(keys)
        client = self.link.client.ask
        tickets = [client.submit_match_prefix(client.key_chain(bytes(key), self._scope, self._row), self._match_wait_s, hold=True)
                   for key in keys]
        blocks = [client.wait(ticket).blocks[0] if ticket else None for ticket in tickets]
        if any(block is not None and block.status in ("TIMEOUT", "UNAVAILABLE") for block in blocks):
            self.link.trouble("a lookup was not answered")
        return [block is not None and block.status == "OK" for block in blocks]

    @override
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._lookups.flush()

    @override
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    @override
    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookups.cleanup(req_context.req_id)

    # Rows

    @override
    def submit_store(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, load=False)

    @override
    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, load=True)

    def _submit(self, job: TransferJob, load: bool) -> None:
        keys = list(job.keys)
        ticket = 0
        if self.link.open and keys:
            client = self.link.client.rows
            move = client.submit_batch_get_into_ptrs if load else client.submit_batch_put_ptrs
            places = self._rows.ctypes.data + np.asarray(job.chunk_ids, np.int64) * self._row
            try:
                ticket = move([bytes(key) for key in keys], np.ascontiguousarray(places), np.full(len(keys), self._row, np.int64), self._scope,
                              deadline_s=self._deadline_s)
            except (RuntimeError, ValueError) as error:
                log.warning("Tiercel: job %s: %s", job.job_id, error)
        moving = _Moving(job, load, keys, time.monotonic())
        if ticket:
            self._moving[ticket] = moving
        else:
            self._end(moving, [])

    def _end(self, moving: _Moving, good: list[OffloadKey]) -> None:
        whole = len(good) == len(moving.keys)
        if moving.load and not whole:
            self._lookups.mark_miss(set(moving.keys) - set(good))
        if not moving.load:
            self._tell(good, removed=False)
        self._results.append(JobResult(moving.job.job_id, whole, successful_keys=good if moving.load and not whole else None,
                                       transfer_time=time.monotonic() - moving.began, transfer_bytes=len(good) * self._row))

    def _tell(self, keys: list[OffloadKey], removed: bool) -> None:
        if keys and self._events is not None:
            self._events.append(OffloadingEvent(keys=keys, medium=Medium.STORAGE, removed=removed, locality=self.locality, ownership=self.tier_type))

    def _take(self, completion: Any) -> None:
        if not completion.released:
            return
        moving = self._moving.pop(completion.ticket, None)
        if moving is None:
            return
        good = [key for key, block in zip(moving.keys, completion.blocks)
                if block.status == "OK" and (not moving.load or block.bytes == self._row)]
        if any(block.status in ("TIMEOUT", "UNAVAILABLE") for block in completion.blocks):
            self.link.trouble("a job was not answered in time")
        if moving.load:
            self._tell([key for key, block in zip(moving.keys, completion.blocks) if block.status in ("MISS", "CORRUPT")], removed=True)
        self._end(moving, good)

    @override
    def get_finished_jobs(self) -> Iterable[JobResult]:
        if self._moving:
            for completion in self.link.client.rows.poll(1024):
                self._take(completion)
        results, self._results = self._results, []
        return results

    @override
    def has_pending_work(self) -> bool:
        return bool(self._moving or self._results)

    @override
    def drain_jobs(self) -> None:
        for ticket in list(self._moving):
            completion = self.link.client.rows.wait(ticket)
            while not completion.released:
                completion = self.link.client.rows.wait(ticket)
            self._take(completion)

    @override
    def take_events(self) -> Iterable[OffloadingEvent]:
        events = self._events or []
        if self._events is not None:
            self._events = []
        return events

    @override
    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """What is loaded is touched by its load."""

    @override
    def shutdown(self) -> None:
        self.drain_jobs()
        self._lookups.shutdown()
        self.link.close()

    def _probe(self, clients: _Clients) -> bool:
        chain = clients.ask.key_chain(b"tiercel_vllm probe", self._scope)
        return all(block.status not in ("TIMEOUT", "UNAVAILABLE") for block in clients.ask.lookup(chain, self._match_wait_s))


def _scope(config: Any, revision: str, row: int) -> bytes:
    """All that vLLM says a row depends on, but not which engine this is."""
    about = {
        "row": row, "dtype": config.model.dtype, "bytes": config.worker_kv_bytes_per_block, "layout": config.kv_cache_layout,
        "canonical": config.canonical_layout, "replicated": config.replicated_layout,
        "groups": [[group.group_id, group.tokens_per_block, list(group.layer_names)] for group in config.groups],
        "cache": dataclasses.asdict(config.cache),
        "parallel": {name: getattr(config.parallel, name) for name in ("world_size", "tp_size", "pp_size", "pcp_size", "dcp_size")},
    }
    return tiercel.make_scope(model=config.model.name, revision=revision, salt=json.dumps(about, sort_keys=True), rope="vllm offloading")
