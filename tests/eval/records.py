"""A prefix through real records: each block encoded by the package's extension, its bytes counted, decoded again.

The same accounting as `_replay.compress`: the first tokens are exact in every format, so they and their 16 bits a value
are left out; all else that a record holds (its head, directory, digests, streams) is counted.
"""

from __future__ import annotations

import numpy as np
from tiercel._replay import Kv
from tiercel.artifact import Artifact, K, V

try:
    from tiercel import KvLayout
    from tiercel import codec as _codec
except ImportError:  # The tree's Python alone.
    _codec = None

NAMES = ("EC-X", "EC-K", "EC-C", "LLE")
NO_LEVELS = ", no levels"  # Behind a codec's name: all tokens have the step of the class.


def missing(artifact: Artifact) -> str:
    """Why there are no records of that artifact; empty: there are."""
    if _codec is None:
        return "the package's extension is not at hand"
    try:
        _codec.load_artifact(artifact.dump())
    except RuntimeError as error:
        return str(error)
    return ""


class Records:
    """Encoder and decoder of one model's blocks, with its artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._loaded = _codec.load_artifact(artifact.dump())

    def _layout(self, tokens: int) -> KvLayout:
        a = self._artifact
        return KvLayout(layers=a.layers, kv_heads=a.kv_heads, head_dim=a.head_dim(K), head_dim_v=a.head_dim(V),
                        tokens_per_block=tokens, dtype="bf16")

    def compress(self, kv: Kv, name: str, step: float, block: int, exact: int) -> tuple[Kv, float]:
        """The prefix after the codec, and the bits of a value that is not in its first `exact` tokens."""
        layers, tokens = len(kv), kv[0][0].shape[1]
        out: Kv = [(k.copy(), v.copy()) for k, v in kv]
        size = 0
        for first in range(0, tokens, block):
            part = slice(first, min(first + block, tokens))
            layout = self._layout(part.stop - part.start)
            raw = b"".join(_bits(x[:, part]) for pair in kv for x in pair)
            record = _codec.encode(layout, name.lower(), raw, quality="balanced", artifact=self._loaded, pos0=first,
                                   exact_tokens=exact, step=step)
            size += len(record)
            back = np.frombuffer(_codec.decode(record, layout), np.uint16)
            at = 0
            for layer in range(layers):
                for x in out[layer]:
                    heads, _, dim = x.shape
                    count = heads * (part.stop - part.start) * dim
                    values = (back[at:at + count].astype(np.uint32) << 16).view(np.float32)
                    x[:, part] = values.reshape(-1, heads, dim).transpose(1, 0, 2)
                    at += count
        lossless = name == "LLE"
        skipped = 0 if lossless else exact
        every = sum(x[:, :1].size for pair in kv for x in pair)  # Values of a token.
        return out, (8.0 * size - 16.0 * skipped * every) / ((tokens - skipped) * every)


def _bits(x: np.ndarray) -> bytes:
    """[heads, tokens, dim] of bf16 values -> bytes [tokens, heads, dim]."""
    flat = np.ascontiguousarray(x.transpose(1, 0, 2), np.float32).view(np.uint32)
    return (flat >> 16).astype(np.uint16).tobytes()


