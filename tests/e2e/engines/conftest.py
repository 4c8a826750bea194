import os
import sys
from pathlib import Path

import pytest

sys.path.append(os.environ["TIERCEL_ENGINES"])
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import Server  # noqa: E402


@pytest.fixture(scope="session")
def node():
    with Server() as server:
        yield server


@pytest.fixture
def dying():
    """A node that a test may kill."""
    with Server() as server:
        yield server
