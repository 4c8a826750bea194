"""What vLLM's KV bytes are, and where they lie.

`describe` says it in Tiercel's words from vLLM's configuration alone, so that the scheduler, which never sees a
tensor, and the workers make the same scope. `Pages` finds the same values in the registered tensors by their
strides, and refuses tensors that are not what was described. Whatever cannot be described is refused at start, by
name: it is not guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tiercel import KvLayout, PagedKv, make_scope

from . import identity

if TYPE_CHECKING:
    import torch

    from .settings import Settings

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}
_FP8 = {"fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
_SPECS = ("FullAttentionSpec", "MLAAttentionSpec")  # Subclasses keep something else in their pages.


class Unsupported(ValueError):
    """This model or configuration cannot be cached by this connector."""


def _refuse(what: str) -> Unsupported:
    return Unsupported(f"tiercel_vllm does not cache {what}; start vLLM without it")


@dataclass(frozen=True)
class Shape:
    """Of the KV of one engine. A block is what is stored; a page is vLLM's block."""

    layout: KvLayout  # Of rank 0.
    page_tokens: int
    world: int  # Ranks whose bytes differ; the blocks of all of them make a hit.
    replicas: int  # Consecutive ranks with equal bytes: the first of them stores.
    model: str
    revision: str
    rope: str
    salt: str

    @property
    def block_tokens(self) -> int:
        return self.layout.tokens_per_block

    @property
    def pages_per_block(self) -> int:
        return self.block_tokens // self.page_tokens

    def scope(self, adapters: tuple[str, ...] = ()) -> bytes:
        return make_scope(model=self.model, revision=self.revision, adapters=list(adapters), rope=self.rope,
                          salt=self.salt, layout=self.layout)

    def layout_of(self, rank: int) -> KvLayout:
        return _layout(self.layout, rank)


def _layout(base: KvLayout, rank: int) -> KvLayout:
    return KvLayout(layers=base.layers, kv_heads=base.kv_heads, head_dim=base.head_dim, head_dim_v=base.head_dim_v,
                    tokens_per_block=base.tokens_per_block, dtype=base.dtype, k_order=base.k_order, v_order=base.v_order,
                    packing=base.packing, rank=rank, world=base.world, engine=base.engine, isa=base.isa)


def _only_group(kv_cache_config: Any) -> Any:
    groups = kv_cache_config.kv_cache_groups
    kinds = sorted({type(group.kv_cache_spec).__name__ for group in groups})
    if len(groups) != 1 or kinds[0] not in _SPECS:
        raise _refuse(f"a KV cache of {len(groups)} groups ({', '.join(kinds)}): only one group of full attention or MLA layers")
    return groups[0]


def _dtype(spec: Any, cache_dtype: str) -> str:
    name = str(spec.dtype).removeprefix("torch.")
    if name == "uint8":
        name = _FP8.get(cache_dtype, name)
        if name in _FP8.values():
            return name
    if name not in _DTYPES:
        raise _refuse(f"KV of dtype {name} (kv_cache_dtype {cache_dtype})")
    return _DTYPES[name]


def _check_spec(spec: Any) -> None:
    quant = getattr(getattr(spec, "kv_quant_mode", None), "name", "NONE")
    if quant not in ("NONE", "FP8_PER_TENSOR"):
        raise _refuse(f"KV quantised as {quant}: its scales lie beside the values")
    if getattr(spec, "tokens_per_state", 1) != 1:
        raise _refuse("KV that keeps one state for several tokens")
    if getattr(spec, "non_causal", False):
        raise _refuse("KV of layers that attend non-causally: a prefix does not determine it")


def _cpu_isa(spec: Any, cache_dtype: str) -> str:
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    return str(_get_attn_isa(spec.dtype, spec.block_size, spec.head_size, cache_dtype))


def describe(settings: Settings, vllm_config: Any, kv_cache_config: Any, *, on_cpu: bool) -> Shape:
    """Errors: Unsupported and ValueError, which say what it is."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    group = _only_group(kv_cache_config)
    spec = group.kv_cache_spec
    _check_spec(spec)
    for what in ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, what, 1) != 1:
            raise _refuse(f"an engine with {what} {getattr(parallel, what)}")
    algorithm = str(cache.prefix_caching_hash_algo)
    if not algorithm.startswith("sha256"):
        raise _refuse(f"blocks named by {algorithm}, which anyone can forge; use --prefix-caching-hash-algo sha256")
    if (getattr(kv_cache_config, "hash_block_size", None) or spec.block_size) != spec.block_size:
        raise _refuse(f"blocks of {spec.block_size} tokens that are hashed by {kv_cache_config.hash_block_size}")
    latent = type(spec).__name__ == "MLAAttentionSpec"
    tensor_parallel = int(parallel.tensor_parallel_size)
    replicas = int(getattr(kv_cache_config, "kv_tp_replicas", 1) or 1)
    if latent:
        replicas = tensor_parallel  # One latent, the same on every rank.
    page = int(spec.block_size)
    cache_dtype = str(cache.cache_dtype)
    isa = _cpu_isa(spec, cache_dtype) if on_cpu else ""
    # "vec" keeps K as [dim][token]. Other ISAs pack K in ways of their own: their bytes are moved as they are.
    if on_cpu and not latent and isa != "vec" and settings.quality != "exact":
        raise _refuse(f"class {settings.quality} of K as the {isa} kernels pack it; use class exact")
    k_order = "hdt" if on_cpu and not latent else "htd"
    layout = KvLayout(
        layers=len(group.layer_names),
        kv_heads=1 if latent else int(spec.num_kv_heads),
        head_dim=int(spec.head_size),
        head_dim_v=0 if latent else int(getattr(spec, "head_size_v", None) or spec.head_size),
        tokens_per_block=page * max(1, settings.tokens_per_block // page),
        dtype=_dtype(spec, cache_dtype),
        k_order=k_order,
        v_order="htd",
        packing="latent" if latent else "split",
        rank=0,
        world=tensor_parallel // replicas,
        engine="vllm-cpu" if on_cpu else "vllm",
        isa=isa,
    )
    text = model.hf_text_config
    rope = {key: getattr(text, key, None) for key in ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")}
    # All else that the values depend on: an engine of another class builds on other prefixes.
    salt = {"hash": algorithm, "kv_dtype": cache_dtype, "dtype": str(model.dtype), "quantization": str(model.quantization or "none"),
            "quality": settings.quality}
    return Shape(layout, page, tensor_parallel // replicas, replicas, identity.model(settings, model),
                 identity.revision(settings, model), json.dumps(rope, sort_keys=True, default=str), json.dumps(salt, sort_keys=True))


class Pages:
    """vLLM's registered tensors as Tiercel sees them. They must be in host memory and stay there."""

    def __init__(self, shape: Shape, tensors: Mapping[str, torch.Tensor], num_blocks: int) -> None:
        self.shape = shape
        layout = shape.layout
        self.tensors = list(tensors.values())
        if len(self.tensors) != layout.layers:
            raise _refuse(f"{len(self.tensors)} KV tensors of {layout.layers} layers: layers that share KV")
        first = self.tensors[0]
        for name, tensor in tensors.items():
            if tensor.device.type != "cpu":
                raise _refuse(f"KV on a device ({tensor.device}): this version reads host memory only")
            if tensor.shape != first.shape or tensor.stride() != first.stride() or tensor.dtype != first.dtype:
                raise _refuse(f"layers of different tensors ({name})")
        if first.shape[0] % num_blocks:
            raise _refuse(f"a KV tensor of shape {tuple(first.shape)} for {num_blocks} blocks")
        self.parts = first.shape[0] // num_blocks  # Kernel blocks of a page.
        part_tokens = shape.page_tokens // self.parts
        size = first.element_size()
        if layout.packing == "latent":
            view = first.squeeze(1) if first.dim() == 4 and first.shape[1] == 1 else first
            self._expect(view, (first.shape[0], part_tokens, layout.head_dim))
            strides = [view.stride(0) * size, view.stride(1) * size, view.stride(1) * size, view.stride(2) * size]
            self.paged = PagedKv(n_pages=first.shape[0], tokens_per_page=part_tokens, k=self._bases(0),
                                 plane_bytes=_extent(strides, (first.shape[0], part_tokens, 1, layout.head_dim), size), k_strides=strides)
            return
        self._expect(first, (first.shape[0], layout.kv_heads, part_tokens, layout.head_dim + layout.head_dim_v))
        page, head, token, dim = (stride * size for stride in first.stride())
        if layout.k_order == "hdt":
            if (token, dim) != (first.shape[3] * size, size):
                raise _refuse(f"CPU pages with strides {first.stride()}")
            # A head's page: K as [dim][token], then V as [token][dim].
            k_strides = [page, size, head, part_tokens * size]
            v_strides = [page, layout.head_dim_v * size, head, size]
            v_at = layout.head_dim * part_tokens * size
        else:
            k_strides = v_strides = [page, token, head, dim]
            v_at = layout.head_dim * dim
        extent = max(_extent(strides, (first.shape[0], part_tokens, layout.kv_heads, width), size)
                     for strides, width in ((k_strides, layout.head_dim), (v_strides, layout.head_dim_v)))
        self.paged = PagedKv(n_pages=first.shape[0], tokens_per_page=part_tokens, k=self._bases(0), v=self._bases(v_at),
                             plane_bytes=extent, k_strides=k_strides, v_strides=v_strides)

    def table(self, pages: np.ndarray) -> np.ndarray:
        """[blocks, pages of each] as vLLM numbers them, to what PagedKv counts."""
        if self.parts == 1:
            return np.ascontiguousarray(pages, np.int64)
        parts = pages[:, :, None] * self.parts + np.arange(self.parts)
        return np.ascontiguousarray(parts.reshape(len(pages), -1), np.int64)

    def scratch(self) -> Scratch:
        return Scratch(self)

    def _bases(self, offset: int) -> list[int]:
        return [tensor.data_ptr() + offset for tensor in self.tensors]

    @staticmethod
    def _expect(tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise _refuse(f"a KV tensor of shape {tuple(tensor.shape)}, where {shape} was described")


class Scratch:
    """One block of pages of its own, for a block of which some pages must not be touched."""

    def __init__(self, pages: Pages) -> None:
        import torch

        self._pages = pages
        count = pages.shape.pages_per_block * pages.parts
        self._tensors = {str(i): torch.empty((count, *t.shape[1:]), dtype=t.dtype) for i, t in enumerate(pages.tensors)}
        self.paged = Pages(replace(pages.shape), self._tensors, pages.shape.pages_per_block).paged
        self.table = np.arange(count, dtype=np.int64)[None]

    def copy_into(self, page: int, index: int) -> None:
        """Page `index` of the block, into vLLM's page."""
        parts = self._pages.parts
        for ours, theirs in zip(self._tensors.values(), self._pages.tensors, strict=True):
            theirs[page * parts:(page + 1) * parts].copy_(ours[index * parts:(index + 1) * parts])


def _extent(strides: list[int], counts: tuple[int, ...], size: int) -> int:
    """Bytes from a plane's base to the end of its last value."""
    return sum(stride * (count - 1) for stride, count in zip(strides, counts, strict=True)) + size
