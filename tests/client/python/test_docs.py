"""The snippets of docs/python.md run as they stand, but for the port."""

import pathlib
import re

import pytest

GUIDE = pathlib.Path(__file__).parents[3] / "docs" / "python.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)


def test_the_guide_has_snippets():
    assert len(SNIPPETS) >= 4


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet(snippet, endpoint):
    code = compile(snippet.replace("127.0.0.1:7400", endpoint), str(GUIDE), "exec")
    exec(code, {"__name__": "snippet"})
