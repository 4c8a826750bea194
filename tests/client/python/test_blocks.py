import os
import threading
import time

import numpy as np
import pytest
import tiercel
from kv import Cache, chain, layout


@pytest.fixture(params=["memfd", "grpc", "ucx"])
def way(request, endpoint):
    options = {"ucx_devices": "lo"} if request.param == "ucx" else {}
    with tiercel.Client(endpoint, transports=[request.param], **options) as client:
        assert any(request.param in t for node in client.nodes() for t in node["transports"])
        yield client


@pytest.mark.parametrize("blocks", [1, 40])
def test_blocks_come_back_as_they_were(way, blocks):
    lay = layout()
    ch = chain(lay, blocks)
    out, into = Cache(lay, blocks, fill=1), Cache(lay, blocks)
    assert way.match_prefix(ch) == 0
    put = way.put_blocks(ch, 0, blocks, lay, out.k_ptrs, out.v_ptrs)
    assert [r.status for r in put] == ["OK"] * blocks
    assert put[0].bytes == lay.block_bytes
    assert put[0].record_bytes < lay.block_bytes  # Lossless, and smaller.
    assert way.match_prefix(ch, hold=True) == blocks
    got = way.get_blocks(ch, 0, blocks, lay, into.k_ptrs, into.v_ptrs)
    assert [r.status for r in got] == ["OK"] * blocks
    assert got[0].tier in ("host", "ssd") and got[0].reason == "none"
    assert into == out


def test_blocks_over_sixteen_mebibytes(client):
    lay = tiercel.KvLayout(layers=12, kv_heads=16, head_dim=128, tokens_per_block=256, dtype="bf16")
    assert lay.block_bytes > 16 << 20
    ch = tiercel.Chain(os.urandom(16), layout=lay)
    ch.append(os.urandom(32))
    out, into = Cache(lay, 1, fill=3), Cache(lay, 1)
    put = client.put_blocks(ch, 0, 1, lay, out.k_ptrs, out.v_ptrs, deadline_s=20)
    assert [r.status for r in put] == ["OK"] and put[0].bytes == lay.block_bytes
    assert client.match_prefix(ch) == 1
    got = client.get_blocks(ch, 0, 1, lay, into.k_ptrs, into.v_ptrs, deadline_s=20)
    assert [r.status for r in got] == ["OK"] and into == out


def test_a_part_of_a_chain_and_some_layers(client):
    lay = layout()
    ch = chain(lay, 8)
    out, into = Cache(lay, 8, fill=2), Cache(lay, 8)
    client.put_blocks(ch, 0, 8, lay, out.k_ptrs, out.v_ptrs)
    got = client.get_blocks(
        ch, 3, 2, lay, into.k_ptrs[3:5], into.v_ptrs[3:5], layer_begin=1, layer_end=3
    )
    assert [r.status for r in got] == ["OK", "OK"]
    assert np.array_equal(into.k[3:5, 1:3], out.k[3:5, 1:3])
    assert not into.k[3:5, 0].any() and not into.k[:3].any() and not into.k[5:].any()


@pytest.mark.parametrize("packing", ["interleaved", "latent"])
def test_packings_of_one_plane_a_layer(client, packing):
    lay = layout(packing=packing)
    ch = chain(lay, 3)
    size = lay.k_plane_bytes + lay.v_plane_bytes
    rng = np.random.default_rng(3)
    out = rng.integers(0, 256, (3, lay.layers, size), dtype=np.uint8)
    into = np.zeros_like(out)
    assert [r.status for r in client.put_blocks(ch, 0, 3, lay, Cache._ptrs(out))] == ["OK"] * 3
    assert [r.status for r in client.get_blocks(ch, 0, 3, lay, Cache._ptrs(into))] == ["OK"] * 3
    assert np.array_equal(out, into)


def test_a_paged_cache_of_smaller_pages(client):
    # [2 (K, V)][pages][heads][tokens][dim] a layer, four pages of 4 tokens a block.
    lay = layout(k_order="htd", v_order="htd")
    rng = np.random.default_rng(4)
    n_pages, shape = 32, (2, 32, lay.kv_heads, 4, lay.head_dim)
    caches = [rng.integers(0, 65536, shape, dtype=np.uint16) for _ in range(lay.layers)]
    backs = [np.zeros(shape, np.uint16) for _ in range(lay.layers)]

    def paged(layers):
        page, head, token, dim = layers[0].strides[1:]
        return tiercel.PagedKv(
            n_pages=n_pages,
            tokens_per_page=4,
            k=[a[0].ctypes.data for a in layers],
            v=[a[1].ctypes.data for a in layers],
            plane_bytes=layers[0][0].nbytes,
            k_strides=(page, token, head, dim),
        )

    ch = chain(lay, 3)
    table = rng.permutation(n_pages)[:12].reshape(3, 4).astype(np.int32)
    table_back = rng.permutation(n_pages)[:12].reshape(3, 4)
    assert all(r.ok for r in client.put_pages(ch, 0, lay, paged(caches), table))
    assert all(r.ok for r in client.get_pages(ch, 0, lay, paged(backs), table_back))
    for a, b in zip(caches, backs):
        assert np.array_equal(a[:, table.ravel()], b[:, table_back.ravel()])
    with pytest.raises(ValueError, match="page 99 of 32"):
        client.get_pages(ch, 0, lay, paged(backs), table_back + 99 - table_back[0, 0])


def test_misses_have_reasons_and_are_counted(client):
    lay = layout()
    ch = chain(lay, 4)
    out, into = Cache(lay, 4, fill=5), Cache(lay, 4)
    client.put_blocks(ch, 0, 2, lay, out.k_ptrs[:2], out.v_ptrs[:2])
    got = client.get_blocks(ch, 0, 4, lay, into.k_ptrs, into.v_ptrs)
    assert [r.status for r in got] == ["OK", "OK", "MISS", "MISS"]
    assert got[2].status == tiercel.Status.MISS
    assert got[2].reason == "never_seen"
    found = client.lookup(ch)
    assert [r.ok for r in found] == [True, True, False, False]
    assert found[3].reason == "never_seen"
    stats = client.stats()
    assert stats["blocks_asked"] == 4 and stats["blocks_served"] == 2
    assert stats["misses"]["never_seen"] == 2
    assert sum(stats["misses"].values()) == 2


def test_another_layout_is_another_scope(client):
    lay = layout()
    ch = chain(lay, 1)
    out = Cache(lay, 1, fill=6)
    client.put_blocks(ch, 0, 1, lay, out.k_ptrs, out.v_ptrs)
    wrong = layout(k_order="hdt")  # Of the same size; only asked by mistake with the old scope.
    got = client.get_blocks(ch, 0, 1, wrong, out.k_ptrs, out.v_ptrs)
    assert (got[0].status, got[0].reason) == ("MISS", "other_scope")


def test_addresses_must_be_contiguous_int64_of_the_right_shape(client):
    lay = layout()
    ch = chain(lay, 4)
    out = Cache(lay, 4, fill=7)
    wide = np.zeros((4, lay.layers * 2), np.int64)
    with pytest.raises(tiercel.NotContiguous):
        client.put_blocks(ch, 0, 4, lay, wide[:, ::2], out.v_ptrs)
    with pytest.raises(tiercel.NotContiguous):
        client.put_blocks(ch, 0, 4, lay, out.k_ptrs, np.asfortranarray(out.v_ptrs))
    with pytest.raises(TypeError):
        client.put_blocks(ch, 0, 4, lay, out.k_ptrs.astype(np.float64), out.v_ptrs)
    with pytest.raises(TypeError):
        client.put_blocks(ch, 0, 4, lay, out.k_ptrs.tolist(), out.v_ptrs)
    with pytest.raises(ValueError, match="v_ptrs"):
        client.put_blocks(ch, 0, 4, lay, out.k_ptrs)
    with pytest.raises(ValueError, match="shape"):
        client.put_blocks(ch, 0, 3, lay, out.k_ptrs, out.v_ptrs)
    with pytest.raises(ValueError, match="chain of 4"):
        client.put_blocks(ch, 2, 4, lay, out.k_ptrs, out.v_ptrs)


def test_a_null_address_is_refused(client):
    lay = layout()
    zero = np.zeros((1, lay.layers), np.int64)
    with pytest.raises(ValueError, match="base"):
        client.put_blocks(chain(lay, 1), 0, 1, lay, zero, zero)


def test_submit_and_wait_and_poll(client):
    lay = layout()
    ch = chain(lay, 6)
    out, into = Cache(lay, 6, fill=8), Cache(lay, 6)
    ticket = client.submit_put_blocks(ch, 0, 6, lay, out.k_ptrs, out.v_ptrs)
    done = client.wait(ticket)
    assert done.ticket == ticket and done.released and all(r.ok for r in done.blocks)
    ticket = client.submit_get_blocks(ch, 0, 6, lay, into.k_ptrs, into.v_ptrs)
    until = time.monotonic() + 5
    ready = []
    while not ready and time.monotonic() < until:
        ready = client.poll()
    assert ready[0].ticket == ticket and ready[0].prefix == 6
    assert into == out
    with pytest.raises(ValueError, match="ticket"):
        client.wait(ticket)


def test_the_gil_is_free_while_a_call_waits(endpoint):
    with tiercel.Client(endpoint) as client:
        lay = layout(layers=16, tokens_per_block=128)
        ch = chain(lay, 16)
        out = Cache(lay, 16, fill=9)
        beats, stop = [0], threading.Event()

        def beat():
            while not stop.is_set():
                beats[0] += 1

        thread = threading.Thread(target=beat)
        thread.start()
        before = beats[0]
        client.put_blocks(ch, 0, 16, lay, out.k_ptrs, out.v_ptrs)
        moved = beats[0] - before
        stop.set()
        thread.join()
        assert moved > 0


def test_many_threads_share_a_client(client):
    lay = layout()
    failures = []

    def work(seed):
        ch = chain(lay, 4)
        out, into = Cache(lay, 4, fill=seed), Cache(lay, 4)
        client.put_blocks(ch, 0, 4, lay, out.k_ptrs, out.v_ptrs)
        client.get_blocks(ch, 0, 4, lay, into.k_ptrs, into.v_ptrs)
        if into != out:
            failures.append(seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_a_chain_checks_its_hashes():
    scope = tiercel.make_scope(model="m", layout=layout())
    ch = tiercel.Chain(scope)
    with pytest.raises(ValueError, match="allow_short_hashes"):
        ch.append(b"short")
    with pytest.raises(ValueError):
        ch.append(b"x" * 33)
    with pytest.raises(TypeError):
        ch.extend(["text"])
    with pytest.raises(IndexError):
        ch.key(0)
    with pytest.raises(ValueError):
        tiercel.Chain(b"short")
    ch.append(os.urandom(16))
    assert len(ch) == 1 and len(ch.key(0)) == 32
    short = tiercel.Chain(scope, allow_short_hashes=True)
    short.append(b"short")
    assert len(short) == 1


def test_a_layout_says_what_is_wrong_with_it():
    with pytest.raises(ValueError, match="kv_heads"):
        layout(kv_heads=0)
    with pytest.raises(ValueError, match="dtype"):
        layout(dtype="bf17")
    lay = layout(head_dim_v=32)
    assert lay.block_bytes == 4 * 16 * 2 * (64 + 32) * 2
    assert tiercel.KvLayout.opaque().is_opaque


def test_layouts_compare_and_hash():
    assert layout() == layout() and len({layout(), layout()}) == 1
    assert layout() != layout(rank=1, world=2) and layout() != "a layout"
