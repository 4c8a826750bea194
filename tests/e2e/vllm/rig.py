"""What the vLLM tests share: engines as processes, prompts of real text, and a wire that can be slow or damage bytes."""

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from lib import BIN, CLI, ROOT, Server, check, finish, goal, run  # noqa: E402, F401

HOME = Path(os.environ.get("TIERCEL_VLLM", ROOT / "build/vllm"))
PYTHON, MODEL = HOME / "venv/bin/python", HOME / "model"
BLOCK = 128
START_S = float(os.environ.get("TIERCEL_VLLM_START_S", "600"))
ANSWER_S = float(os.environ.get("TIERCEL_VLLM_ANSWER_S", "900"))
GENTLE = os.environ.get("TIERCEL_VLLM_GENTLE", "").split()  # A prefix of every engine's command, such as nice.


def setup():
    done = subprocess.run([HERE / "setup"], stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit("tests/e2e/vllm/setup failed")


def texts():
    """Tokens of two licences: real words, on every Debian."""
    script = ("import json, sys; from tokenizers import Tokenizer; t = Tokenizer.from_file(sys.argv[1]);"
              "print(json.dumps([t.encode(open(p).read()).ids for p in sys.argv[2:]]))")
    done = subprocess.run([PYTHON, "-c", script, MODEL / "tokenizer.json", "/usr/share/common-licenses/GPL-3", "/usr/share/common-licenses/LGPL-2.1",
                           "/usr/share/common-licenses/Apache-2.0"], capture_output=True, text=True, check=True)
    return [token for text in json.loads(done.stdout.splitlines()[-1]) for token in text]


class Engine:
    """engine.py with a connector of these settings; None: plain vLLM."""

    def __init__(self, name, connector=None, env=None, **options):
        self.name = name
        self.log = open(HOME / f"{name}.log", "wb")
        options = {"model": str(MODEL), "connector": connector, **options}
        self.process = subprocess.Popen([*GENTLE, PYTHON, HERE / "engine.py", json.dumps(options)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.log, text=True, env={**os.environ, **(env or {})})
        self.began = self._read(START_S)
        print(f"engine {name}: ready after {self.began['ready']:.1f} s", flush=True)

    def _read(self, wait):
        if not select.select([self.process.stdout], [], [], wait)[0]:
            raise RuntimeError(f"engine {self.name} said nothing for {wait} s; see {self.log.name}")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"engine {self.name} ended; see {self.log.name}:\n" + Path(self.log.name).read_text()[-3000:])
        return json.loads(line)

    def start(self, **ask):
        self.process.stdin.write(json.dumps(ask) + "\n")
        self.process.stdin.flush()

    def answer(self):
        return self._read(ANSWER_S)

    def ask(self, **ask):
        self.start(**ask)
        return self.answer()

    def make(self, prompts, **ask):
        return self.ask(prompts=prompts, **ask)["made"]

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Wire:
    """A TCP relay before a node: bytes a second, and a bit flipped every so many bytes that come from the node."""

    def __init__(self, target, rate=0.0, flip_every=0):
        host, port = target.rsplit(":", 1)
        self.target, self.rate, self.flip_every = (host, int(port)), rate, flip_every
        self.flips = 0
        self.passed = 0  # Bytes that came from the node.
        self._since_flip = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self.target, timeout=5)
                far.settimeout(None)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                near.close()
                continue
            self._sockets += [near, far]
            threading.Thread(target=self._relay, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._relay, args=(far, near, True), daemon=True).start()

    def _relay(self, source, sink, answers):
        try:
            while data := source.recv(16384):
                if answers and self.flip_every:
                    data = self._damage(data)
                sink.sendall(data)
                self.passed += len(data) if answers else 0
                if self.rate:
                    time.sleep(len(data) / self.rate)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _damage(self, data):
        self._since_flip += len(data)
        if self._since_flip < self.flip_every or len(data) < 8192:
            return data
        self._since_flip, self.flips = 0, self.flips + 1
        out = bytearray(data)
        out[len(out) // 2] ^= 0x10
        return bytes(out)

    def close(self):
        self._listener.close()
        for one in self._sockets:
            one.close()

    def view(self, server, folder):
        """A view file that leads to this wire instead of the node."""
        status, out, err = run(CLI, "-e", server.grpc, "--json", "view", "show")
        if status != 0:
            raise RuntimeError(f"view: {err}")
        view = json.loads(out)
        for node in view["nodes"]:
            node["endpoint"] = self.endpoint
        path = Path(folder) / f"view-{self.endpoint.rsplit(':', 1)[1]}.json"
        path.write_text(json.dumps(view))
        return {"view_file": str(path), "transports": ["grpc"]}
