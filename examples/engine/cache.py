"""All that the engine does with Tiercel: match a prefix, load its pages, store new ones, in the class it accepts."""

import hashlib

import numpy as np
import tiercel
from llama import PAGE_TOKENS
from tiercel import codec
from tiercel import ConnectError as Unreachable  # noqa: F401


def block_hashes(ids):
    """The chained hash of each whole block of the prompt: it names all tokens up to there."""
    hashes, previous = [], bytes(32)
    for start in range(0, len(ids) - PAGE_TOKENS + 1, PAGE_TOKENS):
        tokens = np.asarray(ids[start : start + PAGE_TOKENS], "<u4").tobytes()
        previous = hashlib.sha256(previous + tokens).digest()
        hashes.append(previous)
    return hashes


class PrefixCache:
    def __init__(self, endpoint, config, transport=None, quality="exact", artifact=None):
        """quality: the class that is stored, and the worst that is loaded. artifact: bytes of the model's KVA1."""
        self._quality = quality
        # Exact: the one that is cheapest here. Lossy: the fewest bytes that the artifact allows, not the quickest.
        self._codec = "ec-c" if artifact and quality != "exact" else "auto"
        self._client = tiercel.Client(
            endpoint,
            transports=[transport] if transport else None,
            ucx_devices="lo" if transport == "ucx" else "",
            deadline_s=10.0,
            artifact=codec.load_artifact(artifact) if artifact else None,
        )
        self._layout = tiercel.KvLayout(
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            tokens_per_block=PAGE_TOKENS,
            dtype="bf16",
            k_order="htd",
            v_order="htd",
            packing="split",
        )
        # The weights' own digest: two files of one name must never share KV.
        # A lossy engine keeps to blocks of its own class, so that an exact one never builds on them.
        self._scope = tiercel.make_scope(model=config.name, revision=config.weights_digest, layout=self._layout,
                                         salt="" if quality == "exact" else quality)

    def close(self):
        self._client.close()

    def match(self, hashes):
        """How many leading blocks are there."""
        return self._client.match_prefix(self._chain(hashes), min_class=self._quality)

    def load(self, hashes, n, kv):
        """Fills pages 0 .. n - 1; returns (pages of whole prefix loaded, results)."""
        results = self._client.get_blocks(self._chain(hashes), 0, n, self._layout, *self._planes(kv, 0, n),
                                          min_class=self._quality)
        loaded = 0
        while loaded < n and results[loaded].status == "OK":
            loaded += 1
        return loaded, results

    def store(self, hashes, first, kv):
        """Stores the pages of the whole blocks from first on."""
        n = len(hashes) - first
        if n <= 0:
            return []
        return self._client.put_blocks(self._chain(hashes), first, n, self._layout, *self._planes(kv, first, n),
                                       put_class=self._quality, codec=self._codec)

    def codecs(self):
        """How many blocks were stored by each."""
        return self._client.stats()["puts_by_codec"]

    def transport(self):
        """("memfd", "session 5a: same host"): what carries the blocks, which one, and why."""
        for node in self._client.nodes():
            for line in node["transports"]:
                kind, _, reason = line.partition(" ")
                return kind, reason
        return "none", "no node"

    def _chain(self, hashes):
        chain = tiercel.Chain(scope=self._scope)
        for one in hashes:
            chain.append(one)
        return chain

    def _planes(self, kv, first, n):
        """Addresses of K and V planes, [n, layers] each."""
        return tuple(
            np.array(
                [[kv.plane_address(layer, page, which) for layer in range(len(kv.layers))] for page in range(first, first + n)],
                np.int64,
            )
            for which in (0, 1)
        )
