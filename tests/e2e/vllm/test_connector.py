"""Both sides of the connector against a real node, driven as vLLM drives them; vLLM's own classes where it has them."""

import inspect
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from harness import DIM, HEADS, LAYERS, PAGE, PAGES, Engine, Request, hashes, output, shape, tensors
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, supports_hma

from lib import CLI, Server, run
from tiercel import KvLayout
from tiercel_vllm import TiercelConnector
from tiercel_vllm.events import Audience
from tiercel_vllm.identity import Adapters, digest_of_folder
from tiercel_vllm.layout import Pages, Shape, Unsupported, describe
from tiercel_vllm.messages import WorkerMeta
from tiercel_vllm.pace import Pace
from tiercel_vllm.settings import parse
from tiercel_vllm.stats import TiercelPromMetrics, TiercelStats


def same(a, b, pages_a, pages_b):
    return all(torch.equal(a[name][x], b[name][y]) for name in a for x, y in zip(pages_a, pages_b, strict=True))


def load(engine, request, pages, computed=0):
    tokens = engine.ask(request, computed)
    engine.scheduler.load(request, pages, tokens)
    assert engine.until(lambda: request.request_id in engine.loaded)
    return tokens


# vLLM's own contract


def test_vllm_finds_the_connector_by_its_module_and_needs_no_more_of_it():
    from vllm.config import KVTransferConfig

    config = KVTransferConfig(kv_connector="TiercelConnector", kv_connector_module_path="tiercel_vllm", kv_role="kv_both")
    found = KVConnectorFactory.get_connector_class(config)
    assert found is TiercelConnector and not found.__abstractmethods__ and supports_hma(found)


def test_every_hook_takes_what_vllms_base_class_takes():
    for name, method in vars(TiercelConnector).items():
        base = getattr(KVConnectorBase_V1, name, None)
        if name.startswith("_") or not inspect.isfunction(base):
            continue
        assert list(inspect.signature(method).parameters) == list(inspect.signature(base).parameters), name


# Round trips


@pytest.mark.parametrize("pages_per_block", [1, 4])
def test_what_one_engine_computed_another_loads_byte_for_byte(engines, pages_per_block):
    of, names = shape(pages_per_block), hashes(8)
    first, second = engines(of, fill=1), engines(of)
    assert first.wait_open() and second.wait_open()
    request = Request("a", 8 * PAGE + 3, names)
    assert first.matched(request) == 0
    first.compute(request, [7, 3, 9, 1, 0, 5, 12, 63, 20])
    again = Request("b", 8 * PAGE + 3, names)
    assert second.matched(again) == 8 * PAGE
    places = [30, 31, 2, 40, 41, 42, 43, 50, 60]
    assert load(second, again, places) == 8 * PAGE
    assert same(first.tensors[0], second.tensors[0], [7, 3, 9, 1, 0, 5, 12, 63], places[:8]) and not second.bad
    untouched = sorted(set(range(PAGES)) - set(places[:8]))
    assert all(not tensor[untouched].any() for tensor in second.tensors[0].values())


def test_the_last_token_is_always_computed(engines):
    of, names = shape(), hashes(4)
    first, second = engines(of, fill=2), engines(of)
    assert first.wait_open() and second.wait_open()
    request = Request("a", 4 * PAGE, names)
    first.matched(request)
    first.compute(request, [1, 2, 3, 4])
    assert second.matched(Request("b", 4 * PAGE, names)) == 3 * PAGE


def test_a_prefix_that_ends_early_is_a_shorter_hit(engines):
    of, names = shape(), hashes(6)
    first, second = engines(of, fill=3), engines(of)
    assert first.wait_open() and second.wait_open()
    request = Request("a", 3 * PAGE + 1, names[:3])
    first.matched(request)
    first.compute(request, [1, 2, 3, 4])
    assert second.matched(Request("b", 6 * PAGE, names)) == 3 * PAGE
    assert second.matched(Request("c", 6 * PAGE, names), computed=2 * PAGE) == PAGE
    assert second.matched(Request("d", 6 * PAGE, names), computed=3 * PAGE) == 0


def test_pages_that_the_engine_has_already_are_not_written(engines):
    of, names = shape(4), hashes(8)
    first, second = engines(of, fill=4), engines(of, fill=99)
    assert first.wait_open() and second.wait_open()
    request = Request("a", 8 * PAGE + 1, names)
    first.matched(request)
    first.compute(request, list(range(9)))
    before = {name: tensor.clone() for name, tensor in second.tensors[0].items()}
    again, places = Request("b", 8 * PAGE + 1, names), list(range(20, 29))
    assert second.matched(again, computed=2 * PAGE) == 6 * PAGE
    load(second, again, places, computed=2 * PAGE)
    assert same(second.tensors[0], before, [20, 21], [20, 21])  # Its own.
    assert same(first.tensors[0], second.tensors[0], range(2, 8), range(22, 28))


def test_a_block_that_went_after_the_match_is_reported_from_there_on(engines, node):
    of, names = shape(), hashes(5)
    first, second = engines(of, fill=5), engines(of)
    assert first.wait_open() and second.wait_open()
    request = Request("a", 5 * PAGE + 1, names)
    first.matched(request)
    first.compute(request, list(range(6)))
    again = Request("b", 5 * PAGE + 1, names)
    assert second.matched(again) == 5 * PAGE
    from lib import CLI, run
    assert run(CLI, "-e", node.grpc, "clear", "--yes", "--scope", of.scope().hex())[0] == 0
    load(second, again, list(range(10, 16)))
    assert second.bad == set(range(10, 15))
    assert second.ask(again) == 0  # It is computed: asked once more, there is nothing to load.
    second.bad.clear()
    meta = second.step(output(new=[(again, list(range(10, 16)), 0, 5 * PAGE + 1)]))
    assert sum(len(save.pages) for save in meta.saves) == 5  # And stored again.


def test_generated_tokens_are_stored_as_their_blocks_fill(engines):
    of, names = shape(), hashes(3)
    engine = engines(of, fill=6)
    assert engine.wait_open()
    request = Request("a", 2 * PAGE, names[:2])
    assert engine.matched(request) == 0
    saves = []
    engine.step(output(new=[(request, [1, 2], 0, 2 * PAGE)]), lambda meta: saves.extend(meta.saves))
    request.block_hashes.append(names[2])
    request.num_tokens = 3 * PAGE
    engine.step(output(cached=[(request, [3], 3 * PAGE - 1, 1)]), lambda meta: saves.extend(meta.saves))
    assert [(save.first, save.pages) for save in saves] == [(0, [[1], [2]]), (2, [[3]])]
    assert engine.quiet()


@pytest.mark.parametrize("save,blocks", [("prompt", 2), ("none", 0)])
def test_what_is_stored_can_be_limited(engines, save, blocks):
    engine = engines(shape(), fill=7, save=save)
    assert engine.wait_open()
    request = Request("a", 3 * PAGE, hashes(3), prompt=2 * PAGE)
    engine.matched(request)
    meta = engine.step(output(new=[(request, [1, 2, 3], 0, 3 * PAGE)]))
    assert sum(len(one.pages) for one in meta.saves) == blocks


def test_a_block_is_not_given_to_the_cache_twice(engines):
    of, names = shape(), hashes(4)
    engine = engines(of, fill=8)
    assert engine.wait_open()
    one, two = Request("a", 4 * PAGE, names), Request("b", 4 * PAGE, names)
    engine.matched(one), engine.matched(two)
    meta = engine.step(output(new=[(one, [1, 2, 3, 4], 0, 4 * PAGE), (two, [1, 2, 3, 4], 0, 4 * PAGE)]))
    assert sum(len(save.pages) for save in meta.saves) == 4
    assert engine.quiet()
    third = Request("c", 4 * PAGE, names)
    engine.matched(third)
    assert not engine.step(output(new=[(third, [1, 2, 3, 4], 0, 4 * PAGE)])).saves


# Ends


def test_pages_stay_until_their_saves_have_ended(engines):
    engine = engines(shape(), fill=9)
    assert engine.wait_open()
    request = Request("a", 4 * PAGE, hashes(4))
    engine.matched(request)
    meta = engine.scheduler.step(output(new=[(request, [1, 2, 3, 4], 0, 4 * PAGE)]))
    worker = engine.workers[0]
    worker.load(meta), worker.save(meta)
    assert engine.scheduler.finished(request)  # Nothing is known to have ended.
    assert engine.until(lambda: "a" in engine.saved) and not worker._puts and not worker._chains


def test_a_request_that_stored_nothing_leaves_at_once(engines):
    engine = engines(shape())
    assert engine.wait_open()
    request = Request("a", PAGE - 1, [])
    assert engine.matched(request) == 0
    engine.step(output(new=[(request, [1], 0, PAGE - 1)]))
    assert not engine.scheduler.finished(request)
    engine.step(output())
    assert not engine.saved


def test_a_preempted_requests_pages_are_settled_before_they_are_reused(engines):
    engine = engines(shape(), fill=10)
    assert engine.wait_open()
    request = Request("a", 4 * PAGE, hashes(4))
    engine.matched(request)
    meta = engine.scheduler.step(output(new=[(request, [1, 2, 3, 4], 0, 4 * PAGE)]))
    worker = engine.workers[0]
    worker.load(meta), worker.save(meta)
    request.status.name = "PREEMPTED"
    meta = engine.scheduler.step(output())
    assert meta.preempted == ["a"]
    worker.settle(meta.preempted)
    assert not worker._putting


# Events


def events_of(engine, count, seconds=10):
    """At least so many, or those of a second in which nothing should come."""
    told, until = [], time.monotonic() + (seconds if count else 1)
    while len(told) < max(count, 1) and time.monotonic() < until:
        told += engine.scheduler.events.take()
        time.sleep(0.01)
    return told


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_every_rank_stored_is_an_event_that_vllms_decoder_reads(engines, ranks):
    import msgspec
    from vllm.distributed.kv_events import KVEventBatch
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

    of, names = shape(2, world=ranks), hashes(4)
    engine = engines(of, fill=70, ranks=ranks, audience=Audience(vllm=True))
    assert engine.wait_open()
    request = Request("a", 4 * PAGE, names)
    engine.matched(request)
    if ranks == 2:
        engine.workers[1]._saves = False
    engine.step(output(new=[(request, [1, 2, 3, 4], 0, 4 * PAGE)]))
    assert engine.quiet()
    told = events_of(engine, 2 if ranks == 1 else 0)
    if ranks == 2:
        assert told == []  # The other rank's part is not there.
        return
    sent = msgspec.msgpack.encode(KVEventBatch(ts=1.0, events=told))
    events = msgspec.msgpack.decode(sent, type=KVEventBatch).events
    known = [maybe_convert_block_hash(name) for name in names]
    assert [event.block_hashes for event in events] == [known[:2], known[2:]]
    assert [event.parent_block_hash for event in events] == [None, known[1]]
    assert [event.token_ids for event in events] == [list(range(2 * PAGE)), list(range(2 * PAGE, 4 * PAGE))]
    assert {(event.block_size, event.medium, event.locality) for event in events} == {(PAGE, "STORAGE", "REMOTE")}
    assert engine.scheduler.events.take() == []


def test_what_is_gone_is_told_in_vllms_stream_block_by_block_and_again_when_it_is_back():
    from vllm.distributed.kv_events import BlockRemoved, BlockStored

    with Server() as server:
        engine = Engine(server.grpc, shape(2), fill=71, audience=Audience(vllm=True), events_sweep_s=1.0)
        try:
            assert engine.wait_open()
            names = hashes(4)
            request = Request("a", 4 * PAGE, names)
            engine.matched(request)
            engine.compute(request, [1, 2, 3, 4])
            stored = events_of(engine, 2)
            run(CLI, "-e", server.grpc, "clear", "--yes")
            gone = events_of(engine, 2)
            # Not AllBlocksCleared: that would be the engine's own pages, too.
            assert [type(event) for event in gone] == [BlockRemoved] * 2 and {event.medium for event in gone} == {"STORAGE"}
            assert [event.block_hashes for event in gone] == [event.block_hashes for event in stored]
            again = Request("b", 4 * PAGE, names)
            engine.matched(again)
            engine.compute(again, [5, 6, 7, 8])
            back = events_of(engine, 2)
            assert [type(event) for event in back] == [BlockStored] * 2 and [event.token_ids for event in back] == [event.token_ids for event in stored]
            assert events_of(engine, 0) == []
        finally:
            engine.close()


# Many ranks


def test_a_hit_needs_the_blocks_of_every_rank(engines):
    of, names = shape(world=2), hashes(4)
    both, half = engines(of, ranks=2, fill=20), engines(of, ranks=2)
    assert both.wait_open() and half.wait_open()
    request = Request("a", 4 * PAGE + 1, names)
    both.matched(request)
    both.compute(request, list(range(5)))
    again = Request("b", 4 * PAGE + 1, names)
    assert half.matched(again) == 4 * PAGE
    half.scheduler.load(again, list(range(10, 15)), 4 * PAGE)
    assert half.until(lambda: not any(worker._loads for worker in half.workers) and "b" in half.loaded)
    for rank in (0, 1):
        assert same(both.tensors[rank], half.tensors[rank], range(4), range(10, 14))
    lonely = engines(of, ranks=2, fill=30)
    lonely.workers[1]._saves = False  # The second rank stores nothing.
    assert lonely.wait_open()
    other = Request("c", 4 * PAGE + 1, hashes(4))
    lonely.matched(other)
    lonely.step(output(new=[(other, list(range(5)), 0, 4 * PAGE + 1)]))
    assert lonely.quiet()
    assert half.matched(Request("d", 4 * PAGE + 1, other.block_hashes)) == 0


def test_ranks_with_equal_bytes_store_them_once(engines):
    of = shape(replicas=2)
    engine = engines(of, ranks=2, fill=40)
    assert engine.wait_open()
    request = Request("a", 4 * PAGE, hashes(4))
    engine.matched(request)
    engine.compute(request, [1, 2, 3, 4])
    assert engine.workers[0].stats.data["blocks_saved"] == 4 and "blocks_saved" not in engine.workers[1].stats.data


def test_other_worlds_share_nothing(engines):
    names = hashes(4)
    one = shape()
    two = Shape(KvLayout(layers=LAYERS, kv_heads=HEADS, head_dim=DIM, tokens_per_block=PAGE, dtype="fp32", k_order="hdt", v_order="htd",
                         world=2, engine="vllm-cpu", isa="vec"), PAGE, 2, 1, one.model, "", "", "")
    first, second = engines(one, fill=50), engines(two, ranks=2)
    assert first.wait_open() and second.wait_open()
    request = Request("a", 4 * PAGE + 1, names)
    first.matched(request)
    first.compute(request, list(range(5)))
    assert second.matched(Request("b", 4 * PAGE + 1, names)) == 0


# A cache that is away, slow or silent


def test_an_engine_starts_and_runs_without_a_node(engines):
    began = time.monotonic()
    engine = engines(shape(), endpoint="127.0.0.1:9", fill=60)
    request = Request("a", 4 * PAGE, hashes(4))
    assert engine.matched(request) == 0
    assert not engine.step(output(new=[(request, [1, 2, 3, 4], 0, 4 * PAGE)])).saves
    assert not engine.scheduler.finished(request)
    assert time.monotonic() - began < 1


def test_a_node_that_comes_late_is_used():
    with Server() as server:
        port = server.grpc
        server.kill()
        server.settings = (f"listen.grpc={port}",)
        engine = Engine(port, shape(), fill=61)
        try:
            assert not engine.wait_open(1)
            server.start()
            assert engine.wait_open(40)
        finally:
            engine.close()


def test_a_stopped_node_costs_one_wait_and_then_nothing():
    with Server() as server:
        of, names = shape(), hashes(4)
        engine = Engine(server.grpc, of, fill=62, match_wait_s=0.2)
        try:
            assert engine.wait_open()
            request = Request("a", 4 * PAGE, names)
            engine.matched(request)
            engine.compute(request, [1, 2, 3, 4])
            server.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            assert engine.matched(Request("b", 4 * PAGE, names)) == 0
            assert time.monotonic() - began < 1.0 and not engine.scheduler.link.open
            began = time.monotonic()
            for i in range(100):
                assert engine.matched(Request(f"c{i}", 4 * PAGE, names)) == 0
            assert time.monotonic() - began < 0.5
            server.process.send_signal(signal.SIGCONT)
            assert engine.wait_open(30)
            assert engine.matched(Request("d", 4 * PAGE, names)) == 3 * PAGE
        finally:
            server.process.send_signal(signal.SIGCONT)
            engine.close()


def test_a_node_killed_during_a_load_costs_no_more_than_the_deadline():
    with Server() as server:
        of, names = shape(), hashes(4)
        engine = Engine(server.grpc, of, fill=63, load_deadline_s=0.5)
        try:
            assert engine.wait_open()
            request = Request("a", 4 * PAGE + 1, names)
            engine.matched(request)
            engine.compute(request, [1, 2, 3, 4, 5])
            again = Request("b", 4 * PAGE + 1, names)
            assert engine.matched(again) == 4 * PAGE
            server.kill()
            began = time.monotonic()
            load(engine, again, list(range(10, 15)))
            assert time.monotonic() - began < 2.0
            assert engine.bad == set(range(10, 14)) and not engine.scheduler.link.open
            assert engine.ask(again) == 0
        finally:
            engine.close()


def test_scheduler_hooks_do_not_wait_for_the_cache(engines):
    """Of a prompt of 2,048 blocks, on a node that has none of them: the mean of each hook."""
    engine = engines(shape())
    assert engine.wait_open()
    arrive = ask = 0.0
    for i in range(50):
        request = Request(f"r{i}", 2048 * PAGE, hashes(2048))
        began = time.perf_counter()
        engine.scheduler.on_new_request(request)
        middle = time.perf_counter()
        first = engine.scheduler.matched_tokens(request, 0)
        ask += time.perf_counter() - middle
        arrive += middle - began
        assert first in (None, 0)
        engine.ask(request)
        engine.scheduler.finished(request)
    print(f"\narrival of 2,048 blocks {arrive / 50 * 1e6:.0f} us, lookup {ask / 50 * 1e6:.1f} us")
    assert ask / 50 < 1e-3 and arrive / 50 < 20e-3


# Pace


def test_a_load_that_would_take_longer_than_computing_is_declined(engines):
    of, names = shape(), hashes(4)
    engine = engines(of, fill=64)
    assert engine.wait_open()
    request = Request("a", 4 * PAGE + 1, names)
    engine.matched(request)
    engine.compute(request, list(range(5)))
    engine.scheduler._pace = Pace(2.0, tokens_per_s=1e6, block_s=1.0)
    assert engine.matched(Request("b", 4 * PAGE + 1, names)) == 0
    assert engine.scheduler.stats.data["loads_declined"] == 1
    until = time.monotonic() + 10
    while engine.scheduler._pace.block_s == 1.0 and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.scheduler._pace.block_s < 0.5  # It was measured anew, with nobody waiting.
    engine.scheduler._pace.tokens_per_s = 1.0
    assert engine.matched(Request("c", 4 * PAGE + 1, names)) == 4 * PAGE


def test_pace_learns_both_speeds_and_bounds_a_load_by_what_computing_takes():
    pace = Pace(2.0)
    assert pace.worth(10, 1280) and pace.deadline_s(1280) == 2.0
    pace.computed(8, 1.0)  # Too few tokens to say anything.
    assert pace.tokens_per_s is None
    pace.computed(1000, 1.0)
    pace.loaded(10, 0.1)
    assert pace.worth(10, 1280) and pace.deadline_s(1280) == pytest.approx(1.28) and pace.deadline_s(1) == 0.05
    pace.failed(0, 2.0)
    assert not pace.worth(10, 1280)
    pace.measured(0.01)
    assert pace.worth(10, 1280)


# Layouts and what is refused


def config(**changes):
    fields = dict(algo="sha256", tp=1, pp=1, cache_dtype="auto", hash_block=None)
    fields.update(changes)
    text = SimpleNamespace(rope_theta=1e4, rope_scaling=None)
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(model="org/model", revision="abc", dtype="torch.bfloat16", quantization=None, hf_config=SimpleNamespace(),
                                     hf_text_config=text),
        cache_config=SimpleNamespace(prefix_caching_hash_algo=fields["algo"], cache_dtype=fields["cache_dtype"]),
        parallel_config=SimpleNamespace(tensor_parallel_size=fields["tp"], pipeline_parallel_size=fields["pp"]))
    return vllm_config


def groups(*specs, layers=2):
    made = [SimpleNamespace(kv_cache_spec=spec, layer_names=[f"l{i}" for i in range(layers)]) for spec in specs]
    return SimpleNamespace(kv_cache_groups=made, num_blocks=4)


def full(**changes):
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    return FullAttentionSpec(**{**dict(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.bfloat16), **changes})


def test_a_gpu_models_kv_is_described_by_its_spec():
    of = describe(parse({}), config(tp=2), groups(full()), on_cpu=False)
    assert (of.layout.layers, of.layout.kv_heads, of.layout.head_dim, of.layout.dtype) == (2, 2, 32, "bf16")
    assert of.block_tokens == 128 and of.pages_per_block == 8 and of.world == 2 and of.layout.isa == ""


def test_a_cpu_models_kv_names_its_isa():
    of = describe(parse({}), config(), groups(full(block_size=128)), on_cpu=True)
    assert of.layout.k_order == "hdt" and of.layout.isa and of.layout.engine == "vllm-cpu"


def test_every_rank_of_an_mla_model_has_the_same_latent():
    from vllm.v1.kv_cache_interface import MLAAttentionSpec

    spec = MLAAttentionSpec(block_size=64, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
    of = describe(parse({}), config(tp=8), groups(spec), on_cpu=False)
    assert of.layout.packing == "latent" and of.world == 1 and of.replicas == 8


@pytest.mark.parametrize("why,make", [
    ("2 groups.*FullAttentionSpec.*SlidingWindowSpec", lambda: (config(), groups(full(), window()))),
    ("SlidingWindowSpec", lambda: (config(), groups(window()))),
    ("MambaSpec", lambda: (config(), groups(mamba()))),
    ("xxhash", lambda: (config(algo="xxhash"), groups(full()))),
    ("pipeline_parallel_size 2", lambda: (config(pp=2), groups(full()))),
    ("INT8_PER_TOKEN_HEAD", lambda: (config(), groups(full(kv_quant_mode=quant("INT8_PER_TOKEN_HEAD"))))),
])
def test_what_cannot_be_cached_is_refused_by_name(why, make):
    with pytest.raises(Unsupported, match=why):
        vllm_config, kv_config = make()
        describe(parse({}), vllm_config, kv_config, on_cpu=False)


def window():
    from vllm.v1.kv_cache_interface import SlidingWindowSpec

    return SlidingWindowSpec(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.bfloat16, sliding_window=64)


def mamba():
    from vllm.v1.kv_cache_interface import MambaSpec

    return MambaSpec(block_size=16, shapes=((4, 4),), dtypes=(torch.float32,))


def quant(name):
    from vllm.v1.kv_cache_interface import KVQuantMode

    return KVQuantMode[name]


def test_scopes_differ_by_all_that_makes_bytes_differ(tmp_path):
    def scope(settings=None, cpu=False, spec=None, **changes):
        return describe(parse(settings or {}), config(**changes), groups(spec or full()), on_cpu=cpu).scope()

    scopes = [scope(), scope({"revision": "other"}), scope({"model": "other"}), scope(spec=full(dtype=torch.float16)), scope(tp=2),
              scope({"tokens_per_block": 64}), scope({"quality": "balanced"}), scope(algo="sha256_cbor"), scope(spec=full(head_size=64)),
              scope(spec=full(num_kv_heads=4)), describe(parse({}), config(), groups(full(), layers=3), on_cpu=False).scope(),
              describe(parse({}), config(), groups(full()), on_cpu=False).scope(("lora",))]
    assert len(set(scopes)) == len(scopes) and scope() == scope()


LAYOUTS = {
    "cpu": (shape(), lambda: torch.zeros(PAGES, HEADS, PAGE, 2 * DIM)),
    "heads first": (shape(k_order="htd"), lambda: torch.zeros(PAGES, HEADS, PAGE, 2 * DIM)),
    "tokens first": (shape(k_order="htd"), lambda: torch.zeros(PAGES, PAGE, HEADS, 2 * DIM).transpose(1, 2)),
    "kernel blocks": (shape(k_order="htd"), lambda: torch.zeros(2 * PAGES, HEADS, PAGE // 2, 2 * DIM)),
    "latent": (shape(kv_heads=1, packing="latent", k_order="htd", head_dim_v=0), lambda: torch.zeros(PAGES, PAGE, DIM)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_pages_of_every_layout_come_back_as_they_were(node, name):
    import numpy as np

    import tiercel

    of, make = LAYOUTS[name]
    ours = {f"l{i}": make() for i in range(LAYERS)}
    for i, tensor in enumerate(ours.values()):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i)))
    theirs = {key: make() for key in ours}
    pages, other = Pages(of, ours, PAGES), Pages(of, theirs, PAGES)
    chain = tiercel.Chain(of.scope(), layout=of.layout)
    chain.extend(hashes(3))
    with tiercel.Client(node.grpc) as client:
        put = client.put_pages(chain, 0, of.layout, pages.paged, pages.table(np.array([[3], [1], [2]])))
        got = client.get_pages(chain, 0, of.layout, other.paged, other.table(np.array([[5], [6], [7]])))
    assert [r.status for r in put + got] == ["OK"] * 6
    parts = pages.parts
    for a, b in zip(ours.values(), theirs.values()):
        for mine, back in ((3, 5), (1, 6), (2, 7)):
            assert torch.equal(a[mine * parts:(mine + 1) * parts], b[back * parts:(back + 1) * parts])


def test_the_cpu_page_is_read_as_its_kernels_write_it(node):
    """K as [dim][token], V as [token][dim]: what a reader of whole planes sees of one page."""
    import numpy as np

    import tiercel

    of = shape()
    ours = tensors(fill=3)
    chain = tiercel.Chain(of.scope(), layout=of.layout)
    chain.extend(hashes(1))
    k, v = (np.empty((LAYERS, HEADS, DIM, PAGE), np.float32), np.empty((LAYERS, HEADS, PAGE, DIM), np.float32))
    places = [(plane.ctypes.data + np.arange(LAYERS) * plane.strides[0])[None] for plane in (k, v)]
    with tiercel.Client(node.grpc) as client:
        client.put_pages(chain, 0, of.layout, Pages(of, ours, PAGES).paged, np.array([[9]]))
        assert client.get_blocks(chain, 0, 1, of.layout, *places)[0].ok
    for layer, tensor in enumerate(ours.values()):
        flat = tensor[9].reshape(HEADS, -1).numpy()
        assert np.array_equal(k[layer], flat[:, :DIM * PAGE].reshape(HEADS, DIM, PAGE))
        assert np.array_equal(v[layer], flat[:, DIM * PAGE:].reshape(HEADS, PAGE, DIM))


def test_tensors_that_are_not_what_was_described_are_refused():
    of = shape()
    with pytest.raises(Unsupported, match="of 3 layers"):
        Pages(of, {"l0": tensors()["layer.0"]}, PAGES)
    with pytest.raises(Unsupported, match="device"):
        Pages(of, {f"l{i}": torch.zeros(PAGES, HEADS, PAGE, 2 * DIM, device="meta") for i in range(LAYERS)}, PAGES)
    with pytest.raises(Unsupported, match="was described"):
        Pages(of, {f"l{i}": torch.zeros(PAGES, HEADS, PAGE, DIM) for i in range(LAYERS)}, PAGES)


# Adapters, weights, settings, counts


def test_an_adapter_is_known_by_its_weights(engines, tmp_path):
    for name, weights in (("one", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
    adapters = Adapters()
    until = time.monotonic() + 10
    while None in (ids := [adapters("lora", str(tmp_path / name)) for name in ("one", "two")]) and time.monotonic() < until:
        time.sleep(0.01)
    assert None not in ids and ids[0] != ids[1]
    assert adapters("lora", "org/adapter-on-a-hub") is None
    engine = engines(shape())
    lora = SimpleNamespace(lora_name="lora", lora_path="org/adapter-on-a-hub")
    request = Request("a", 4 * PAGE, hashes(4), lora=lora)
    assert engine.wait_open() and engine.matched(request) == 0
    assert not engine.step(output(new=[(request, [1, 2, 3, 4], 0, 4 * PAGE)])).saves


def test_a_local_folder_is_known_by_every_byte_of_its_weights(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 << 20))
    before = digest_of_folder(str(tmp_path), "revision")
    data = bytearray(weights.read_bytes())
    data[1500000] ^= 1
    weights.write_bytes(data)
    assert digest_of_folder(str(tmp_path), "revision") != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="revision: .*no weights"):
        digest_of_folder(str(tmp_path / "empty"), "revision")


@pytest.mark.parametrize("extra,why", [
    ({"endpont": "x"}, "endpont: no such key; did you mean endpoint"), ({"load": "yes"}, "load: expected bool"),
    ({"quality": "best"}, "quality: 'best' is none of"), ({"match_wait_s": 0}, "match_wait_s: must be positive"),
    ({"transports": "grpc"}, "transports: expected a list"), ({"artifact": "x"}, "artifact: of no use"),
])
def test_settings_that_are_wrong_are_told(extra, why):
    with pytest.raises(ValueError, match=why):
        parse(extra)


def test_counts_add_up_and_reach_prometheus():
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    registry = CollectorRegistry()
    kinds = {Gauge: Gauge, Histogram: Histogram, Counter: lambda **about: Counter(**about, registry=registry)}
    metrics = TiercelPromMetrics(SimpleNamespace(kv_transfer_config=None), kinds, ["model", "engine"], {0: ["m", "0"]})
    stats = TiercelStats({"blocks_loaded": 3})
    stats.aggregate(TiercelStats({"blocks_loaded": 4, "missed_evicted": 2}))
    metrics.observe(stats.to_dict())
    assert registry.get_sample_value("vllm:tiercel_blocks_loaded_total", {"model": "m", "engine": "0"}) == 7
    assert registry.get_sample_value("vllm:tiercel_blocks_missed_total", {"model": "m", "engine": "0", "reason": "evicted"}) == 2
    assert TiercelConnector.build_kv_connector_stats(stats.to_dict()).reduce()["tiercel blocks_loaded"] == 7
    assert stats.take().data and stats.take() is None


def test_workers_words_are_added_up():
    one, two = WorkerMeta(saved={"a": 1}), WorkerMeta(saved={"a": 2, "b": 1}, trouble="x")
    told = one.aggregate(two)
    assert told.saved == {"a": 3, "b": 1} and told.trouble == "x"


def test_a_link_closes_at_trouble_and_opens_when_its_probe_succeeds(links):
    good = threading.Event()
    link = links({}, lambda client: good.is_set(), "test", factory=lambda **_: SimpleNamespace(close=lambda: None))
    assert link.wait_open(5)
    link.trouble("trouble")
    assert not link.open and not link.wait_open(0.6)
    good.set()
    assert link.wait_open(5) and link.closings == 1
