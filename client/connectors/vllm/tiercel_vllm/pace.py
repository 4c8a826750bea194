"""Whether a load is worth its time. Nothing here waits or speaks to anyone.

Two speeds are learned: prompt tokens that the engine computes a second, and seconds that the cache takes for a
block. A load that would take longer than computing the same tokens is not begun, and one that was begun ends when
computing would have been done. What is not known yet is tried.
"""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.3  # Of the newest measurement.
_MARGIN = 0.8  # A load must be that much quicker than computing.
MIN_TOKENS = 32  # Of a step that says something about prefill.
MIN_DEADLINE_S = 0.05


def _mix(old: float | None, new: float) -> float:
    return new if old is None else (1 - _WEIGHT) * old + _WEIGHT * new


@dataclass
class Pace:
    max_deadline_s: float
    tokens_per_s: float | None = None
    block_s: float | None = None

    def computed(self, tokens: int, seconds: float) -> None:
        if tokens >= MIN_TOKENS and seconds > 0:
            self.tokens_per_s = _mix(self.tokens_per_s, tokens / seconds)

    def loaded(self, blocks: int, seconds: float) -> None:
        if blocks > 0:
            self.block_s = _mix(self.block_s, seconds / blocks)

    def failed(self, blocks_served: int, seconds: float) -> None:
        """A load that ran out of time: it is at least so slow, and that counts in full."""
        self.block_s = max(self.block_s or 0.0, seconds / (blocks_served + 1))

    def measured(self, block_s: float) -> None:
        """A single block, fetched to find out: replaces what was believed."""
        self.block_s = block_s

    def _compute_s(self, tokens: int) -> float | None:
        return tokens / self.tokens_per_s if self.tokens_per_s else None

    def worth(self, blocks: int, tokens: int) -> bool:
        compute_s = self._compute_s(tokens)
        if compute_s is None or self.block_s is None:
            return True
        return blocks * self.block_s <= _MARGIN * compute_s

    def deadline_s(self, tokens: int) -> float:
        compute_s = self._compute_s(tokens)
        if compute_s is None:
            return self.max_deadline_s
        return min(self.max_deadline_s, max(MIN_DEADLINE_S, compute_s))
