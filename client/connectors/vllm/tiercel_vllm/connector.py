"""TiercelConnector: vLLM's hooks, each passed to the side that it is of.

Nothing that goes wrong with the cache leaves a hook as an exception: it costs a recompute. What cannot be cached at
all is refused by the constructor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA

from . import layout, settings
from .events import Audience
from .messages import StepMeta
from .scheduler import SchedulerSide
from .stats import TiercelPromMetrics, TiercelStats
from .worker import WorkerSide

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from .messages import WorkerMeta


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


class TiercelConnector(KVConnectorBase_V1, SupportsHMA):
    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = self._kv_transfer_config
        if transfer.kv_load_failure_policy != "recompute":
            raise ValueError('tiercel_vllm needs "kv_load_failure_policy": "recompute": a block that the cache has '
                             "forgotten must be computed, not fail its request")
        chosen = settings.parse(transfer.kv_connector_extra_config)
        shape = layout.describe(chosen, vllm_config, kv_cache_config, on_cpu=_on_cpu())
        events = vllm_config.kv_events_config
        audience = Audience(events is not None and events.enable_kv_cache_events, str(vllm_config.model_config.model),
                            int(getattr(vllm_config.parallel_config, "data_parallel_index", 0) or 0))
        self._scheduler = SchedulerSide(chosen, shape, audience=audience) if role == KVConnectorRole.SCHEDULER else None
        self._worker = WorkerSide(chosen, shape, kv_cache_config.num_blocks) if role == KVConnectorRole.WORKER else None

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # A save that is lost is a miss some day.

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        return "HND"

    # Scheduler

    def on_new_request(self, request: Request) -> None:
        assert self._scheduler
        self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        assert self._scheduler
        tokens = self._scheduler.matched_tokens(request, num_computed_tokens)
        return tokens, bool(tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        assert self._scheduler
        if num_external_tokens:
            self._scheduler.load(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMeta:
        assert self._scheduler
        return self._scheduler.step(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        assert self._scheduler
        meta: WorkerMeta | None = connector_output.kv_connector_worker_meta
        self._scheduler.stepped(meta)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(self, request: Request, block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        assert self._scheduler
        return self._scheduler.finished(request), None

    def take_events(self) -> Iterable[KVCacheEvent]:
        assert self._scheduler
        return self._scheduler.events.take()

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        assert self._worker
        self._worker.register(kv_caches)

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        assert self._worker
        self._worker.settle(kv_connector_metadata.preempted)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        assert self._worker
        meta = self._get_connector_metadata()
        assert isinstance(meta, StepMeta)
        self._worker.load(meta)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are between steps: no layer of a step waits for one."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Blocks are stored whole, after the step."""

    def wait_for_save(self) -> None:
        assert self._worker
        meta = self._get_connector_metadata()
        assert isinstance(meta, StepMeta)
        self._worker.save(meta)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        assert self._worker
        meta = self._get_connector_metadata()
        assert isinstance(meta, StepMeta)
        saved, loaded = self._worker.finished(meta)
        return saved or None, loaded or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        assert self._worker
        return self._worker.take_bad_pages()

    def build_connector_worker_meta(self) -> WorkerMeta | None:
        assert self._worker
        return self._worker.take_meta()

    # Both

    def get_kv_connector_stats(self) -> TiercelStats | None:
        side = self._scheduler or self._worker
        assert side
        return side.stats.take()

    def shutdown(self) -> None:
        side = self._scheduler or self._worker
        if side:
            side.close()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> TiercelStats:
        return TiercelStats(data)

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, metric_types: Any, labelnames: list[str],
                           per_engine_labelvalues: dict[int, list[object]]) -> TiercelPromMetrics:
        return TiercelPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
