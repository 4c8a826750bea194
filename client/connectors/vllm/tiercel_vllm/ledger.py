"""What was announced, and whether it is still there.

Nodes do not say what they forget, so the engine that announced a block asks: each block once in `events_sweep_s`, a
few of them at a time, by lookups that make no block younger. One answer serves evictions, damaged blocks, `tiercel
clear` and nodes that are lost alike; what comes back is announced again.

Threads: note, has and close from any; everything else runs on the thread that the constructor starts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import tiercel

if TYPE_CHECKING:
    import numpy as np

    from .layout import Shape
    from .link import Link
    from .settings import Settings

log = logging.getLogger("vllm.tiercel")

MAX_BLOCKS = 32768  # The oldest are told as gone beyond it: nobody would notice when they go.
MAX_NOTES = 65536
LOST_S = 10.0  # A cache that is away for so long has nothing.
_TICK_S = 0.25
_LINGER_S = 60.0  # A request without blocks is followed for so long after its end.


@dataclass
class Hashes:
    """Of a request's blocks from `first` on."""

    request: str
    scope: bytes
    first: int
    hashes: list[bytes]


@dataclass
class Here:
    """A block that can be loaded, as vLLM's pages name it."""

    request: str
    block: int
    hashes: list[bytes]
    parent: bytes | None
    tokens: np.ndarray
    page_tokens: int
    lora_id: int | None = None
    lora_name: str | None = None


@dataclass
class Gone:
    hashes: list[bytes]
    first_page: int


@dataclass
class Ends:
    request: str


Note = Hashes | Here | Ends
Tell = Callable[[Iterable[Here | Gone], bool], None]  # Changes; whether nothing that was announced is left.


@dataclass
class _Known:
    here: Here
    there: bool = True


@dataclass
class _Line:
    """Blocks of one request."""

    scope: bytes
    hashes: list[bytes] = field(default_factory=list)
    blocks: dict[int, _Known] = field(default_factory=dict)
    chains: list[tiercel.Chain] = field(default_factory=list)  # One a rank.
    ended_at: float | None = None  # Of the request; blocks of it may still be under way then.


class Ledger:
    def __init__(self, settings: Settings, shape: Shape, link: Link, tell: Tell) -> None:
        self._settings = settings
        self._shape = shape
        self._link = link
        self._tell = tell
        self._notes: deque[Note] = deque(maxlen=MAX_NOTES)
        self._lines: OrderedDict[str, _Line] = OrderedDict()  # In the order in which they are looked at.
        self._known: dict[tuple[bytes, bytes], _Known] = {}
        self._there = 0
        self._away_since: float | None = None
        self._credit = 0.0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tiercel-events", daemon=True)
        self._thread.start()

    def note(self, note: Note) -> None:
        self._notes.append(note)

    def has(self, scope: bytes, key: bytes) -> bool:
        known = self._known.get((scope, key))
        return known is not None and known.there

    def close(self) -> None:
        self._ending.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._ending.wait(_TICK_S):
            try:
                self._turn(_TICK_S)
            except Exception:
                log.exception("Tiercel: events")

    def _turn(self, seconds: float) -> None:
        changes: list[Here | Gone] = []
        while self._notes:
            self._take(self._notes.popleft(), changes)
        self._bound(changes)
        if self._link.open:
            self._away_since = None
            self._sweep(seconds, changes)
        else:
            now = time.monotonic()
            self._away_since = self._away_since or now
            if now - self._away_since >= LOST_S and self._there:
                for line in self._lines.values():
                    self._changed(line, {block: False for block in line.blocks}, changes)
        if changes:
            self._tell(changes, self._there == 0)

    def _take(self, note: Note, changes: list[Here | Gone]) -> None:
        if isinstance(note, Hashes):
            line = self._lines.setdefault(note.request, _Line(note.scope))
            if note.first <= len(line.hashes):
                line.hashes[note.first:note.first + len(note.hashes)] = note.hashes
            return
        line = self._lines.get(note.request)
        if line is None:
            return
        if isinstance(note, Ends):
            line.ended_at = time.monotonic()
        elif note.block < len(line.hashes):
            key = (line.scope, line.hashes[note.block])
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = line.blocks[note.block] = _Known(note, False)
            if not known.there:
                known.there = True
                self._there += 1
                changes.append(known.here)

    def _bound(self, changes: list[Here | Gone]) -> None:
        while len(self._known) > MAX_BLOCKS:
            name, line = next((item for item in self._lines.items() if item[1].ended_at and item[1].blocks), next(iter(self._lines.items())))
            self._changed(line, {block: False for block in line.blocks}, changes)
            for block in line.blocks:
                del self._known[line.scope, line.hashes[block]]
            del self._lines[name]

    def _sweep(self, seconds: float, changes: list[Here | Gone]) -> None:
        self._credit = min(len(self._known), self._credit + len(self._known) * seconds / self._settings.events_sweep_s)
        cleared = False
        for name in list(self._lines):
            line = self._lines[name]
            if not line.blocks:
                if line.ended_at and time.monotonic() - line.ended_at > _LINGER_S:
                    del self._lines[name]
                continue
            if self._credit < 1 and not cleared:
                break
            self._credit -= len(line.blocks)
            self._lines.move_to_end(name)
            there, why = self._look(line)
            if not there:
                break  # Nobody answers: not now.
            self._changed(line, there, changes)
            cleared = cleared or "cleared" in why  # Then everything may be: look at all of it now.

    def _look(self, line: _Line) -> tuple[dict[int, bool], set[str]]:
        """Which of its blocks are there, of those that somebody answered for; and the reasons of the others."""
        if not line.chains:
            line.chains = [tiercel.Chain(line.scope, name_space=self._settings.namespace, part=rank, layout=self._shape.layout)
                           for rank in range(self._shape.world)]
        there = dict.fromkeys(line.blocks, True)
        reasons = set()
        for chain in line.chains:
            chain.extend(line.hashes[len(chain):])
            results = self._link.client.lookup(chain, self._settings.match_wait_s, min_class=self._settings.quality)
            for block in list(there):
                if results[block].status == "MISS":
                    there[block] = False
                    reasons.add(results[block].reason)
                elif results[block].status != "OK":
                    del there[block]
        return there, reasons

    def _changed(self, line: _Line, there: dict[int, bool], changes: list[Here | Gone]) -> None:
        gone: list[int] = []
        for block in sorted(there):
            known = line.blocks[block]
            if known.there == there[block]:
                continue
            known.there = there[block]
            self._there += 1 if known.there else -1
            if known.there:
                changes.append(known.here)
            else:
                gone.append(block)
        each = self._shape.pages_per_block
        for block in gone:
            changes.append(Gone(line.blocks[block].here.hashes, block * each))
