"""Counts in vLLM's own metrics: vllm:tiercel_* in /metrics, and one line in the log every interval."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

COUNTS = {
    "matches": "Requests whose prefix was asked for",
    "matches_late": "Requests that did not wait for the answer",
    "blocks_matched": "Blocks that were there when a request asked",
    "blocks_asked": "Blocks that a load asked for",
    "blocks_loaded": "Blocks loaded into pages",
    "bytes_loaded": "Bytes loaded into pages",
    "loads_failed": "Loads of which a block was missing; it was computed",
    "loads_declined": "Loads not begun because computing is quicker",
    "blocks_saved": "Blocks stored, or there already",
    "bytes_saved": "Bytes of blocks stored",
    "saves_failed": "Blocks that were not stored",
    "saves_skipped": "Blocks not given to the cache: it was away, or too many were in flight",
    "link_closed": "Times that the cache was left alone after trouble",
}
SECONDS = {"load_seconds": "Seconds that loads took", "save_seconds": "Seconds that saves took"}
ALL = {**COUNTS, **SECONDS}


class TiercelStats(KVConnectorStats):
    """data: counts by the names above, and missed_REASON; absent is zero."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__(data=dict(data or {}))

    def add(self, name: str, amount: float = 1) -> None:
        self.data[name] = self.data.get(name, 0) + amount

    def reset(self) -> None:
        self.data = {}

    def take(self) -> TiercelStats | None:
        """What was counted since the last time; None: nothing."""
        if self.is_empty():
            return None
        taken = TiercelStats(self.data)
        self.reset()
        return taken

    def aggregate(self, other: KVConnectorStats) -> TiercelStats:
        for name, amount in other.data.items():
            self.add(name, amount)
        return self

    def reduce(self) -> dict[str, int | float]:
        return {f"tiercel {name}": round(amount, 4) for name, amount in sorted(self.data.items())}

    def is_empty(self) -> bool:
        return not self.data


class TiercelPromMetrics(KVConnectorPromMetrics):
    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        counter = metric_types[Counter]
        self._counters = {name: counter(name=f"vllm:tiercel_{name}", documentation=about, labelnames=labelnames)
                          for name, about in ALL.items()}
        self._missed = counter(name="vllm:tiercel_blocks_missed", documentation="Blocks that a load did not get",
                               labelnames=[*labelnames, "reason"])

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for name, amount in transfer_stats_data.items():
            if name in self._counters:
                self._counters[name].labels(*labels).inc(amount)
            elif name.startswith("missed_"):
                self._missed.labels(*labels, name.removeprefix("missed_")).inc(amount)
