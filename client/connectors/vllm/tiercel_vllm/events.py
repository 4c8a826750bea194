"""What this engine can load, told to routers that know prefixes: stored, and gone again.

Two streams: vLLM's own (`--kv-events-config`), among its other events, and one of our own (`events_endpoint`), in the
format that the router reads. The scheduler says what it gave to the cache and what it found there; Ledger says what
of it is still there. A block is announced page by page, as vLLM hashes it, when every rank's part of it is stored.

Threads: the scheduler's calls only put notes into a queue; Ledger's thread announces.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.distributed.kv_events import MEDIUM_STORAGE, BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from .ledger import Ends, Gone, Hashes, Here, Ledger
from .publish import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.request import Request

    from .layout import Shape
    from .link import Link
    from .settings import Settings

MAX_WAITING = 65536  # Blocks that are being stored, and events that nobody took.
_FIELDS = {kind: frozenset(kind.__struct_fields__) for kind in (BlockStored, BlockRemoved)}


@dataclass
class Audience:
    """Who listens, and what they call this engine."""

    vllm: bool = False  # vLLM's own stream is on.
    model: str = ""
    dp_rank: int = 0


def _of_vllm(kind: type, **about: Any) -> Any:
    """Of the fields that this version of vLLM has."""
    common = {"medium": MEDIUM_STORAGE, "group_idx": 0, "locality": "REMOTE", "ownership": "tiercel"}
    return kind(**{name: value for name, value in {**about, **common}.items() if name in _FIELDS[kind]})


def vllm_event(event: Here | Gone) -> KVCacheEvent:
    hashes = [maybe_convert_block_hash(key) for key in event.hashes]
    if isinstance(event, Gone):
        return _of_vllm(BlockRemoved, block_hashes=hashes)
    return _of_vllm(BlockStored, block_hashes=hashes, parent_block_hash=maybe_convert_block_hash(event.parent) if event.parent else None,
                    token_ids=event.tokens.tolist(), block_size=event.page_tokens, lora_id=event.lora_id, lora_name=event.lora_name)


class Announcer:
    """Errors of the constructor: ValueError, where the address of our own stream cannot be had."""

    def __init__(self, settings: Settings, shape: Shape, audience: Audience) -> None:
        self._settings = settings
        self._shape = shape
        self._audience = audience
        self._waiting: dict[tuple[str, int], list[Any]] = {}  # What will be announced, and ranks that have not stored yet.
        self._events: deque[KVCacheEvent] = deque(maxlen=MAX_WAITING)
        self._publisher = Publisher(settings, audience.model, audience.dp_rank, shape.page_tokens) if settings.events_endpoint else None
        self._ledger: Ledger | None = None

    def begin(self, link: Link) -> None:
        if self._audience.vllm or self._publisher:
            self._ledger = Ledger(self._settings, self._shape, link, self._tell)

    def given(self, request: Request, scope: bytes, first: int, hashes: list[bytes], blocks: list[int]) -> None:
        """These blocks to the cache, but not stored yet; hashes: of all from `first` on, where the last call ended."""
        if self._ledger is None or len(self._waiting) >= MAX_WAITING:
            return
        self._ledger.note(Hashes(request.request_id, scope, first, hashes))
        for block in blocks:
            self._waiting[request.request_id, block] = [self._about(request, block), self._shape.world]

    def found(self, request: Request, scope: bytes, hashes: list[bytes]) -> None:
        """In the cache, by all ranks: the leading blocks."""
        if self._ledger is None or not hashes:
            return
        self._ledger.note(Hashes(request.request_id, scope, 0, hashes))
        for block, key in enumerate(hashes):
            if not self._ledger.has(scope, key):
                self._ledger.note(self._about(request, block))

    def stored(self, request: str, block: int) -> None:
        """By one rank."""
        waiting = self._waiting.get((request, block))
        if waiting is None:
            return
        waiting[1] -= 1
        if waiting[1] == 0 and self._ledger:
            del self._waiting[request, block]
            self._ledger.note(waiting[0])

    def failed(self, request: str, block: int) -> None:
        self._waiting.pop((request, block), None)

    def ended(self, request: str) -> None:
        if self._ledger:
            self._ledger.note(Ends(request))

    def take(self) -> list[KVCacheEvent]:
        """For vLLM's stream."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self) -> None:
        if self._ledger:
            self._ledger.close()
        if self._publisher:
            self._publisher.close()

    def _about(self, request: Request, block: int) -> Here:
        each, tokens = self._shape.pages_per_block, self._shape.block_tokens
        lora = getattr(request, "lora_request", None)
        return Here(
            request.request_id, block, [bytes(key) for key in request.block_hashes[block * each:(block + 1) * each]],
            bytes(request.block_hashes[block * each - 1]) if block else None,
            np.asarray(request.all_token_ids[block * tokens:(block + 1) * tokens], np.uint32), self._shape.page_tokens,
            lora.adapter_id if lora else None, lora.lora_name if lora else None)

    def _tell(self, events: Iterable[Here | Gone], all_gone: bool) -> None:
        """On Ledger's thread."""
        events = list(events)
        if self._audience.vllm:
            self._events.extend(map(vllm_event, events))  # Not AllBlocksCleared: that would be the engine's own blocks, too.
        if self._publisher:
            self._publisher.publish(events, all_gone)
