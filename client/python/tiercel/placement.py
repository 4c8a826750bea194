"""Who owns a run anchor: weighted rendezvous hashing in integers, as docs/wire.md, "Placement"."""

import json
import struct

from .keys import field_hash

_MASK = (1 << 64) - 1


def _mix64(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def shard_seed(node_id, shard):
    return struct.unpack("<Q", field_hash("tiercel shard v1", node_id, shard)[:8])[0]


def placement_hash(anchor, seed):
    a0, a1 = struct.unpack("<QQ", anchor[:16])
    return _mix64(_mix64(a0 ^ seed) ^ a1)


def neg_log2_fixed(value):
    """-log2((value + 1) / 2^64) in units of 2^-32, by repeated squaring of the mantissa."""
    if value == _MASK:
        return 0
    value += 1
    exponent = value.bit_length() - 1
    mantissa = value << (63 - exponent)
    fraction = 0
    for _ in range(32):
        square = mantissa * mantissa
        fraction <<= 1
        if square >> 127:
            fraction |= 1
            mantissa = square >> 64
        else:
            mantissa = square >> 63
    return (64 << 32) - ((exponent << 32) + fraction)


class Placement:
    """Of a view: a dict or its JSON, {"epoch", "nodes": [{"id", "endpoint", "zone"?, "shards"}]}."""

    def __init__(self, view):
        if isinstance(view, (str, bytes)):
            view = json.loads(view)
        self._slots = []  # (node id, shard, seed, weight, zone)
        for node in sorted(view["nodes"], key=lambda n: n["id"].encode()):
            for shard, weight in enumerate(node["shards"]):
                if weight:
                    seed = shard_seed(node["id"], shard)
                    self._slots.append((node["id"], shard, seed, weight, node.get("zone", "")))
        if not self._slots:
            raise ValueError("the view has no shard of positive weight")

    @staticmethod
    def _best(anchor, slots):
        best, best_cost = None, 0
        for slot in slots:
            cost = neg_log2_fixed(placement_hash(anchor, slot[2]))
            if best is None or slot[3] * best_cost > best[3] * cost:
                best, best_cost = slot, cost
        return best

    def owner(self, anchor):
        """(node id, shard)."""
        return self._best(anchor, self._slots)[:2]

    def second(self, anchor):
        """The best on another node, in another zone where there is one; with one node, the owner."""
        owner = self._best(anchor, self._slots)
        others = [s for s in self._slots if s[0] != owner[0]]
        elsewhere = [s for s in others if s[4] != owner[4]]
        best = self._best(anchor, elsewhere or others)
        return (best or owner)[:2]
