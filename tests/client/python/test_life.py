import os
import socket
import subprocess
import sys
import time

import pytest
import tiercel
from kv import Cache, chain, layout


def test_a_closed_client_says_so(endpoint):
    client = tiercel.Client(endpoint)
    assert not client.closed
    client.close()
    client.close()
    assert client.closed
    for call in (
        lambda: client.get("k"),
        lambda: client.put("k", b"v"),
        lambda: client.match_prefix(chain(layout(), 1)),
        client.stats,
        client.nodes,
        client.view,
        client.poll,
        client.event_fd,
    ):
        with pytest.raises(tiercel.ClosedError, match="closed"):
            call()


def test_no_node_is_a_connection_error():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(ConnectionError):
        tiercel.Client(f"127.0.0.1:{port}")


def test_the_environment_names_the_node(endpoint, key, monkeypatch):
    monkeypatch.setenv("TIERCEL_ENDPOINT", endpoint)
    with tiercel.Client() as client:
        assert client.put(key, b"v").ok


def test_wrong_options_are_value_errors(endpoint):
    with pytest.raises(ValueError, match="transport"):
        tiercel.Client(endpoint, transports=["pigeon"])
    with pytest.raises(ValueError):
        tiercel.Client([])
    with tiercel.Client(endpoint) as client:
        for deadline in (0, -1, float("nan")):
            with pytest.raises(ValueError, match="deadline_s"):
                client.get("k", deadline_s=deadline)
        lay = layout()
        cache = Cache(lay, 1, fill=1)
        with pytest.raises(ValueError, match="class"):
            client.get_blocks(
                chain(lay, 1), 0, 1, lay, cache.k_ptrs, cache.v_ptrs, min_class="best"
            )


def test_a_deadline_is_kept(client):
    lay = layout(layers=32, tokens_per_block=128)
    ch = chain(lay, 32)
    cache = Cache(lay, 32, fill=1)
    before = time.monotonic()
    put = client.put_blocks(ch, 0, 32, lay, cache.k_ptrs, cache.v_ptrs, deadline_s=0.001)
    assert time.monotonic() - before < 0.5
    assert {r.status for r in put} <= {"OK", "TIMEOUT", "UNAVAILABLE"}
    assert "TIMEOUT" in {r.status for r in put}


def test_view_and_nodes(client):
    import json

    view = json.loads(client.view())
    nodes = client.nodes()
    assert [n["id"] for n in view["nodes"]] == [n["node_id"] for n in nodes]
    assert nodes[0]["connected"] and not nodes[0]["breaker_open"]
    with pytest.raises(ValueError, match="view"):
        client.set_view("{}")
    with pytest.raises(ValueError, match="epoch"):
        client.set_view(json.dumps({**view, "epoch": 0}))


def test_a_view_file(endpoint, client, tmp_path, key):
    (tmp_path / "view.json").write_text(client.view())
    with tiercel.Client(view_file=tmp_path / "view.json") as other:
        client.put(key, b"by the view")
        assert other.get(key) == b"by the view"


def test_importing_needs_neither_numpy_nor_torch():
    code = "import sys, tiercel; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_clients_come_and_go(endpoint):
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with tiercel.Client(endpoint) as client:
            client.put(os.urandom(16), b"v")
    assert len(os.listdir("/proc/self/fd")) <= fds + 8
