"""TiercelHiCache: pages of SGLang's host pools as values in Tiercel.

A page is one value for each of the buffers that its pool keeps it in (K and V, or one). SGLang's page hash names the
tokens and no more, so model, weights, rank and the pool's layout are in the scope.

SGLang calls from threads of its own, and one of them ends for good if a method raises. So none does: what fails is
logged, counted and answered as a miss.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import tiercel
import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

log = logging.getLogger("sglang.tiercel")

_OWN = ("backend_name", "module_path", "class_name", "interface_v1", "prefetch_threshold", "prefetch_timeout_base",
        "prefetch_timeout_per_ki_token", "hicache_storage_pass_prefix_keys", "tp_lcm_size", "eviction_policy", "eviction_config")
_OPTIONS = ("view_file", "transports", "ucx_devices", "tls_ca_file", "tls_cert_file", "tls_key_file")
_KEYS = ("endpoint", "namespace", "revision", "salt", "deadline_s", *_OPTIONS)
_ABOUT = ("layout", "dtype", "page_size", "layer_num", "start_layer", "end_layer", "head_num", "head_dim", "kv_lora_rank", "qk_rope_head_dim")

T = TypeVar("T")


class _Pool:
    """A host pool, the scope of its bytes, and whether this rank writes them."""

    def __init__(self, name: str, pool: Any, config: HiCacheStorageConfig, revision: str, salt: str) -> None:
        self.pool = pool
        self.page = int(getattr(pool, "page_size", 1) or 1)
        shared = config.is_mla_model and name in (PoolName.KV.value, PoolName.INDEXER.value)
        self.writes = not shared or config.is_storage_writer
        rank = {"tp": [config.dcp_rank, config.dcp_size] if shared else [config.tp_rank, config.tp_size], "pp": [config.pp_rank, config.pp_size],
                "cp": [config.attn_cp_rank, config.attn_cp_size]}
        about = {key: str(getattr(pool, key)) for key in _ABOUT if getattr(pool, key, None) is not None}
        self.scope = tiercel.make_scope(
            model=config.model_name or "", revision=revision,
            salt=json.dumps(["sglang", name, type(pool).__name__, rank, about, salt], sort_keys=True))

    def places(self, indices: torch.Tensor, pages: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Buffers of a page, and of every page's buffers address and size, page by page."""
        addresses, sizes = self.pool.get_page_buffer_meta(indices)
        flat = [(int(a), int(s)) for many, size in zip(addresses, sizes) for a, s in
                (zip(many, size) if isinstance(many, (list, tuple)) else [(many, size)])]
        if pages == 0 or len(flat) % pages:
            raise ValueError(f"{len(flat)} buffers of {pages} pages")
        return len(flat) // pages, np.array([a for a, _ in flat], np.int64), np.array([s for _, s in flat], np.int64)


class TiercelHiCache(HiCacheStorage):
    """Errors of the constructor alone: a key that is not known, no revision, no node."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any] | None = None) -> None:
        extra = dict(storage_config.extra_config or {})
        for key in extra:
            if key not in _KEYS and key not in _OWN:
                raise ValueError(f"hicache-storage-backend-extra-config: no key {key}; there are {', '.join(_KEYS)}")
        if not extra.get("revision"):
            raise ValueError("hicache-storage-backend-extra-config: revision: say which weights the model's name stands for")
        if storage_config.should_split_heads:
            raise ValueError("tiercel_sglang does not split heads for other tensor parallel sizes; leave tp_lcm_size out")
        self._config = storage_config
        self._revision, self._salt = str(extra["revision"]), str(extra.get("salt", ""))
        self._pools: dict[str, _Pool] = {}
        self._components: dict[str, int] = {}
        self._zero_copy = bool(extra.get("interface_v1"))
        self.failures = 0
        self._client = tiercel.Client(extra.get("endpoint"), name_space=extra.get("namespace", "default"), client_name="sglang",
                                      deadline_s=float(extra.get("deadline_s", 2.0)), **{k: extra[k] for k in _OPTIONS if k in extra})

    # Pools

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        self._attach(PoolName.KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._attach(host_pool_name, host_pool)

    def _attach(self, name: Any, pool: Any) -> None:
        self._pools[str(name)] = _Pool(str(name), pool, self._config, self._revision, self._salt)

    # v1: straight into the host pool

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        return self._safely(0, lambda: self._leading(PoolName.KV.value, keys))

    def batch_get_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None) -> list[bool]:
        return self._safely([False] * len(keys), lambda: self._pages(PoolName.KV.value, keys, host_indices, store=False))

    def batch_set_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None) -> list[bool]:
        return self._safely([False] * len(keys), lambda: self._pages(PoolName.KV.value, keys, host_indices, store=True))

    # v2: several pools of one model

    def batch_exists_v2(self, keys: list[str], pool_transfers: list[PoolTransfer] | None = None,
                        extra_info: HiCacheStorageExtraInfo | None = None) -> PoolTransferResult:
        return self._safely(PoolTransferResult(0, {}, []), lambda: self._restorable(keys, pool_transfers or []))

    def batch_get_v2(self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None) -> dict[str, list[bool]]:
        return {t.name: self._transfer(t, store=False) for t in transfers}

    def batch_set_v2(self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None) -> dict[str, list[bool]]:
        return {t.name: self._transfer(t, store=True) for t in transfers}

    # Generic: a tensor a page

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        return self.batch_get([key], [target_location])[0]

    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> list[torch.Tensor | None]:
        return self._safely([None] * len(keys), lambda: self._get_tensors(keys, target_locations))

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return self.batch_set([key], [value])

    def batch_set(self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None) -> bool:
        return self._safely(False, lambda: self._set_tensors(keys, values))

    def clear(self) -> None:
        """Other engines share what is stored: `tiercel clear` forgets a name space."""
        log.warning("Tiercel: clear of one engine's pages is not done; use `tiercel clear`")

    def get_stats(self) -> None:
        return None

    def close(self) -> None:
        self._client.close()

    # Inside

    def _safely(self, otherwise: T, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception:
            self.failures += 1
            log.warning("Tiercel: answered as a miss", exc_info=True)
            return otherwise

    def _names(self, keys: Sequence[str], components: int) -> list[str]:
        return [f"{key}/{i}" for key in keys for i in range(components)]

    def _components_of(self, name: str) -> int:
        """Buffers of one page, as the pool says."""
        if name not in self._components:
            pool = self._pools[name]
            self._components[name] = pool.places(torch.arange(pool.page, dtype=torch.int64), 1)[0]
        return self._components[name]

    def _there(self, name: str, keys: Sequence[str]) -> list[bool]:
        if name == PoolName.KV.value and not self._zero_copy:
            return self._client.batch_exists(_whole(keys), self._pools[name].scope)
        components = self._components_of(name)
        there = self._client.batch_exists(self._names(keys, components), self._pools[name].scope)
        return [all(there[i * components:(i + 1) * components]) for i in range(len(keys))]

    def _leading(self, name: str, keys: Sequence[str]) -> int:
        return _run(self._there(name, keys))

    def _transfer(self, transfer: PoolTransfer, store: bool) -> list[bool]:
        keys = transfer.keys or []
        return self._safely([False] * len(keys), lambda: self._pages(str(transfer.name), keys, transfer.host_indices, store))

    def _pages(self, name: str, keys: Sequence[str], indices: Any, store: bool) -> list[bool]:
        if not keys:
            return []
        pool = self._pools[name]
        if store and not pool.writes:
            return [True] * len(keys)  # Another rank stores the same bytes.
        components, addresses, sizes = pool.places(indices, len(keys))
        names = self._names(keys, components)
        good = [False] * len(names)
        move = self._client.batch_put_ptrs if store else self._client.batch_get_into_ptrs
        for size in np.unique(sizes):  # Of one call, one number of pieces.
            at = np.flatnonzero(sizes == size)
            results = move([names[i] for i in at], np.ascontiguousarray(addresses[at]), np.ascontiguousarray(sizes[at]), pool.scope)
            for i, result in zip(at, results):
                # A value of another size is not this page's.
                good[i] = result.status == "OK" and (store or result.bytes == size)
        return [all(good[i * components:(i + 1) * components]) for i in range(len(keys))]

    def _restorable(self, keys: list[str], transfers: list[PoolTransfer]) -> PoolTransferResult:
        """Every prefix that all pools can restore; the longest is the hit."""
        anchor = self._pools[PoolName.KV.value].pool
        pages = len(keys) if getattr(anchor, "kv_buffer", True) is None else self._leading(PoolName.KV.value, keys)
        hits: dict[str, int] = {PoolName.KV: pages} if pages else {}
        fits = list(range(1, pages + 1))
        for transfer in transfers:
            there = self._there(str(transfer.name), keys[:pages])
            if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
                mine = range(1, _run(there) + 1)
            elif transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
                window = max(1, len(transfer.keys or ()))
                mine = [n for n in range(1, pages + 1) if all(there[max(0, n - window):n])]
            else:
                raise ValueError(f"hit policy {transfer.hit_policy} of pool {transfer.name}")
            if mine:
                hits[transfer.name] = max(mine)
            fits = [n for n in fits if n in set(mine)]
        return PoolTransferResult(fits[-1] if fits else 0, hits, fits)

    def _get_tensors(self, keys: list[str], places: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        scope = self._pools[PoolName.KV.value].scope
        if not all(place.is_contiguous() for place in places):
            raise ValueError("a page that is not contiguous")
        results = self._client.batch_get_into(_whole(keys), [_bytes(place) for place in places], scope)
        return [place if r.status == "OK" and r.bytes == place.nbytes else None for place, r in zip(places, results)]

    def _set_tensors(self, keys: list[str], values: Sequence[torch.Tensor]) -> bool:
        pool = self._pools[PoolName.KV.value]
        if not pool.writes:
            return True
        results = self._client.batch_put(_whole(keys), [_bytes(value) for value in values], pool.scope)
        return all(result.status == "OK" for result in results)


def _run(there: Sequence[bool]) -> int:
    return next((i for i, here in enumerate(there) if not here), len(there))


def _whole(keys: Sequence[str]) -> list[str]:
    """Of pages that are one tensor."""
    return [f"{key}/t" for key in keys]


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
