"""The L2 adapter, made by LMCache 0.5.6's own plugin factory and driven by its interface."""

import os
import select
import time

import pytest
import torch

pytest.importorskip("lmcache.lmcache_native")
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey  # noqa: E402
from lmcache.v1.distributed.internal_api import L2StoreResult  # noqa: E402
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface  # noqa: E402
from lmcache.v1.distributed.l2_adapters.plugin_l2_adapter import PluginL2AdapterConfig, _create_plugin_adapter  # noqa: E402
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj  # noqa: E402

SHAPE = torch.Size([2, 4, 256, 64])


def obj(shape=SHAPE, dtype=torch.bfloat16, fill=None):
    size = shape.numel() * dtype.itemsize
    raw = torch.zeros(size, dtype=torch.uint8)
    if fill is not None:
        raw.copy_(torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(fill)))
    meta = MemoryObjMetadata(shape, dtype, raw.data_ptr(), size, 1, 0, MemoryFormat.KV_2LTD, shapes=[shape], dtypes=[dtype])
    made = TensorMemoryObj(raw, meta, None)
    made.keep = raw
    return made


def desc(shape=SHAPE, dtype=torch.bfloat16):
    return {0: MemoryLayoutDesc([shape], [dtype])}


def keys(count, model="org/model", rank=0, salt=""):
    return [ObjectKey(os.urandom(32), model, rank, 0, salt) for _ in range(count)]


class Driver:
    """What LMCache's controllers do: submit, wait for the descriptor, ask."""

    def __init__(self, endpoint, **params):
        config = PluginL2AdapterConfig.from_dict({"module_path": "tiercel_lmcache", "class_name": "TiercelL2Adapter",
                                                  "adapter_params": {"endpoint": endpoint, "revision": "r1", **params}})
        self.adapter = _create_plugin_adapter(config)

    def _wait(self, fd, result):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            found = result()
            if found is not None:
                return found
            select.select([fd], [], [], 0.1)
        raise AssertionError("no answer")

    def store(self, names, objects):
        task = self.adapter.submit_store_task(names, objects)
        return self._wait(self.adapter.get_store_event_fd(), lambda: self.adapter.pop_completed_store_tasks().get(task))

    def lookup(self, names, layouts=None):
        task = self.adapter.submit_lookup_and_lock_task(names, layouts or desc())
        found = self._wait(self.adapter.get_lookup_and_lock_event_fd(), lambda: self.adapter.query_lookup_and_lock_result(task))
        return [found.test(i) for i in range(len(names))]

    def load(self, names, objects):
        task = self.adapter.submit_load_task(names, objects)
        found = self._wait(self.adapter.get_load_event_fd(), lambda: self.adapter.query_load_result(task))
        return [found.test(i) for i in range(len(names))]


@pytest.fixture
def driver(node):
    made = []

    def make(endpoint=node.grpc, **params):
        made.append(Driver(endpoint, **params))
        return made[-1]

    yield make
    for one in made:
        one.adapter.close()


def test_lmcaches_factory_makes_it_and_nothing_is_abstract(driver):
    adapter = driver().adapter
    assert isinstance(adapter, L2AdapterInterface) and not type(adapter).__abstractmethods__
    descriptors = {adapter.get_store_event_fd(), adapter.get_lookup_and_lock_event_fd(), adapter.get_load_event_fd()}
    assert len(descriptors) == 3 and adapter.report_status()["is_healthy"]


def test_what_one_server_stored_another_loads_byte_for_byte(driver):
    names, objects = keys(5), [obj(fill=i) for i in range(5)]
    first, second = driver(), driver()
    assert first.store(names, objects) == L2StoreResult(True, sum(one.get_size() for one in objects))
    assert second.lookup(names) == [True] * 5
    places = [obj() for _ in names]
    assert second.load(names, places) == [True] * 5
    assert all(torch.equal(a.keep, b.keep) for a, b in zip(objects, places))


def test_what_is_not_there_is_told_key_by_key(driver):
    one = driver()
    names = keys(4)
    one.store(names[1:3], [obj(fill=1), obj(fill=2)])
    assert one.lookup(names) == [False, True, True, False]
    assert one.load(names, [obj() for _ in names]) == [False, True, True, False]


def test_objects_over_16_mib_travel_in_pieces(driver):
    shape = torch.Size([2, 32, 256, 640])  # 20 MiB.
    names, big = keys(2), [obj(shape, fill=3), obj(shape, fill=4)]
    one = driver()
    one.store(names, big)
    assert one.lookup(names, desc(shape)) == [True, True]
    places = [obj(shape), obj(shape)]
    assert one.load(names, places) == [True, True]
    assert all(torch.equal(a.keep, b.keep) for a, b in zip(big, places))


@pytest.mark.parametrize("what", ["revision", "dtype", "shape", "model", "rank", "salt"])
def test_never_a_cross_hit(driver, what):
    name = keys(1)[0]
    driver().store([name], [obj(fill=5)])
    other, layouts, place, reader = name, desc(), obj(), driver()
    if what == "revision":
        reader = driver(revision="r2")
    elif what == "dtype":
        layouts, place = desc(dtype=torch.float16), obj(dtype=torch.float16)
    elif what == "shape":
        shape = torch.Size([2, 2, 512, 64])
        layouts, place = desc(shape), obj(shape)
    elif what == "model":
        other = ObjectKey(name.chunk_hash, "org/other", 0)
    elif what == "rank":
        other = ObjectKey(name.chunk_hash, name.model_name, 1)
    else:
        other = ObjectKey(name.chunk_hash, name.model_name, 0, 0, "tenant")
    assert driver().lookup([name]) == [True]
    assert reader.lookup([other], layouts) == [False] and reader.load([other], [place]) == [False]


def test_a_node_that_dies_costs_misses_within_the_deadline(dying):
    one = Driver(dying.grpc, deadline_s=1.0)
    names = keys(3)
    one.store(names, [obj(fill=i) for i in range(3)])
    dying.kill()
    began = time.monotonic()
    assert one.lookup(names) == [False] * 3
    assert one.load(names, [obj() for _ in names]) == [False] * 3
    one.store(keys(1), [obj(fill=1)])
    assert time.monotonic() - began < 6
    one.adapter.close()


@pytest.mark.parametrize("params,why", [({"revision": ""}, "revision"), ({"endpont": "x"}, "endpont"), ({"deadline_s": 0}, "deadline_s")])
def test_params_that_are_wrong_are_told(driver, params, why):
    with pytest.raises(ValueError, match=why):
        driver(**params)
