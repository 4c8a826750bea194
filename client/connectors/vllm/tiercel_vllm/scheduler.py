"""The scheduler's side: what of each request is in the cache, what is to be loaded, what is to be stored.

It runs inside vLLM's scheduling loop, so no method waits for the cache. When a request arrives its match is sent; by
the time the scheduler asks, the answer is there, or the scheduler is told to ask again, `match_wait_s` long at most.
It decides by blocks; vLLM counts in tokens and pages. A hit is a hit of every rank's block.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import tiercel

from .events import Announcer, Audience
from .identity import Adapters
from .link import Link
from .messages import Extend, Load, Save, StepMeta
from .pace import Pace
from .settings import HINTS
from .stats import TiercelStats

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    from .layout import Shape
    from .messages import WorkerMeta
    from .settings import Settings

log = logging.getLogger("vllm.tiercel")

MAX_FOLLOWED = 65536  # Requests at once; one beyond is computed and not stored.
_PROBE_S = 1.0
_REUSE = "tiercel_reuse"  # Of kv_transfer_params: what the caller knows about the request's blocks.


@dataclass
class _Followed:
    """A request, from its arrival to its end."""

    request: Request
    scope: bytes
    reuse: str
    chains: list[tiercel.Chain] = field(default_factory=list)  # One a rank, of what was asked for.
    tickets: dict[int, int] = field(default_factory=dict)  # Ticket to rank: matches under way.
    asked_at: float = 0.0
    here: list[bool] = field(default_factory=list)  # Of the blocks that were asked for: every rank has it.
    prefix: int = 0  # Leading blocks to load.
    given_up: bool = False  # Do not load: a load failed, or nothing is known.
    local: int = 0  # Tokens that the engine had when it asked.
    pages: list[int] = field(default_factory=list)
    sent: int = 0  # Hashes that the workers have.
    seen: int = 0  # Blocks that were stored, or need not be.
    saving: int = 0  # Blocks with the workers, counted once a rank.


class SchedulerSide:
    def __init__(self, settings: Settings, shape: Shape, clock: Callable[[], float] = time.monotonic,
                 link: Link | None = None, audience: Audience | None = None) -> None:
        self._settings = settings
        self._shape = shape
        self._clock = clock
        self._pace = Pace(settings.load_deadline_s)
        self._adapters = Adapters()
        self._scopes: dict[str, bytes] = {}
        self._followed: dict[str, _Followed] = {}
        self._asking: dict[int, str] = {}  # Ticket to request.
        self._storing: dict[bytes, str] = {}  # Hash to request: no block is given to the cache twice at once.
        self._next = StepMeta()
        self._steps: deque[tuple[float, int]] = deque(maxlen=64)  # Begun and not ended: when, and tokens.
        self._last_end = 0.0
        self._probe_chain: tiercel.Chain | None = None
        self._closings = 0
        self.events = Announcer(settings, shape, audience or Audience())
        self.stats = TiercelStats()
        self.link = link or Link(settings.client_options(), self._probe, "scheduler")
        self.events.begin(self.link)

    # What vLLM asks

    def on_new_request(self, request: Request) -> None:
        if len(self._followed) >= MAX_FOLLOWED:
            return
        scope = self._scope_of(request)
        if scope is None:
            return
        params = request.kv_transfer_params or {}
        reuse = params.get(_REUSE, "unknown")
        followed = _Followed(request, scope, reuse if reuse in HINTS else "unknown")
        self._followed[request.request_id] = followed
        self._ask(followed)

    def matched_tokens(self, request: Request, computed: int) -> int | None:
        followed = self._followed.get(request.request_id)
        if followed is None or followed.given_up or not self._settings.load:
            return 0
        self._take_answers()
        if followed.tickets:
            if self.link.open and self._clock() - followed.asked_at < self._settings.match_wait_s:
                return None
            self.stats.add("matches_late")
            self._give_up(followed)
            self.link.trouble("a match was not answered in time")
            return 0
        block = self._shape.block_tokens
        blocks = min(followed.prefix, (request.num_tokens - 1) // block)  # The last token is always computed.
        tokens = blocks * block - computed
        if tokens <= 0:
            return 0
        wanted = blocks - computed // block
        if not self._pace.worth(wanted, tokens):
            self.stats.add("loads_declined")
            followed.given_up = True
            self.link.measure()  # It may be quicker by now.
            return 0
        followed.local = computed
        return tokens

    def load(self, request: Request, pages: list[int], tokens: int) -> None:
        """vLLM made room for tokens beyond those it had."""
        followed = self._followed[request.request_id]
        each, block = self._shape.pages_per_block, self._shape.block_tokens
        first, end = followed.local // block, (followed.local + tokens) // block
        self._extend(followed, end)
        self._next.loads.append(Load(
            request.request_id, first, [list(pages[i * each:(i + 1) * each]) for i in range(first, end)],
            (followed.local % block) // self._shape.page_tokens, self._pace.deadline_s(tokens), (followed.local + tokens) % block == 0))
        self.stats.add("blocks_asked", end - first)

    def step(self, output: SchedulerOutput) -> StepMeta:
        for new in output.scheduled_new_reqs:
            self._scheduled(new.req_id, list(new.block_ids[0]), False, new.num_computed_tokens + output.num_scheduled_tokens[new.req_id])
        cached = output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            pages = cached.new_block_ids[i]
            self._scheduled(request_id, None if pages is None else list(pages[0]), request_id not in cached.resumed_req_ids,
                            cached.num_computed_tokens[i] + output.num_scheduled_tokens[request_id])
        meta, self._next = self._next, StepMeta()
        meta.preempted = [request_id for request_id, followed in self._followed.items()
                          if followed.saving and followed.request.status.name == "PREEMPTED"]
        meta.idle = output.total_num_scheduled_tokens == 0
        self._steps.append((self._clock(), sum(n for n in output.num_scheduled_tokens.values() if n > 1)))
        if self.link.closings != self._closings:
            self.stats.add("link_closed", self.link.closings - self._closings)
            self._closings = self.link.closings
        return meta

    def stepped(self, meta: WorkerMeta | None) -> None:
        """A step has ended, and this is what the workers say."""
        now = self._clock()
        if self._steps:
            began, tokens = self._steps.popleft()
            self._pace.computed(tokens, now - max(began, self._last_end))
            self._last_end = now
        if meta is None:
            return
        for loaded in meta.loaded:
            followed = self._followed.get(loaded.request)
            if loaded.served == loaded.blocks:
                self._pace.loaded(loaded.blocks, loaded.seconds)
                continue
            if loaded.reason in ("TIMEOUT", "UNAVAILABLE"):
                self._pace.failed(loaded.served, loaded.seconds)
            if followed is not None:
                followed.given_up = True
                # What is missing is computed, and then stored again.
                del followed.here[loaded.first + loaded.served:]
        for request_id, blocks in meta.saved.items():
            followed = self._followed.get(request_id)
            if followed is not None:
                followed.saving -= blocks
                if not followed.saving:
                    self._forget_storing(request_id)
        for request_id, block, there in meta.stored:
            (self.events.stored if there else self.events.failed)(request_id, block)
        if meta.trouble:
            self.link.trouble(meta.trouble)

    def finished(self, request: Request) -> bool:
        """True: its pages must stay until its saves have ended."""
        followed = self._followed.pop(request.request_id, None)
        if followed is None:
            return False
        self._forget_asking(followed)
        self._forget_storing(request.request_id)
        self.events.ended(request.request_id)
        (self._next.delayed if followed.saving else self._next.ended).append(request.request_id)
        return followed.saving > 0

    def close(self) -> None:
        self.events.close()
        self.link.close()

    # Matches

    def _scope_of(self, request: Request) -> bytes | None:
        lora = getattr(request, "lora_request", None)
        adapter = "" if lora is None else self._adapters(lora.lora_name, lora.lora_path)
        if adapter is None:
            return None
        if adapter not in self._scopes:
            if len(self._scopes) >= MAX_FOLLOWED:
                self._scopes.clear()
            self._scopes[adapter] = self._shape.scope((adapter,) if adapter else ())
        return self._scopes[adapter]

    def _hashes(self, request: Request, begin: int = 0, end: int | None = None) -> list[bytes]:
        """Of whole blocks: the hash of a block's last page names all tokens up to there."""
        each = self._shape.pages_per_block
        stop = len(request.block_hashes) if end is None else end * each
        return [bytes(one) for one in request.block_hashes[begin * each + each - 1:stop:each]]

    def _ask(self, followed: _Followed) -> None:
        hashes = self._hashes(followed.request)
        client = self.link.client
        if not hashes or not self.link.open or client is None:
            followed.given_up = True
            return
        followed.asked_at = self._clock()
        try:
            for rank in range(self._shape.world):
                chain = tiercel.Chain(followed.scope, name_space=self._settings.namespace, part=rank, layout=self._shape.layout)
                chain.extend(hashes)
                ticket = client.submit_match_prefix(chain, self._settings.match_wait_s, hold=True, min_class=self._settings.quality)
                if not ticket:
                    raise RuntimeError("too many requests in flight")
                followed.chains.append(chain)
                followed.tickets[ticket] = rank
                self._asking[ticket] = followed.request.request_id
        except (RuntimeError, ValueError) as error:
            log.debug("Tiercel: match: %s", error)
            self._give_up(followed)
            return
        followed.here = [True] * len(hashes)
        self.stats.add("matches")

    def _take_answers(self) -> None:
        if not self._asking or self.link.client is None:
            return
        for completion in self.link.client.poll():
            request_id = self._asking.pop(completion.ticket, None)
            followed = self._followed.get(request_id) if request_id else None
            if followed is None or followed.tickets.pop(completion.ticket, None) is None:
                continue
            statuses = [block.status for block in completion.blocks]
            if any(status in ("TIMEOUT", "UNAVAILABLE") for status in statuses):
                self.link.trouble("a match was not answered")
            followed.here = [here and status == "OK" for here, status in zip(followed.here, statuses)]
            if not followed.tickets:
                followed.prefix = next((i for i, here in enumerate(followed.here) if not here), len(followed.here))
                self.stats.add("blocks_matched", followed.prefix)
                if followed.prefix:
                    self._probe_chain = followed.chains[0]
                    self.events.found(followed.request, followed.scope, self._hashes(followed.request, 0, followed.prefix))
                followed.chains = []

    def _give_up(self, followed: _Followed) -> None:
        self._forget_asking(followed)
        followed.given_up = True
        followed.here, followed.prefix = [], 0

    def _forget_asking(self, followed: _Followed) -> None:
        for ticket in followed.tickets:
            self._asking.pop(ticket, None)
            self.link.client.cancel(ticket)
        followed.tickets, followed.chains = {}, []

    def _probe(self, client: tiercel.Client) -> bool:
        """On the link's thread: is the cache there, and how long does one block take?"""
        chain = self._probe_chain
        if chain is None:
            unnamed = tiercel.Chain(self._shape.scope(), name_space=self._settings.namespace, layout=self._shape.layout)
            unnamed.append(bytes(32))
            return all(block.status not in ("TIMEOUT", "UNAVAILABLE") for block in client.lookup(unnamed, self._settings.match_wait_s))
        layout = self._shape.layout
        planes = [np.empty((layout.layers, size), np.uint8) for size in (layout.k_plane_bytes, layout.v_plane_bytes) if size]
        places = [(plane.ctypes.data + np.arange(layout.layers, dtype=np.int64) * plane.strides[0])[None] for plane in planes]
        began = time.monotonic()
        result = client.get_blocks(chain, 0, 1, layout, *places, deadline_s=_PROBE_S, min_class=self._settings.quality, no_touch=True)[0]
        if result.status == "OK":
            self._pace.measured(time.monotonic() - began)
            return True
        if result.status in ("TIMEOUT", "UNAVAILABLE"):
            return False
        self._probe_chain = None  # Forgotten; how quick the cache is will be seen.
        self._pace.block_s = None
        return True

    # Saves

    def _scheduled(self, request_id: str, pages: list[int] | None, more: bool, computed: int) -> None:
        """In this step the request's tokens up to `computed` get their KV. more: pages are added to those it has."""
        followed = self._followed.get(request_id)
        if followed is None:
            return
        if pages is not None:
            followed.pages = followed.pages + pages if more else pages
        each = self._shape.pages_per_block
        known = len(followed.request.block_hashes)
        if self._settings.save == "prompt":
            computed = min(computed, followed.request.num_prompt_tokens)
        full = min(computed // self._shape.block_tokens, known // each, len(followed.pages) // each)
        if full <= followed.seen or self._settings.save == "none":
            return
        self._take_answers()
        if followed.tickets:
            self._give_up(followed)  # Nobody waited for the answer: store what may be there already.
        run: Save | None = None
        hashes, given = self._hashes(followed.request, followed.seen, full), []
        for i, key in enumerate(hashes, followed.seen):
            if i < len(followed.here) and followed.here[i] or key in self._storing:
                run = None
                continue
            if not self.link.open:
                self.stats.add("saves_skipped")
                continue
            if run is None:
                run = Save(request_id, i, [], followed.reuse)
                self._next.saves.append(run)
            run.pages.append(followed.pages[i * each:(i + 1) * each])
            self._storing[key] = request_id
            given.append(i)
            followed.saving += self._shape.world
        self.events.given(followed.request, followed.scope, followed.seen, hashes, given)
        if run is not None or followed.saving:
            self._extend(followed, full)
        followed.seen = full

    def _extend(self, followed: _Followed, end: int) -> None:
        if followed.sent >= end:
            return
        request_id = followed.request.request_id
        hashes = self._hashes(followed.request, followed.sent, end)
        known = self._next.extends.get(request_id)
        if known is None:
            self._next.extends[request_id] = Extend(followed.scope, followed.sent, hashes)
        else:
            known.hashes.extend(hashes)
        followed.sent = end

    def _forget_storing(self, request_id: str) -> None:
        for key in [key for key, owner in self._storing.items() if owner == request_id]:
            del self._storing[key]
