import json
import os
import pathlib

import pytest
import tiercel

GOLDEN = pathlib.Path(__file__).parents[2] / "proto" / "golden"


@pytest.fixture(scope="session")
def endpoint():
    return os.environ["TIERCEL_TEST_ENDPOINT"]


@pytest.fixture(scope="session")
def golden():
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture
def client(endpoint):
    with tiercel.Client(endpoint) as client:
        yield client


@pytest.fixture
def key():
    return os.urandom(16)
