"""What every end-to-end test needs: the programs, a server in a folder of its own, checks and GOAL lines."""
import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("TIERCEL_BIN", ROOT / "build/dev/bin"))
FULL = os.environ.get("TIERCEL_FULL") == "1"
SERVER, CLI, LOAD = BIN / "tiercel-server", BIN / "tiercel", BIN / "tiercel-e2e-load"
_failed = 0
_servers = []  # With a folder that is still there.
# A test that is told to end leaves like one that failed: no process and no folder stays behind.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
atexit.register(lambda: [server.remove() for server in list(_servers)])


def check(name, good, told=""):
    global _failed
    _failed += 0 if good else 1
    print(f"check {name} {'OK' if good else 'FAILED'} {told}".rstrip(), flush=True)
    return good


def goal(name, value, unit, target, met):
    print(f"GOAL {name} {value:.6g} {unit} {target} {'MET' if met else 'MISSED'}", flush=True)


def in_package():
    """Begins the test again under the package's Python, where it is not that yet."""
    python = ROOT / ".venv/bin/python"
    if Path(sys.prefix).resolve() == python.parents[1].resolve():
        return
    if not python.exists():
        sys.exit(f"{sys.argv[0]}: no Python package in {python.parents[1]}; deploy/quickstart installs it, tests/client/python/run too")
    os.execv(python, [str(python), *sys.argv])


def finish():
    sys.exit(1 if _failed else 0)


def run(*args, timeout=120, env=None):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})})
    return done.returncode, done.stdout, done.stderr


class Server:
    """A real tiercel-server on loopback ports of its own; its folder outlives kill() and start()."""

    def __init__(self, *settings, ssd=True, config=None):
        self.folder = Path(tempfile.mkdtemp(prefix="tiercel-e2e-"))
        self.settings = settings
        self.ssd = ssd
        self.process = None
        _servers.append(self)
        if config:
            (self.folder / "tiercel.yaml").write_text(config)

    def arguments(self, binary):
        args = [binary, "--insecure", "--set", "listen.grpc=127.0.0.1:0", "--set", "listen.http=127.0.0.1:0",
                "--set", f"memfd.dir={self.folder}/run"]
        if (self.folder / "tiercel.yaml").exists():
            args += ["--config", self.folder / "tiercel.yaml"]
        if self.ssd:
            args += ["--data", self.folder / "data"]
        for setting in self.settings:
            args += ["--set", setting]
        return [str(a) for a in args]

    def launch(self, binary=SERVER, *flags):
        """Starts the process and a log of its own."""
        (self.folder / "run").mkdir(exist_ok=True, mode=0o700)
        self.log = self.folder / "log"
        self.log.unlink(missing_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.arguments(binary) + list(flags), stdout=log, stderr=log,
                                            env={**os.environ, "TMPDIR": str(self.folder)})

    def start(self, wait=30):
        self.launch()
        return self.ready(wait)

    def ready(self, wait=30):
        until = time.monotonic() + wait
        while time.monotonic() < until:
            ready = re.search(r"node\.ready .*grpc=(\S+) http=(\S+)", self.logged())
            if ready:
                self.grpc, self.http = ready.groups()
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.005)
        why = f"it hung for {wait} s" if self.alive() else f"it exited with {self.process.returncode}"
        if self.alive():
            self.kill()
        # The folder stays for who starts it again; it goes with the test.
        raise RuntimeError(f"the server did not start, {why}:\n{self.logged()}")

    def logged(self):
        return self.log.read_text(errors="replace")

    def listening(self):
        """The TCP ports it listens on, whoever in it opened them."""
        sockets = set()
        for fd in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(fd))
            except OSError:
                continue  # Closed meanwhile.
        lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        return {int(f[1].split(":")[1], 16) for f in lines if f[3] == "0A" and f"socket:[{f[9]}]" in sockets}

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=60)

    def alive(self):
        return self.process.poll() is None

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as answer:
            return answer.read().decode()

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *_):
        self.remove()

    def remove(self):
        """No process and no folder of it is left."""
        if self.process and self.alive():
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self in _servers and not self.folder.exists():
            _servers.remove(self)


def stat(server):
    """What `tiercel stat` says. A second time when the first met its deadline: where many processes share few
    cores a node may not be given one for that long; a node that is silent twice is at fault."""
    status, out, err = run(CLI, "-e", server.grpc, "--json", "stat")
    if status != 0 and "deadline" in err.lower():
        status, out, err = run(CLI, "-e", server.grpc, "--json", "stat")
    if status != 0:
        raise RuntimeError(f"stat: {err.strip()}")
    return json.loads(out)


def outside_arena(server):
    """Bytes of RAM that it holds beside the blocks."""
    return int(stat(server)["rss_outside_arena_bytes"])


def serves(server):
    """Blocks of a scope of their own are put and fetched, byte for byte."""
    status, out, err = run(CLI, "-e", server.grpc, "selftest")
    return status == 0, "" if status == 0 else (out + err).strip()


def told(text):
    """The counts of tiercel-e2e-load's last line."""
    line = [l for l in text.splitlines() if l.startswith("asked ")][-1].split()
    return {line[i]: int(line[i + 1]) for i in range(0, len(line), 2)}
