#!/usr/bin/env python3
"""Drives a Mooncake store for the peers bench: a master, a provider that holds the memory, a client.

Started as `peers_mooncake.py client CORE SERVER_CORE LOG_DIR`; starts the master and the provider on
SERVER_CORE and connects to them over TCP on 127.0.0.1. Commands come as lines on stdin:

    prepare get|put SIZE          stores the blocks that gets will ask for
    run get|put SIZE BATCH NANOS  answers: requests, wall ns, cpu ns, then each latency in ns

Answers are lines that start with ANSWER or ERROR. End of input ends everything.
"""

import ctypes
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time

POOL = 2560 << 20
WALK = 512 << 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def open_store(segment, buffer, master):
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    rc = store.setup("127.0.0.1", "P2PHANDSHAKE", segment, buffer, "tcp", "", master)
    if rc != 0:
        raise RuntimeError(f"setup answered {rc}")
    return store


def provide(core, master):
    os.sched_setaffinity(0, {core})
    store = open_store(POOL, 16 << 20, master)
    print("ready", flush=True)
    sys.stdin.read()
    store.close()


class Client:
    def __init__(self, master):
        self.store = open_store(0, 64 << 20, master)
        self.memory = mmap.mmap(-1, WALK)
        self.memory.write(os.urandom(1 << 20) * (WALK >> 20))
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        rc = self.store.register_buffer(self.base, WALK)
        if rc != 0:
            raise RuntimeError(f"register_buffer answered {rc}")
        self.serial = 0
        self.at = 0
        self.stored = None
        # Fresh memory is slow the first time: all of it is written before anything is timed.
        for i in range(int(POOL * 0.9) >> 24):
            rc = self.store.put_from(f"touch-{i}", self.base + (i % 32 << 24), 16 << 20)
            if rc != 0:
                break
        self.clear()

    def pointers(self, size, count):
        blocks = WALK // size
        out = [self.base + (self.at + i) % blocks * size for i in range(count)]
        self.at = (self.at + count) % blocks
        return out

    def clear(self):
        self.store.remove_all(True)

    def prepare(self, size):
        if self.stored == size:
            return
        self.clear()
        for i in range(WALK // size):
            rc = self.store.put_from(f"get-{size}-{i}", self.base + i * size, size)
            if rc != 0:
                raise RuntimeError(f"put_from answered {rc} at block {i} of {size} bytes")
        self.stored = size
        self.next_get = 0

    def run(self, op, size, batch, budget):
        store, latencies = self.store, []
        blocks = WALK // size
        put_keys = []
        cpu = time.process_time_ns()
        begin = now = time.perf_counter_ns()
        moved = 0
        while now - begin < budget and not (op == "put" and moved >= 1 << 30):
            pointers = self.pointers(size, batch)
            if op == "get":
                keys = [f"get-{size}-{(self.next_get + i) % blocks}" for i in range(batch)]
                self.next_get += batch
                start = time.perf_counter_ns()
                if batch == 1:
                    got = [store.get_into(keys[0], pointers[0], size)]
                else:
                    got = store.batch_get_into(keys, pointers, [size] * batch)
                if any(n != size for n in got):
                    raise RuntimeError(f"get answered {got[:4]} for {size} bytes")
            else:
                keys = [f"put-{size}-{self.serial + i}" for i in range(batch)]
                self.serial += batch
                put_keys += keys
                start = time.perf_counter_ns()
                if batch == 1:
                    done = [store.put_from(keys[0], pointers[0], size)]
                else:
                    done = store.batch_put_from(keys, pointers, [size] * batch)
                if any(rc != 0 for rc in done):
                    raise RuntimeError(f"put answered {done[:4]} for {size} bytes")
            now = time.perf_counter_ns()
            latencies.append(now - start)
            moved += size * batch
        wall = sum(latencies)
        cpu = time.process_time_ns() - cpu
        for key in put_keys:
            store.remove(key, True)
        return [len(latencies), wall, cpu, *latencies]


def answer(word, text):
    print(f"{word} {text}", flush=True)


def main():
    role, core = sys.argv[1], int(sys.argv[2])
    if role == "provide":
        provide(core, sys.argv[3])
        return
    server_core, logs = int(sys.argv[3]), sys.argv[4]
    port = free_port()
    master = f"127.0.0.1:{port}"
    os.environ.setdefault("MC_LOG_LEVEL", "error")
    here = os.path.dirname(sys.executable)
    children = []

    def start(argv, name, cpu, **more):
        log = open(os.path.join(logs, f"mooncake_{name}.log"), "wb")
        child = subprocess.Popen(argv, stderr=log, stdin=subprocess.PIPE,
                                 preexec_fn=lambda: (die_with_parent(), os.sched_setaffinity(0, {cpu})),
                                 **({"stdout": log} | more))
        children.append(child)
        return child

    try:
        start([os.path.join(here, "mooncake_master"), f"--rpc_address=127.0.0.1", f"--rpc_port={port}",
               "--metrics_host=127.0.0.1", f"--metrics_port={free_port()}", "--enable_metric_reporting=false",
               "--eviction_high_watermark_ratio=0.95"], "master", server_core)
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        provider = start([sys.executable, os.path.abspath(__file__), "provide", str(server_core), master],
                         "provider", server_core, stdout=subprocess.PIPE)
        for line in provider.stdout:
            if line.strip() == b"ready":
                break
        else:
            answer("ERROR", f"the provider ended; see {logs}/mooncake_provider.log")
            return
        threading.Thread(target=lambda: [None for _ in provider.stdout], daemon=True).start()
        os.sched_setaffinity(0, {core})
        client = Client(master)
        for line in sys.stdin:
            words = line.split()
            try:
                if words[0] == "hello":
                    answer("ANSWER", "hello")
                elif words[0] == "prepare":
                    if words[1] == "get":
                        client.prepare(int(words[2]))
                    answer("ANSWER", "prepared")
                else:
                    result = client.run(words[1], int(words[2]), int(words[3]), int(words[4]))
                    answer("ANSWER", " ".join(map(str, result)))
            except (RuntimeError, OSError) as error:
                answer("ERROR", error)
    finally:
        for child in reversed(children):
            child.kill()
            child.wait()
        os._exit(0)


if __name__ == "__main__":
    main()
