"""Who owns a run anchor: weighted rendezvous hashing in integers, as docs/wire.md, "Placement"."""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

from .keys import field_hash

_MASK = (1 << 64) - 1


def _mix64(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def shard_seed(node_id: str, shard: int) -> int:
    return int.from_bytes(field_hash("tiercel shard v1", node_id, shard)[:8], "little")


def placement_hash(anchor: bytes, seed: int) -> int:
    a0, a1 = struct.unpack("<QQ", anchor[:16])
    return _mix64(_mix64(a0 ^ seed) ^ a1)


def neg_log2_fixed(value: int) -> int:
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


class _Slot(NamedTuple):
    node_id: str
    shard: int
    seed: int
    weight: int
    zone: str


class Placement:
    """Of a view: a dict or its JSON, {"epoch", "nodes": [{"id", "endpoint", "zone"?, "shards"}]}."""

    def __init__(self, view: str | bytes | dict[str, Any]) -> None:
        parsed = json.loads(view) if isinstance(view, (str, bytes)) else view
        self._slots = [
            _Slot(node["id"], shard, shard_seed(node["id"], shard), weight, node.get("zone", ""))
            for node in sorted(parsed["nodes"], key=lambda n: n["id"].encode())
            for shard, weight in enumerate(node["shards"])
            if weight
        ]
        if not self._slots:
            raise ValueError("the view has no shard of positive weight")

    @staticmethod
    def _best(anchor: bytes, slots: list[_Slot]) -> _Slot:
        def cost(slot: _Slot) -> int:
            return neg_log2_fixed(placement_hash(anchor, slot.seed))

        best, best_cost = slots[0], cost(slots[0])
        for slot in slots[1:]:
            slot_cost = cost(slot)
            if slot.weight * best_cost > best.weight * slot_cost:
                best, best_cost = slot, slot_cost
        return best

    def owner(self, anchor: bytes) -> tuple[str, int]:
        """(node id, shard)."""
        best = self._best(anchor, self._slots)
        return best.node_id, best.shard

    def second(self, anchor: bytes) -> tuple[str, int]:
        """The best on another node, in another zone if there is one; with one node, the owner."""
        owner = self._best(anchor, self._slots)
        others = [s for s in self._slots if s.node_id != owner.node_id]
        elsewhere = [s for s in others if s.zone != owner.zone]
        best = self._best(anchor, elsewhere or others or [owner])
        return best.node_id, best.shard
