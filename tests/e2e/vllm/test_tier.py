"""The secondary tier, made by vLLM's own factory and driven by its interface, over rows of host memory."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import SecondaryTierManager, TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from lib import Server

ROWS, ROW = 16, 1 << 16


def spec(**changes):
    config = OffloadingConfig(
        groups=(OffloadingGroupConfig(16, ("l0", "l1"), 0),), worker_kv_bytes_per_block=ROW, enable_kv_cache_events=True, extra_config={},
        engine_id=os.urandom(4).hex(), model=OffloadingModelConfig("org/model", changes.pop("dtype", "bfloat16")),
        cache=OffloadingCacheConfig(16, changes.pop("chunk", 1)),
        parallel=OffloadingParallelConfig(0, 1, changes.pop("tp", 1), 1, 1, 1, 0, 1, None, False), **changes)
    return SimpleNamespace(config=config, kv_events_config=SimpleNamespace(enable_kv_cache_events=True))


class Tier:
    """vLLM's tiering manager, as far as a tier sees it."""

    def __init__(self, endpoint, fill=None, row=ROW, options=None, **changes):
        self.memory = np.zeros((ROWS, row), np.uint8)
        if fill is not None:
            self.memory[:] = np.random.default_rng(fill).integers(0, 256, self.memory.shape, np.uint8)
        config = {"type": "TiercelTier", "module_path": "tiercel_vllm.tier", "endpoint": endpoint, "revision": "r1", "match_wait_s": 2.0,
                  **(options or {})}
        self.tier = SecondaryTierFactory.create_secondary_tier(config, memoryview(self.memory), spec(**changes))
        self.jobs = 0

    def move(self, keys, rows, load):
        self.jobs += 1
        job = TransferJob(self.jobs, keys, np.array(rows, np.int32), load, ReqContext("r"))
        (self.tier.submit_load if load else self.tier.submit_store)(job)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            for result in self.tier.get_finished_jobs():
                assert result.job_id == self.jobs
                return result
            time.sleep(0.001)
        raise AssertionError("no result")

    def lookup(self, keys, request="r"):
        context = ReqContext(request)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            found = [self.tier.lookup(key, context) for key in keys]
            self.tier.on_schedule_end(None)
            if LookupResult.RETRY not in found:
                return [one is LookupResult.HIT for one in found]
            time.sleep(0.001)
        raise AssertionError("no answer")


@pytest.fixture
def tier(node):
    made = []

    def make(endpoint=node.grpc, wait=True, **options):
        made.append(Tier(endpoint, **options))
        assert not wait or made[-1].tier.link.wait_open(10)
        return made[-1]

    yield make
    for one in made:
        one.tier.shutdown()


def keys(count):
    return [make_offload_key(os.urandom(32), 0) for _ in range(count)]


def test_vllms_factory_makes_it_and_nothing_is_abstract(tier):
    one = tier().tier
    assert isinstance(one, SecondaryTierManager) and not type(one).__abstractmethods__


def test_rows_come_back_byte_for_byte(tier):
    first, second, names = tier(fill=1), tier(), keys(4)
    assert first.lookup(names) == [False] * 4
    assert first.move(names, [3, 1, 0, 9], load=False).success
    assert second.lookup(names) == [True] * 4
    result = second.move(names, [5, 6, 7, 8], load=True)
    assert result.success and result.transfer_bytes == 4 * ROW
    assert np.array_equal(first.memory[[3, 1, 0, 9]], second.memory[[5, 6, 7, 8]])
    assert not second.memory[[0, 1, 2, 3, 4, 9]].any()


def test_rows_over_16_mib_travel_in_pieces(tier):
    big = 17 << 20
    first, second, names = tier(fill=2, row=big), tier(row=big), keys(2)
    assert first.move(names, [0, 1], load=False).success and second.lookup(names) == [True] * 2
    assert second.move(names, [4, 5], load=True).success and np.array_equal(first.memory[:2], second.memory[4:6])


def test_a_load_that_misses_says_which_keys_it_has_and_does_not_come_again(tier):
    first, names = tier(fill=3), keys(3)
    first.move(names[:2], [0, 1], load=False)
    first.lookup(names)
    result = first.move(names, [10, 11, 12], load=True)
    assert not result.success and result.successful_keys == names[:2]
    assert first.lookup(names) == [True, True, False]


def test_what_was_stored_is_an_event_and_what_a_load_misses_another(tier):
    one, names = tier(fill=4, options={"enable_kv_events": True}), keys(3)
    one.move(names[:2], [0, 1], load=False)
    (event,) = one.tier.take_events()
    assert event.keys == names[:2] and not event.removed and list(one.tier.take_events()) == []
    one.move(names, [4, 5, 6], load=True)
    (event,) = one.tier.take_events()
    assert event.keys == names[2:] and event.removed


@pytest.mark.parametrize("changes", [{"options": {"revision": "r2"}}, {"dtype": "float16"}, {"tp": 2}, {"chunk": 2}, {"kv_cache_layout": "BLHNC"}],
                         ids=str)
def test_never_a_cross_hit(tier, changes):
    names = keys(2)
    tier(fill=5).move(names, [0, 1], load=False)
    other = tier(**changes)
    assert other.lookup(names) == [False] * 2 and not other.move(names, [0, 1], load=True).success and not other.memory.any()


def test_draining_leaves_every_result_to_be_taken(tier):
    one, names = tier(fill=6), keys(4)
    one.tier.submit_store(TransferJob(7, names, np.arange(4), False, ReqContext("r")))
    one.tier.drain_jobs()
    assert not one.tier._moving and [result.job_id for result in one.tier.get_finished_jobs()] == [7] and not one.tier.has_pending_work()


def test_without_a_node_everything_is_a_miss_at_once(tier):
    began = time.monotonic()
    one, names = tier(endpoint="127.0.0.1:9", wait=False), keys(2)
    assert one.lookup(names) == [False] * 2 and not one.move(names, [0, 1], load=False).success
    assert time.monotonic() - began < 2


def test_a_node_that_dies_costs_misses():
    with Server() as server:
        one, names = Tier(server.grpc, fill=7, options={"deadline_s": 0.5, "match_wait_s": 0.2}), keys(2)
        assert one.tier.link.wait_open(10) and one.move(names, [0, 1], load=False).success
        server.kill()
        began = time.monotonic()
        assert not one.move(names, [2, 3], load=True).success
        assert one.lookup(names) == [False] * 2 and time.monotonic() - began < 3
        one.tier.shutdown()


def test_options_that_are_wrong_are_told(tier):
    with pytest.raises(TypeError, match="endpont"):
        tier(options={"endpont": "x"})
    with pytest.raises(ValueError, match="revision"):
        tier(options={"revision": ""})
