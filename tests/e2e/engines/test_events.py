"""What routers are told: read by the decoders of vLLM 0.32.0 and SGLang 0.5.23, and by Dynamo 1.6.1's own indexer, a
program that routers ask where a prompt's prefix is."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import msgspec
import pytest
import zmq
from conftest import EXTRA
from harness import PAGE, Engine, Request, hashes, output, shape
from lib import CLI, Server, run

import tiercel

MODEL, EACH = "org/model", 2 * PAGE  # Tokens of a block: two pages.
INDEXER = "import sys; sys.path.append(sys.argv[1]); from dynamo import _core; _core.run_kv_indexer(sys.argv[2:])"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Indexer:
    """Dynamo's, and workers that it listens to."""

    def __init__(self, workers):
        self.port = free_port()
        listed = ",".join(f"{worker}=tcp://127.0.0.1:{port}" for worker, port in workers.items())
        self.process = subprocess.Popen([sys.executable, "-c", INDEXER, EXTRA, "--block-size", str(PAGE), "--port", str(self.port), "--threads", "1",
                                         "--model-name", MODEL, "--workers", listed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.until(lambda: self._get("/health") is not None)

    def _get(self, path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", None if body is None else json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from None
        except OSError:
            return None

    def hears(self, worker, engine):
        """What is sent before it listens is lost to it: some block until it knows one."""
        for i in range(100):
            name, first = f"hello {worker} {i}", 1000 * (i + 1)
            request = Request(name, EACH + 1, hashes(2))
            request.all_token_ids = list(range(first, first + EACH + 1))
            engine.matched(request)
            engine.compute(request, [40, 41, 42])
            time.sleep(0.5)
            if worker in self.knows(EACH, first):
                return
        raise AssertionError("it does not listen")

    def knows(self, tokens, first=0):
        """Worker to tokens of this prompt that it can load."""
        told = json.loads(self._get("/query", {"token_ids": list(range(first, first + tokens)), "model_name": MODEL, "block_size": PAGE}))
        return {int(worker): found["disk"] for worker, found in told["instances"].items()}

    @staticmethod
    def until(good, seconds=20):
        until = time.monotonic() + seconds
        while not good():
            assert time.monotonic() < until, "it did not come"
            time.sleep(0.05)

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def indexer():
    made = []

    def make(workers):
        made.append(Indexer(workers))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Listener:
    """A router's socket."""

    def __init__(self, port, topic=""):
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self.socket.setsockopt_string(zmq.SUBSCRIBE, topic)
        self.topics, self.numbers, self.payloads = [], [], []
        time.sleep(1.0)  # What is sent before it listens is lost to it.

    def events(self, decode, count, seconds=20):
        """At least so many events."""
        told, until = [], time.monotonic() + seconds
        while len(told) < count and time.monotonic() < until:
            if self.socket.poll(100):
                topic, number, payload = self.socket.recv_multipart()
                self.topics.append(topic), self.numbers.append(int.from_bytes(number, "big")), self.payloads.append(payload)
                told += decode(payload).events
        return told


@pytest.fixture
def listener():
    made = []

    def make(*about):
        made.append(Listener(*about))
        return made[-1]

    yield make
    for one in made:
        one.socket.close(0)


@pytest.fixture
def engines():
    made = []

    def make(node, of, port, **extra):
        from tiercel_vllm.events import Audience

        made.append(Engine(node.grpc, of, fill=len(made), audience=Audience(model=MODEL), events_endpoint=f"tcp://*:{port}", events_sweep_s=1.0, **extra))
        assert made[-1].wait_open()
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def compute(engine, names, blocks=4, name="a", pages=None):
    request = Request(name, blocks * EACH + 1, names[:2 * blocks])
    matched = engine.matched(request)
    engine.compute(request, pages or list(range(2 * blocks + 1)))
    return matched


@pytest.mark.parametrize("form", ["map", "array", "store"])
def test_dynamos_indexer_knows_what_each_engine_can_load_until_it_is_gone(dying, engines, indexer, form):
    first, second, of, names = free_port(), free_port(), shape(2), hashes(8)
    one, two = (engines(dying, of, port, events_format=form) for port in (first, second))
    router = indexer({1: first, 2: second})
    router.hears(1, one), router.hears(2, two)
    compute(one, names)
    router.until(lambda: router.knows(4 * EACH) == {1: 4 * EACH})
    assert router.knows(3 * EACH) == {1: 3 * EACH}
    assert two.matched(Request("b", 2 * EACH + 1, names[:4])) == 2 * EACH  # It found them: a request may as well go there.
    router.until(lambda: router.knows(4 * EACH) == {1: 4 * EACH, 2: 2 * EACH})
    run(CLI, "-e", dying.grpc, "clear", "--yes")
    router.until(lambda: router.knows(4 * EACH) == {})
    compute(one, names, 3, "c")
    router.until(lambda: router.knows(4 * EACH) == {1: 3 * EACH, 2: 2 * EACH})  # Back for the second engine, too.


def test_a_node_that_is_lost_has_nothing(dying, engines, indexer, monkeypatch):
    monkeypatch.setattr("tiercel_vllm.ledger.LOST_S", 1.0)
    port, names = free_port(), hashes(8)
    engine = engines(dying, shape(2), port)
    router = indexer({1: port})
    router.hears(1, engine)
    compute(engine, names)
    router.until(lambda: router.knows(4 * EACH) == {1: 4 * EACH})
    dying.kill()
    engine.matched(Request("b", 4 * EACH + 1, names))  # Somebody meets the trouble.
    router.until(lambda: router.knows(4 * EACH) == {})


def test_blocks_that_were_evicted_are_removed_and_no_others(engines, indexer):
    with Server("memory.host=16MiB", "memory.slab=2MiB", "shards=1", ssd=False) as small:
        port, names = free_port(), hashes(8)
        engine = engines(small, shape(2), port)
        router = indexer({1: port})
        router.hears(1, engine)
        compute(engine, names)
        router.until(lambda: router.knows(4 * EACH) == {1: 4 * EACH})
        # Others' blocks come until some of these went.
        with tiercel.Client(small.grpc) as client:
            for _ in range(2048):
                client.put(os.urandom(16), os.urandom(32 << 10))
                if not all(block.status == "OK" for block in client.lookup(chain_of(engine, names))):
                    break
            here = client.match_prefix(chain_of(engine, names))
        assert here < 4
        router.until(lambda: router.knows(4 * EACH) == ({1: here * EACH} if here else {}))


def chain_of(engine, names):
    of = engine.scheduler._shape
    chain = tiercel.Chain(of.scope(), layout=of.layout)
    chain.extend(names[1::2])
    return chain


def low(keys):
    return [int.from_bytes(key[-8:], "big") for key in keys]


class Batch(msgspec.Struct, array_like=True):
    """What all formats share."""

    ts: float
    events: list
    rank: int


def test_the_array_format_has_the_type_first_and_vllms_order(dying, engines, listener):
    port, names = free_port(), hashes(8)
    engine = engines(dying, shape(2), port, events_format="array", events_topic="kv@pod@org/model")
    heard = listener(port, "kv@")
    compute(engine, names)
    decode = msgspec.msgpack.Decoder(Batch).decode
    parents = [None, *low(names[1:7:2])]
    assert heard.events(decode, 4) == [["BlockStored", low(names[2 * i:2 * i + 2]), parents[i], list(range(i * EACH, (i + 1) * EACH)), PAGE, None, "STORAGE", None]
                                       for i in range(4)]
    run(CLI, "-e", dying.grpc, "clear", "--yes")
    assert heard.events(decode, 1)[-1] == ["AllBlocksCleared"]
    assert set(heard.topics) == {b"kv@pod@org/model"} and heard.numbers == list(range(len(heard.numbers)))


@pytest.mark.parametrize("whose", ["vllm.distributed.kv_events", "sglang.srt.disaggregation.kv_events"])
def test_the_map_format_is_what_the_engines_own_decoders_read(dying, engines, listener, whose):
    theirs = pytest.importorskip(whose, exc_type=ImportError)
    port, names = free_port(), hashes(8)
    engine = engines(dying, shape(2), port)
    heard = listener(port)
    compute(engine, names)
    decode = msgspec.msgpack.Decoder(theirs.KVEventBatch).decode
    stored = heard.events(decode, 4)
    assert all(isinstance(event, theirs.BlockStored) for event in stored)
    assert [event.block_hashes for event in stored] == [low(names[i:i + 2]) for i in range(0, 8, 2)]
    assert [event.parent_block_hash for event in stored] == [None, *low(names[1:7:2])]
    assert [event.token_ids for event in stored] == [list(range(i * EACH, (i + 1) * EACH)) for i in range(4)]
    assert {(event.block_size, event.medium) for event in stored} == {(PAGE, "STORAGE")}
    run(CLI, "-e", dying.grpc, "clear", "--yes")
    assert isinstance(heard.events(decode, 1)[-1], theirs.AllBlocksCleared)


def test_what_a_listener_missed_is_sent_again(dying, engines, listener):
    port, replay = free_port(), free_port()
    engine = engines(dying, shape(2), port, events_replay_endpoint=f"tcp://*:{replay}")
    heard = listener(port)
    compute(engine, hashes(8))
    heard.events(msgspec.msgpack.Decoder(Batch).decode, 4)
    late = zmq.Context.instance().socket(zmq.DEALER)
    late.connect(f"tcp://127.0.0.1:{replay}")
    late.send_multipart([b"", (0).to_bytes(8, "big")])
    again = []
    while late.poll(10000):
        *_, number, payload = late.recv_multipart()
        if int.from_bytes(number, "big", signed=True) < 0:
            break
        again.append(payload)
    late.close(0)
    assert heard.payloads and again == heard.payloads


def test_the_store_format_says_who_and_what(dying, engines, listener):
    port, names = free_port(), hashes(8)
    engine = engines(dying, shape(2), port, events_format="store")
    heard = listener(port)
    compute(engine, names)

    decode = msgspec.msgpack.Decoder(Batch).decode
    stored = heard.events(decode, 4)
    assert [event["event_id"] for event in stored] == [1, 2, 3, 4]
    assert {(event["event_type"], event["model_name"], event["tenant_id"], event["backend_id"], event["medium"], event["block_size"], event["dp_rank"])
            for event in stored} == {("stored", MODEL, "default", "tiercel", "STORAGE", PAGE, 0)}
    assert [(event["base_block_idx"], event["seq_hashes"]) for event in stored] == [(i, low(names[i:i + 2])) for i in range(0, 8, 2)]
    assert [event["parent_hash"] for event in stored] == [None, *low(names[1:7:2])]
    run(CLI, "-e", dying.grpc, "clear", "--yes")
    assert heard.events(decode, 1)[-1]["event_type"] == "cleared"


def test_an_address_that_is_taken_is_told_at_start(node):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ValueError, match="events_endpoint.*in use"):
            Engine(node.grpc, shape(), events_endpoint=f"tcp://*:{taken.getsockname()[1]}")


@pytest.mark.parametrize("extra,why", [({"events_format": "yaml"}, "events_format: 'yaml' is none of map, array, store"),
                                       ({"events_topic": "kv"}, "events_endpoint: missing"), ({"events_sweep_s": 0}, "events_sweep_s: must be positive")])
def test_settings_that_are_wrong_are_told(extra, why):
    with pytest.raises(ValueError, match=why):
        Engine("127.0.0.1:1", shape(), **extra)
