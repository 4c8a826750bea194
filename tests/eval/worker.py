"""What one process of the harness does: a model, and jobs on it one at a time, single-threaded.

    measure   one calibration sequence --> moments of KV and gradients
    replay    one test sequence --> for each codec, bits and what the model then says, token by token
    needle    one prefix with keys hidden in it --> whether each codec still lets the model repeat them
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import lossless
import numpy as np
import records
from anchors import fixed_rate
from kvtc import Kvtc
from tiercel import _ec
from tiercel.artifact import Artifact
from tiercel.calibrate import EXACT_TOKENS, Measured, Options, collect

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Setup:
    """The same in every worker. measured and plain are None, and the artifact blank, until calibration is done."""

    folder: Path
    prefix: int
    suffix: int
    block: int
    artifact: Artifact
    measured: Measured | None = None
    plain: Artifact | None = None  # Without levels.
    records: bool = True  # Whether the extension can code with these artifacts.


@dataclass
class Point:
    """One codec at one setting on one sequence: bits a value, and per suffix token."""

    name: str
    bits: float
    kl: np.ndarray  # Nats.
    delta_nll: np.ndarray  # Nats.
    same_top: np.ndarray  # Whether the likeliest token is the same.


_state: dict = {}


def start(setup: Setup) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from tiercel._replay import Replay

    torch.set_num_threads(1)
    _state.update(setup=setup, replay=Replay(setup.folder))
    if setup.measured:
        _state["kvtc"] = Kvtc(setup.artifact, setup.measured)
        if setup.records:
            _state["records"] = {"": records.Records(setup.artifact),
                                 records.NO_LEVELS: records.Records(setup.plain)}


def codec(name: str, setting: float) -> _ec.Codec:
    """By its name in the table; setting is a step (EC-*), a budget of bits (KVTC-like), or not used."""
    setup = _state["setup"]
    if name.startswith("KVTC"):
        return _state["kvtc"].codec(setting)
    if name == "EC-C, one step":
        return _ec.codec("EC-C", setting)
    if name in records.NAMES:
        return _ec.codec(name, setting, setup.artifact)
    if name.endswith(records.NO_LEVELS):
        return _ec.codec(name.removesuffix(records.NO_LEVELS), setting, setup.plain)
    return fixed_rate(setup.artifact.layers)[name]


def measure(job: tuple[list[int], int]) -> Measured:
    ids, seed = job
    setup = _state["setup"]
    options = Options(setup.prefix, setup.suffix, seed=seed, say=lambda line: None)
    return collect(_state["replay"], setup.artifact, [ids], options)


def coded(kv, name: str, setting: float):
    """The prefix after a codec, and its bits a value: through records where the package's extension is at hand."""
    from tiercel._replay import compress

    block = _state["setup"].block
    bare = name.removesuffix(records.NO_LEVELS)
    if bare in records.NAMES and "records" in _state:
        return _state["records"][name[len(bare):]].compress(kv, bare, setting, block, EXACT_TOKENS)
    return compress(kv, codec(name, setting), block, EXACT_TOKENS)


def replay(job: tuple[list[int], list[tuple[str, float]], bool]) -> list[Point]:
    """Suffix tokens teacher-forced after the prefix as each codec gives it back."""
    import torch
    from tiercel._replay import divergence

    ids, points, with_lossless = job
    setup, model = _state["setup"], _state["replay"]
    kv = model.prefix(ids[:setup.prefix])
    suffix = ids[setup.prefix:setup.prefix + setup.suffix]
    targets = torch.tensor(ids[setup.prefix + 1:setup.prefix + 1 + setup.suffix])[:, None]
    base = model.log_probabilities(kv, suffix)
    nll = -base.gather(1, targets)[:, 0].numpy()
    same = np.ones(len(suffix), bool)
    out = [Point("exact", 16.0, np.zeros(len(suffix)), nll, same)]
    if with_lossless:
        if "records" in _state:
            out.append(Point("LLE", coded(kv, "LLE", 0.0)[1], 0 * nll, 0 * nll, same))
        for name, size in lossless.sizes(ROOT).items():
            if name == "LLE (reference)" and "records" in _state:
                continue
            out.append(Point(name, lossless.bits(kv, size, setup.block, EXACT_TOKENS), 0 * nll, 0 * nll, same))
    for name, setting in points:
        given, bits = coded(kv, name, setting)
        said = model.log_probabilities(given, suffix)
        out.append(Point(f"{name} @{setting:.6g}" if setting else name, bits, divergence(base, said),
                         -said.gather(1, targets)[:, 0].numpy() - nll, (said.argmax(-1) == base.argmax(-1)).numpy()))
    return out


def needle(job: tuple[list[int], list[tuple[list[int], list[int]]], list[tuple[str, float]]]) -> list[list[bool]]:
    """Of each question about a prefix whether the greedy tokens after it are the key: exact first, then each codec.

    Teacher-forced: the key is repeated greedily if and only if each of its tokens is the likeliest.
    """
    ids, asked, points = job
    model = _state["replay"]
    kv = model.prefix(ids)
    right: list[list[bool]] = [[] for _ in asked]
    for choice in [None, *points]:
        given = kv if choice is None else coded(kv, *choice)[0]
        for (question, key), out in zip(asked, right):
            said = model.log_probabilities(given, question + key[:-1]).argmax(-1)[len(question) - 1:]
            out.append(said.tolist() == key)
    return right
