import os

import tiercel
from kv import layout
from tiercel import keys, placement


def test_scopes(golden):
    for vector in golden("scope"):
        fields = {**vector, "head_dim": vector["head_dim_k"]}
        want = bytes.fromhex(fields.pop("scope"))
        del fields["head_dim_k"]
        assert keys.scope(**fields) == want
        # The core spells enumerations as words.
        name = {v: k for k, v in keys.DTYPES.items()}[fields["dtype"]]
        if name == "opaque":
            continue
        orders = {v: k for k, v in keys.ORDERS.items()}
        packings = {v: k for k, v in keys.PACKINGS.items()}
        lay = tiercel.KvLayout(
            dtype=name,
            k_order=orders[fields["k_order"]],
            v_order=orders[fields["v_order"]],
            packing=packings[fields["packing"]],
            **{
                k: fields[k]
                for k in (
                    "layers kv_heads head_dim head_dim_v tokens_per_block world engine isa".split()
                )
            },
        )
        rest = {k: fields[k] for k in ("model", "revision", "adapters", "rope", "salt")}
        assert tiercel.make_scope(layout=lay, **rest) == want


def test_block_keys(golden):
    for v in golden("block_key"):
        scope, engine_hash = bytes.fromhex(v["scope"]), bytes.fromhex(v["engine_hash"])
        space = {"name_space": v["name_space"], "lineage": v["lineage"]}
        key = keys.block_key(
            scope, engine_hash, part=v["part"], allow_short_hashes=True, **space
        )
        anchor = keys.run_anchor(scope, engine_hash, allow_short_hashes=True, **space)
        assert key.hex() == v["block_key"]
        assert anchor.hex() == v["placement_key"]
        names = {code: name for name, code in keys.CLASSES.items()}
        chain = tiercel.Chain(
            scope,
            name_space=v["name_space"],
            part=v["part"],
            lineage=names[v["lineage"]],
            allow_short_hashes=True,
        )
        chain.append(engine_hash)
        assert chain.key(0) == key and chain.anchor(0) == anchor


def test_placement(golden):
    vectors = golden("placement")
    where = placement.Placement(vectors["view"])
    for v in vectors["anchors"]:
        anchor = bytes.fromhex(v["anchor"])
        assert "%s/%d" % where.owner(anchor) == v["owner"]
        assert "%s/%d" % where.second(anchor) == v["second"]
        seed = placement.shard_seed("a", 0)
        assert placement.placement_hash(anchor, seed) == int(v["hash_a0"])


def test_anchors_change_every_32_blocks():
    scope = tiercel.make_scope(model="m", layout=layout())
    chain = tiercel.Chain(scope)
    hashes = [os.urandom(32) for _ in range(65)]
    chain.extend(hashes)
    for i in (0, 31, 32, 64):
        assert chain.anchor(i) == keys.run_anchor(scope, hashes[i - i % 32])
