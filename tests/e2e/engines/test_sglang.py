"""The HiCache backend, made by SGLang 0.5.23's own factory. The host pools are ours: SGLang's want a GPU's pinned memory."""

import hashlib
import os
import time

import pytest
import torch

storage = pytest.importorskip("sglang.srt.mem_cache.hicache_storage", exc_type=ImportError)
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, HiCacheStorageConfig, PoolHitPolicy, PoolName, PoolTransfer  # noqa: E402
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory  # noqa: E402

PAGE, LAYERS, HEADS, DIM = 16, 3, 2, 32


class Pool:
    """page_first: K and V apart, a page's bytes of all layers together; what get_page_buffer_meta says of it."""

    def __init__(self, pages=32, buffers=2, fill=None, dtype=torch.bfloat16):
        self.layout, self.dtype, self.page_size, self.layer_num, self.head_num, self.head_dim = "page_first", dtype, PAGE, LAYERS, HEADS, DIM
        shape = (buffers, pages * PAGE, LAYERS, HEADS, DIM)
        self.kv_buffer = torch.zeros(shape, dtype=dtype)
        if fill is not None:
            self.kv_buffer.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(fill)))
        self.buffers = buffers

    def get_page_buffer_meta(self, indices):
        size = PAGE * LAYERS * HEADS * DIM * self.dtype.itemsize
        ptrs = [self.kv_buffer[b, int(indices[i])].data_ptr() for i in range(0, len(indices), PAGE) for b in range(self.buffers)]
        return ptrs, [size] * len(ptrs)

    def pages(self, numbers):
        return torch.cat([torch.arange(n * PAGE, (n + 1) * PAGE) for n in numbers])

    def page(self, n):
        return self.kv_buffer[:, n * PAGE:(n + 1) * PAGE]


def config(extra, **changes):
    fields = dict(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1, is_mla_model=False, enable_storage_metrics=False,
                  is_page_first_layout=True, model_name="org/model", extra_config=extra)
    return HiCacheStorageConfig(**{**fields, **changes})


@pytest.fixture
def make(node):
    made = []

    def build(pool=None, extra=None, endpoint=node.grpc, **changes):
        own = {"backend_name": "tiercel", "module_path": "tiercel_sglang", "class_name": "TiercelHiCache", "interface_v1": 1,
               "endpoint": endpoint, "revision": "r1", **(extra or {})}
        pool = pool or Pool()
        backend = StorageBackendFactory._create_dynamic_backend(own, config(own, **changes), pool)
        backend.register_mem_pool_host(pool)
        made.append(backend)
        return backend, pool

    yield build
    for backend in made:
        backend.close()


def keys(count):
    return [hashlib.sha256(os.urandom(8)).hexdigest() for _ in range(count)]


def test_sglangs_factory_makes_it_and_nothing_is_abstract(make):
    backend, _ = make()
    assert isinstance(backend, HiCacheStorage) and not type(backend).__abstractmethods__


def test_pages_come_back_byte_for_byte(make):
    (first, ours), (second, theirs) = make(Pool(fill=1)), make()
    names = keys(4)
    assert first.batch_exists(names) == 0
    assert first.batch_set_v1(names, ours.pages([3, 1, 0, 9])) == [True] * 4
    assert second.batch_exists(names + keys(1)) == 4
    assert second.batch_get_v1(names, theirs.pages([5, 6, 7, 8])) == [True] * 4
    assert all(torch.equal(ours.page(a), theirs.page(b)) for a, b in zip([3, 1, 0, 9], [5, 6, 7, 8]))


def test_a_hit_ends_at_the_first_page_that_is_not_there(make):
    backend, pool = make(Pool(fill=2))
    names = keys(4)
    backend.batch_set_v1([names[0], names[1], names[3]], pool.pages([0, 1, 3]))
    assert backend.batch_exists(names) == 2
    assert backend.batch_get_v1(names, pool.pages([10, 11, 12, 13])) == [True, True, False, True]


def test_the_generic_path_moves_tensors(make):
    backend, _ = make(extra={"interface_v1": 0})
    names = keys(3)
    values = [torch.randn(100).bfloat16() for _ in names]
    assert backend.batch_set(names, values) and backend.batch_exists(names) == 3 and backend.exists(names[0])
    places = [torch.zeros(100, dtype=torch.bfloat16) for _ in names]
    assert all(torch.equal(a, b) for a, b in zip(values, backend.batch_get(names, places)))
    assert backend.get(keys(1)[0], torch.zeros(100, dtype=torch.bfloat16)) is None


def test_only_prefixes_that_every_pool_can_restore_are_hits(make):
    backend, kv = make(Pool(fill=3))
    state, whole = Pool(buffers=1, fill=4), Pool(buffers=1, fill=5)
    backend.register_mem_host_pool_v2(state, PoolName.MAMBA)
    backend.register_mem_host_pool_v2(whole, PoolName.INDEXER)
    names = keys(6)
    backend.batch_set_v1(names, kv.pages(range(6)))

    def transfer(pool, name, which, policy):
        return PoolTransfer(name=name, host_indices=pool.pages(range(len(which))), keys=which, hit_policy=policy)

    done = backend.batch_set_v2([transfer(state, PoolName.MAMBA, [names[1], names[4]], PoolHitPolicy.TRAILING_PAGES),
                                 transfer(whole, PoolName.INDEXER, names[:5], PoolHitPolicy.ALL_PAGES)])
    assert done == {PoolName.MAMBA: [True] * 2, PoolName.INDEXER: [True] * 5}
    found = backend.batch_exists_v2(names, [transfer(state, PoolName.MAMBA, names[:1], PoolHitPolicy.TRAILING_PAGES),
                                            transfer(whole, PoolName.INDEXER, names, PoolHitPolicy.ALL_PAGES)])
    assert found.kv_hit_pages == 5 and found.restorable_prefix_pages == [2, 5]
    got = backend.batch_get_v2([transfer(state, PoolName.MAMBA, [names[4], names[5]], PoolHitPolicy.TRAILING_PAGES)])
    assert got == {PoolName.MAMBA: [True, False]}


@pytest.mark.parametrize("changes", [{"extra": {"revision": "r2"}}, {"model_name": "org/other"}, {"tp_size": 2}, {"tp_size": 2, "tp_rank": 1},
                                     {"extra": {"salt": "tenant"}}, {"pool": Pool(dtype=torch.float16)}], ids=str)
def test_never_a_cross_hit(make, changes):
    backend, pool = make(Pool(fill=6))
    names = keys(3)
    backend.batch_set_v1(names, pool.pages([0, 1, 2]))
    other, theirs = make(**changes)
    assert other.batch_exists(names) == 0 and other.batch_get_v1(names, theirs.pages([0, 1, 2])) == [False] * 3


def test_ranks_of_an_mla_model_share_what_the_first_stores(make):
    first, ours = make(Pool(buffers=1, fill=7), is_mla_model=True, tp_size=2)
    second, theirs = make(Pool(buffers=1), is_mla_model=True, tp_size=2, tp_rank=1)
    names, unsaid = keys(2), keys(1)
    assert second.batch_set_v1(unsaid, theirs.pages([0])) == [True] and second.batch_exists(unsaid) == 0
    first.batch_set_v1(names, ours.pages([0, 1]))
    assert second.batch_exists(names) == 2


def test_nothing_raises_whatever_happens(make, dying):
    backend, pool = make(Pool(fill=8), endpoint=dying.grpc, extra={"deadline_s": 0.5})
    names = keys(3)
    backend.batch_set_v1(names, pool.pages([0, 1, 2]))
    assert backend.batch_get_v1(names, torch.arange(5)) == [False] * 3  # Not pages.
    dying.kill()
    began = time.monotonic()
    assert backend.batch_exists(names) == 0
    assert backend.batch_get_v1(names, pool.pages([0, 1, 2])) == [False] * 3 and backend.batch_set_v1(names, pool.pages([0, 1, 2])) == [False] * 3
    assert backend.batch_exists_v2(names).kv_hit_pages == 0
    unknown = PoolTransfer(name=PoolName.SWA, host_indices=pool.pages([0]), keys=names[:1])
    assert backend.batch_get_v2([unknown]) == {PoolName.SWA: [False]}
    assert time.monotonic() - began < 6 and backend.failures > 0


@pytest.mark.parametrize("extra,why", [({"revision": ""}, "revision"), ({"endpont": "x"}, "endpont")])
def test_configuration_that_is_wrong_is_told(make, extra, why):
    with pytest.raises(ValueError, match=why):
        make(extra=extra)
