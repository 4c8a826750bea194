"""The fake must do what the real client does, as far as one process can tell."""

import os

import pytest
import tiercel
from kv import Cache, chain, layout


@pytest.fixture(params=["real", "fake"])
def backend(request, endpoint):
    make = tiercel.Client if request.param == "real" else tiercel.MemoryBackend
    with make(endpoint) as client:
        yield client


def test_both_behave_alike(backend):
    lay = layout()
    ch = chain(lay, 4)
    out, into = Cache(lay, 4, fill=1), Cache(lay, 4)
    assert backend.match_prefix(ch) == 0
    assert all(
        r.ok for r in backend.put_blocks(ch, 0, 3, lay, out.k_ptrs[:3], out.v_ptrs[:3])
    )
    assert backend.match_prefix(ch) == 3
    assert [r.status for r in backend.lookup(ch)] == ["OK"] * 3 + ["MISS"]
    got = backend.get_blocks(ch, 0, 4, lay, into.k_ptrs, into.v_ptrs)
    assert [(r.status, r.reason) for r in got] == [("OK", "none")] * 3 + [("MISS", "never_seen")]
    assert (into.k[:3] == out.k[:3]).all() and (into.v[:3] == out.v[:3]).all()
    with pytest.raises(ValueError):
        backend.get_blocks(ch, 2, 4, lay, into.k_ptrs, into.v_ptrs)

    key = os.urandom(16)
    assert backend.get(key) is None and not backend.exists(key)
    assert backend.put(key, b"one").ok and backend.put(key, b"two").ok
    assert backend.get(key) == b"one" and backend.exists(key)
    room = bytearray(8)
    assert backend.get_into(key, room) == 3 and room[:3] == b"one"
    assert backend.get_into(os.urandom(16), room) == -1
    with pytest.raises(ValueError):
        backend.get_into(key, bytearray(1))
    backend.close()
    with pytest.raises(tiercel.ClosedError):
        backend.get(key)
