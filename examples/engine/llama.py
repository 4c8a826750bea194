"""A forward pass of the Llama architecture in numpy, with a paged KV cache in bf16 as engines have it.

The cache of one layer is an array of pages, [page][K or V][kv head][token][dim], of 16-bit words. Attention
reads those pages, so it does not matter whether this process computed them or the cache brought them. A
prompt is prefilled in chunks at absolute multiples of the page, so that a cold and a warm run do the same
arithmetic on the same operands and say the same words.
"""

from dataclasses import dataclass

import numpy as np

PAGE_TOKENS = 128


def to_bf16(x):
    """Round to nearest even; float32 in, uint16 out."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


@dataclass
class Config:
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_epsilon: float
    rope_base: float
    name: str
    weights_digest: str

    @classmethod
    def of(cls, gguf):
        metadata = gguf.metadata
        m = lambda key: metadata["llama." + key]  # noqa: E731
        return cls(
            layers=m("block_count"),
            width=m("embedding_length"),
            heads=m("attention.head_count"),
            kv_heads=m("attention.head_count_kv"),
            head_dim=m("embedding_length") // m("attention.head_count"),
            norm_epsilon=m("attention.layer_norm_rms_epsilon"),
            rope_base=m("rope.freq_base"),
            name=metadata.get("general.name", "llama"),
            weights_digest=gguf.digest(),
        )


class PagedKv:
    """The pages of one sequence; page i holds tokens i * PAGE_TOKENS and on."""

    def __init__(self, config, max_tokens):
        pages = -(-max_tokens // PAGE_TOKENS)
        shape = (pages, 2, config.kv_heads, PAGE_TOKENS, config.head_dim)
        self.layers = [np.zeros(shape, np.uint16) for _ in range(config.layers)]
        self.tokens = 0  # Filled from the front.

    def write(self, layer, position, k, v):
        """k, v: [tokens, kv_heads, head_dim] float32, within one page."""
        page, at = divmod(position, PAGE_TOKENS)
        end = at + len(k)
        self.layers[layer][page, 0, :, at:end] = to_bf16(k.swapaxes(0, 1))
        self.layers[layer][page, 1, :, at:end] = to_bf16(v.swapaxes(0, 1))

    def read(self, layer, tokens):
        """K and V of the first tokens: [kv_heads, tokens, head_dim] float32."""
        pages = -(-tokens // PAGE_TOKENS)
        both = from_bf16(self.layers[layer][:pages])  # [page, 2, head, token, dim]
        flat = both.transpose(1, 2, 0, 3, 4).reshape(2, both.shape[2], pages * PAGE_TOKENS, -1)
        return flat[0, :, :tokens], flat[1, :, :tokens]

    def plane_address(self, layer, page, which):
        """Where one page's K (0) or V (1) of one layer lies."""
        return self.layers[layer][page, which].ctypes.data


class Llama:
    def __init__(self, gguf):
        c = self.config = Config.of(gguf)
        self._inverse_frequency = (c.rope_base ** (-np.arange(0, c.head_dim, 2) / c.head_dim)).astype(np.float32)
        self._embedding = gguf.tensor("token_embd.weight")
        self._final_norm = gguf.tensor("output_norm.weight")
        self._layers = []
        for i in range(c.layers):
            weight = lambda name: gguf.tensor(f"blk.{i}.{name}.weight")  # noqa: B023, E731
            qkv = [
                self._halves(weight("attn_q"), c.heads),
                self._halves(weight("attn_k"), c.kv_heads),
                weight("attn_v"),
            ]
            self._layers.append(
                dict(
                    attention_norm=weight("attn_norm"),
                    qkv=np.ascontiguousarray(np.concatenate(qkv).T),
                    output=np.ascontiguousarray(weight("attn_output").T),
                    ffn_norm=weight("ffn_norm"),
                    gate_up=np.ascontiguousarray(np.concatenate([weight("ffn_gate"), weight("ffn_up")]).T),
                    down=np.ascontiguousarray(weight("ffn_down").T),
                )
            )

    def prefill(self, ids, kv):
        """Appends ids, which follow what kv holds; returns the logits after the last of them."""
        done = 0
        while done < len(ids):
            room = PAGE_TOKENS - kv.tokens % PAGE_TOKENS
            hidden = self._step(ids[done : done + room], kv)
            done += min(room, len(ids) - done)
        last = self._norm(hidden[-1:], self._final_norm)
        return (last @ self._embedding.T)[0]

    def _step(self, ids, kv):
        c = self.config
        n = len(ids)
        positions = np.arange(kv.tokens, kv.tokens + n)
        angle = positions[:, None].astype(np.float32) * self._inverse_frequency
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        total = kv.tokens + n
        mask = np.where(np.arange(total)[None] > positions[:, None], np.float32(-1e30), np.float32(0))
        scale = np.float32(c.head_dim**-0.5)
        group = c.heads // c.kv_heads
        x = self._embedding[ids]
        for number, layer in enumerate(self._layers):
            y = self._norm(x, layer["attention_norm"]) @ layer["qkv"]
            q, k, v = np.split(y, [c.width, c.width + c.kv_heads * c.head_dim], axis=1)
            q = self._rotate(q.reshape(n, c.heads, c.head_dim), cos, sin)
            k = self._rotate(k.reshape(n, c.kv_heads, c.head_dim), cos, sin)
            kv.write(number, kv.tokens, k, v.reshape(n, c.kv_heads, c.head_dim))
            keys, values = kv.read(number, total)
            mixed = np.empty((n, c.heads, c.head_dim), np.float32)
            for head in range(c.heads):
                scores = (q[:, head] @ keys[head // group].T) * scale + mask
                scores -= scores.max(axis=1, keepdims=True)
                np.exp(scores, out=scores)
                mixed[:, head] = (scores @ values[head // group]) / scores.sum(axis=1, keepdims=True)
            x = x + mixed.reshape(n, -1) @ layer["output"]
            gate, up = np.split(self._norm(x, layer["ffn_norm"]) @ layer["gate_up"], 2, axis=1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["down"]
        kv.tokens = total
        return x

    def _norm(self, x, weight):
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(self.config.norm_epsilon)) * weight

    @staticmethod
    def _rotate(x, cos, sin):
        """Rotary embedding on half-and-half pairs (Su et al., RoFormer)."""
        a, b = np.split(x, 2, axis=2)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=2)

    def _halves(self, weight, heads):
        """GGUF interleaves the two halves of each head's rotary pairs; undo that."""
        d = self.config.head_dim
        return weight.reshape(heads, d // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
