"""A stream of events of our own, for routers that do not read vLLM's, or read it in another format:

    map      vLLM's and SGLang's of today: maps with a "type"
    array    theirs until the summer of 2026: arrays, the type first; llm-d, AIBrix
    store    that of a store (Mooncake's RFC 1527): maps with an "event_type" and who says it, and vLLM's names beside

The frames are vLLM's (topic, sequence number, batch), with its publisher: a PUB socket, and a ROUTER that sends again
what a listener missed. Hashes are integers, the low 64 bits: every router reads those.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import zmq
from vllm.distributed.kv_events import MEDIUM_STORAGE, AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, ZmqEventPublisher

from .ledger import Gone, Here

if TYPE_CHECKING:
    from .settings import Settings

_BUFFERED = 10_000  # Batches that can be sent again.


class _Array(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    pass


class _StoredArray(_Array, tag="BlockStored"):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str
    lora_name: str | None = None


class _RemovedArray(_Array, tag="BlockRemoved"):
    block_hashes: list[int]
    medium: str


class _ClearedArray(_Array, tag="AllBlocksCleared"):
    pass


def _low(key: bytes) -> int:
    return int.from_bytes(key[-8:], "big")


def _as_map(event: Here | Gone | None) -> Any:
    if event is None:
        return AllBlocksCleared()
    hashes = [_low(key) for key in event.hashes]
    if isinstance(event, Gone):
        return BlockRemoved(block_hashes=hashes, medium=MEDIUM_STORAGE)
    return BlockStored(block_hashes=hashes, parent_block_hash=_low(event.parent) if event.parent else None, token_ids=event.tokens.tolist(),
                       block_size=event.page_tokens, lora_id=event.lora_id, medium=MEDIUM_STORAGE, lora_name=event.lora_name)


def _as_array(event: Here | Gone | None) -> Any:
    if event is None:
        return _ClearedArray()
    hashes = [_low(key) for key in event.hashes]
    if isinstance(event, Gone):
        return _RemovedArray(hashes, MEDIUM_STORAGE)
    return _StoredArray(hashes, _low(event.parent) if event.parent else None, event.tokens.tolist(), event.page_tokens, event.lora_id,
                        MEDIUM_STORAGE, event.lora_name)


class Publisher:
    """Errors of the constructor: ValueError, where the address cannot be had."""

    def __init__(self, settings: Settings, model: str, dp_rank: int, page_tokens: int) -> None:
        self._dp_rank = dp_rank
        self._about = {"model_name": model, "additional_salt": None, "tenant_id": settings.namespace, "backend_id": "tiercel",
                       "medium": MEDIUM_STORAGE, "dp_rank": dp_rank, "block_size": page_tokens}
        self._next_id = 0
        self._form = {"map": _as_map, "array": _as_array, "store": self._as_store}[settings.events_format]
        try:
            self._zmq = ZmqEventPublisher(dp_rank, settings.events_endpoint, settings.events_replay_endpoint or None,
                                          buffer_steps=_BUFFERED, topic=settings.events_topic)
        except zmq.ZMQError as error:
            raise ValueError(f"kv_connector_extra_config.events_endpoint: {settings.events_endpoint} {settings.events_replay_endpoint}: {error}") from None

    def publish(self, events: Sequence[Here | Gone], all_gone: bool) -> None:
        """all_gone: after these, nothing that was announced is left."""
        told: list[Here | Gone | None] = [None] if all_gone else list(events)
        self._zmq.publish(EventBatch(ts=time.time(), events=[self._form(event) for event in told], data_parallel_rank=self._dp_rank))

    def close(self) -> None:
        self._zmq.shutdown()

    def _as_store(self, event: Here | Gone | None) -> dict[str, Any]:
        self._next_id += 1
        out = {"event_id": self._next_id, "timestamp": int(time.time() * 1000), **self._about, "lora_name": None}
        if event is None:
            return {**out, "event_type": "cleared", "type": "AllBlocksCleared"}
        hashes = [_low(key) for key in event.hashes]
        if isinstance(event, Gone):
            return {**out, "event_type": "removed", "seq_hashes": hashes, "base_block_idx": event.first_page,
                    "type": "BlockRemoved", "block_hashes": hashes}
        parent, tokens = _low(event.parent) if event.parent else None, event.tokens.tolist()
        return {**out, "event_type": "stored", "lora_name": event.lora_name, "seq_hashes": hashes, "base_block_idx": event.block * len(hashes),
                "parent_hash": parent, "token_ids": tokens, "type": "BlockStored", "block_hashes": hashes,
                "parent_block_hash": parent}
