"""What was stored, as vLLM's own KV events: vLLM publishes them to routers that know prefixes, with its other events.

A block is announced page by page, as vLLM hashes it, when every rank's part of it is stored. What the cache forgets is
not announced: only its nodes know. A router that sends a request here for a block that went costs it a recompute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import MEDIUM_STORAGE, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from .layout import Shape

MAX_WAITING = 65536  # Blocks that are being stored, and events that nobody took.
_FIELDS = frozenset(BlockStored.__struct_fields__)


class Announcer:
    def __init__(self, shape: Shape, enabled: bool) -> None:
        self._shape = shape
        self._enabled = enabled
        self._waiting: dict[tuple[str, int], list[Any]] = {}  # The event, and ranks that have not stored yet.
        self._events: list[BlockStored] = []

    def given(self, request: Request, block: int) -> None:
        """To the cache, but not stored yet."""
        if not self._enabled or len(self._waiting) >= MAX_WAITING:
            return
        each, tokens = self._shape.pages_per_block, self._shape.block_tokens
        lora = getattr(request, "lora_request", None)
        about = {
            "block_hashes": [maybe_convert_block_hash(key) for key in request.block_hashes[block * each:(block + 1) * each]],
            "parent_block_hash": maybe_convert_block_hash(request.block_hashes[block * each - 1]) if block else None,
            "token_ids": list(request.all_token_ids[block * tokens:(block + 1) * tokens]),
            "block_size": self._shape.page_tokens,
            "lora_id": lora.adapter_id if lora else None,
            "lora_name": lora.lora_name if lora else None,
            "medium": MEDIUM_STORAGE,
            "group_idx": 0,
            "locality": "REMOTE",
            "ownership": "tiercel",
        }
        event = BlockStored(**{name: value for name, value in about.items() if name in _FIELDS})
        self._waiting[request.request_id, block] = [event, self._shape.world]

    def stored(self, request: str, block: int) -> None:
        """By one rank."""
        waiting = self._waiting.get((request, block))
        if waiting is None:
            return
        waiting[1] -= 1
        if waiting[1] == 0:
            del self._waiting[request, block]
            if len(self._events) < MAX_WAITING:
                self._events.append(waiting[0])

    def failed(self, request: str, block: int) -> None:
        self._waiting.pop((request, block), None)

    def take(self) -> list[BlockStored]:
        events, self._events = self._events, []
        return events
