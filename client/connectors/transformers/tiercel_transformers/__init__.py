"""Prefixes of a Hugging Face model, fetched from Tiercel and pushed to it. Guide: docs/engines/transformers.md.

    cached = PrefixCache(model, "127.0.0.1:7400")
    past = cached.fetch(input_ids)                       # a DynamicCache with what is there, perhaps empty
    out = model.generate(input_ids, past_key_values=past)
    cached.push(out, past)                               # whole blocks that were not there

Nothing raises because of the cache: what is not there, or not in time, is computed by the model.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import tiercel
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

__version__ = "0.1.0"
__all__ = ["PrefixCache", "block_hashes", "weights_digest"]

_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def weights_digest(model: PreTrainedModel) -> str:
    """Of the weights in memory, adapters that were merged into them included; about a second a gigabyte."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def block_hashes(ids: Sequence[int], tokens_per_block: int) -> list[bytes]:
    """The chained hash of each whole block: it names all tokens up to its end."""
    out, previous = [], b""
    for start in range(0, len(ids) - tokens_per_block + 1, tokens_per_block):
        previous = hashlib.sha256(previous + np.asarray(ids[start:start + tokens_per_block], "<u4").tobytes()).digest()
        out.append(previous)
    return out


class PrefixCache:
    """One model's prefixes. Any thread, one call at a time.

    revision: which weights these are; "": their digest is made here. quality: the class that is stored, and the worst
    that is fetched; each has blocks of its own. Errors: ValueError for a model whose cache this does not know;
    tiercel.ConnectError when no node answers.
    """

    def __init__(self, model: PreTrainedModel, endpoint: str | Sequence[str] | None = None, *, revision: str = "",
                 tokens_per_block: int = 128, quality: str = "exact", **options: Any) -> None:
        config = model.config.get_text_config(decoder=True)
        odd = sorted({type(layer).__name__ for layer in DynamicCache(config=model.config).layers if type(layer) is not DynamicLayer})
        if odd:
            raise ValueError(f"layers that keep {', '.join(odd)}: only caches of full attention are stored")
        if model.dtype not in _DTYPES:
            raise ValueError(f"KV of {model.dtype}: only {', '.join(map(str, _DTYPES))} are stored")
        self._model = model
        self._quality = quality
        self._layout = tiercel.KvLayout(
            layers=config.num_hidden_layers, kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            tokens_per_block=tokens_per_block, dtype=_DTYPES[model.dtype], k_order="htd", v_order="htd", engine="transformers")
        rope = json.dumps(getattr(config, "rope_parameters", None), sort_keys=True, default=str)
        self._scope = tiercel.make_scope(model=config.model_type, revision=revision or weights_digest(model), rope=rope,
                                         salt="" if quality == "exact" else quality, layout=self._layout)
        self._client = tiercel.Client(endpoint, **options)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> PrefixCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self, input_ids: torch.Tensor | Sequence[int]) -> DynamicCache:
        """The longest prefix of whole blocks that is there, for generate() or the model itself; the last token is
        always left to compute."""
        ids = _ids(input_ids)
        past = DynamicCache(config=self._model.config)
        chain = self._chain(ids[:-1])
        here = self._client.match_prefix(chain, hold=True, min_class=self._quality)
        if here == 0:
            return past
        planes = [self._planes(here) for _ in range(2)]
        results = self._client.get_blocks(chain, 0, here, self._layout, *map(_addresses, planes), min_class=self._quality)
        good = next((i for i, result in enumerate(results) if result.status != "OK"), here)
        for layer in range(self._layout.layers if good else 0):
            k, v = (plane[:good, layer].transpose(0, 1).flatten(1, 2)[None].to(self._model.device) for plane in planes)
            past.layers[layer].update(k, v)
        return past

    def push(self, input_ids: torch.Tensor | Sequence[int], past: DynamicCache) -> int:
        """Stores the whole blocks of these tokens that `past` has and the cache has not; how many were stored."""
        ids = _ids(input_ids)
        whole = min(len(ids), past.get_seq_length()) // self._layout.tokens_per_block
        chain = self._chain(ids[:whole * self._layout.tokens_per_block])
        here = self._client.match_prefix(chain, min_class=self._quality)
        if here >= whole:
            return 0
        tokens, heads = self._layout.tokens_per_block, self._layout.kv_heads
        planes = []
        for which in ("keys", "values"):
            plane = self._planes(whole - here)
            for layer in range(self._layout.layers):
                kv = getattr(past.layers[layer], which)[0, :, here * tokens:whole * tokens]
                plane[:, layer].copy_(kv.reshape(heads, whole - here, tokens, -1).transpose(0, 1))
            planes.append(plane)
        results = self._client.put_blocks(chain, here, whole - here, self._layout, *map(_addresses, planes), put_class=self._quality)
        return sum(result.status == "OK" for result in results)

    def _chain(self, ids: Sequence[int]) -> tiercel.Chain:
        chain = tiercel.Chain(self._scope, name_space=self._client.name_space, layout=self._layout)
        chain.extend(block_hashes(ids, self._layout.tokens_per_block))
        return chain

    def _planes(self, blocks: int) -> torch.Tensor:
        """[block, layer, head, token, dim] in host memory."""
        layout = self._layout
        return torch.empty((blocks, layout.layers, layout.kv_heads, layout.tokens_per_block, layout.head_dim), dtype=self._model.dtype)


def _addresses(planes: torch.Tensor) -> np.ndarray:
    blocks, layers = planes.shape[:2]
    size = planes.stride(1) * planes.element_size()
    return planes.data_ptr() + np.arange(blocks * layers, dtype=np.int64).reshape(blocks, layers) * size


def _ids(input_ids: torch.Tensor | Sequence[int]) -> list[int]:
    if not isinstance(input_ids, torch.Tensor):
        return list(input_ids)
    if input_ids.dim() == 2 and len(input_ids) != 1:
        raise ValueError(f"{len(input_ids)} sequences: a prefix is of one")
    return [int(one) for one in input_ids.flatten().tolist()]
