"""A model replayed over a prefix whose KV is given: what it says next, and how that depends on the KV.

Needs torch and transformers (`pip install tiercel[calibrate]`). The model computes in float32; its cache is
bf16, as engines keep it, so K and V here are float32 arrays [kv_heads, tokens, dim] with values of bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from ._ec import Codec, Place

Kv = list[tuple[np.ndarray, np.ndarray]]  # A layer: K after rotation, V.


class Replay:
    """One model and its tokenizer."""

    def __init__(self, folder: str | Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        self.config: Any = self.model.config.get_text_config()
        self.layers: int = self.config.num_hidden_layers
        self.kv_heads: int = self.config.num_key_value_heads
        head_dim = getattr(self.config, "head_dim", None)
        self.head_dim: int = head_dim or self.config.hidden_size // self.config.num_attention_heads

    def inverse_frequencies(self) -> list[np.ndarray]:
        """Of each layer, radians a position: f64 [pairs]."""
        rotary = self.model.get_decoder().rotary_emb
        if hasattr(rotary, "inv_freq"):
            return [rotary.inv_freq.double().numpy()] * self.layers
        return [getattr(rotary, f"{kind}_inv_freq").double().numpy() for kind in self.config.layer_types]

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def sequences(self, text: str, length: int, count: int) -> list[list[int]]:
        """`count` stretches of `length` tokens spread evenly over the text, each after a BOS if the model wants one."""
        ids = self.tokens(text)
        start = self.tokenizer("a")["input_ids"][:1]
        if start != [self.tokenizer.bos_token_id]:
            start = []
        room = length - len(start)
        count = min(count, len(ids) // room)
        if count == 0:
            raise ValueError(f"the text has {len(ids)} tokens, {room} are needed")
        gap = (len(ids) - room) // max(count - 1, 1)
        return [start + ids[i * gap:i * gap + room] for i in range(count)]

    @torch.no_grad()
    def prefix(self, ids: Sequence[int]) -> Kv:
        cache = DynamicCache()
        self.model(torch.tensor([list(ids)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys[0].bfloat16().float().numpy(), layer.values[0].bfloat16().float().numpy())
                for layer in cache.layers]

    def _logits(self, kv: Sequence[tuple[torch.Tensor, torch.Tensor]], ids: Sequence[int]) -> torch.Tensor:
        cache = DynamicCache()
        for layer, (k, v) in enumerate(kv):
            cache.update(k[None], v[None], layer)
        past = kv[0][0].shape[1]
        positions = torch.arange(past, past + len(ids))[None]
        inputs = torch.tensor([list(ids)])
        return self.model(inputs, past_key_values=cache, position_ids=positions, use_cache=True).logits[0]

    @torch.no_grad()
    def log_probabilities(self, kv: Kv, ids: Sequence[int]) -> torch.Tensor:
        """Of every next token after each of ids that follow the prefix: f32 [len(ids), vocabulary]."""
        tensors = [(torch.from_numpy(k), torch.from_numpy(v)) for k, v in kv]
        return torch.log_softmax(self._logits(tensors, ids), -1)

    def gradients(self, kv: Kv, ids: Sequence[int], generator: torch.Generator) -> Kv:
        """Of sum log p(y) over the suffix with respect to the prefix's K (after rotation) and V, y sampled.

        The scores of sampled tokens are independent with mean zero, so the outer product of their sum has
        the expectation of the sum of theirs: one backward pass a sequence.
        """
        leaves = [(torch.from_numpy(k).requires_grad_(), torch.from_numpy(v).requires_grad_()) for k, v in kv]
        logp = torch.log_softmax(self._logits(leaves, ids), -1)
        with torch.no_grad():
            labels = torch.multinomial(logp.exp(), 1, generator=generator)
        logp.gather(1, labels).sum().backward()
        return [(k.grad.numpy(), v.grad.numpy()) for k, v in leaves]


def compress(kv: Kv, codec: Codec, block: int = 256, exact: int = 4) -> tuple[Kv, float]:
    """The prefix after a codec, its first tokens kept exact, and the bits a value of the rest took."""
    out: Kv = []
    bits = 0.0
    values = 0
    for layer, (k, v) in enumerate(kv):
        k2, v2, spent = codec(k[:, exact:], v[:, exact:], Place(layer, exact, block))
        out.append((np.concatenate([k[:, :exact], k2], axis=1), np.concatenate([v[:, :exact], v2], axis=1)))
        bits += spent
        values += k[:, exact:].size + v[:, exact:].size
    return out, bits / values


def divergence(base: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """KL(base || other), nats of each token: f64 [tokens]. Both log probabilities [tokens, vocabulary]."""
    return (base.exp() * (base - other)).sum(-1).double().clamp_min(0).numpy()
