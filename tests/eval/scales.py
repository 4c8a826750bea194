"""The quickstart's artifact, examples/engine/smollm2-scales.kva1: `tests/eval/run scales`.

As `tiercel codec calibrate --codecs ec-c` makes one, from the calibration that `quality` keeps in build/eval: SmolLM2's
head scales and levels, and EC-C's steps as measured on other texts. No transforms.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import models
import quality
import texts
import worker
from tiercel import calibrate
from tiercel.artifact import Artifact

HELD_OUT = ("debian-handbook", "python-source")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests/eval/run scales", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=quality.ROOT / "examples" / "engine" / "smollm2-scales.kva1")
    parser.add_argument("--calibration", type=int, default=16, help="sequences of each of two texts (16)")
    parser.add_argument("--held-out", type=int, default=2, help=f"sequences of each of {' and '.join(HELD_OUT)} (2)")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args(arguments)
    from tiercel._replay import Replay

    folder = models.folder("smollm2", quality.CACHE)
    replay = Replay(folder)
    artifact = calibrate.blank(replay)
    options = calibrate.Options(prefix=quality.PREFIX["smollm2"], codecs=("EC-C",))
    setup = worker.Setup(folder, options.prefix, options.suffix, options.block, artifact)
    measured = calibrate.Measured()
    for name in quality.CALIBRATION:
        measured.merge(quality.measured(setup, "smollm2", name, chosen.calibration, chosen.workers))
    calibrate.learn(artifact, measured, options.eps, options.strength)
    artifact.transforms.clear()

    def text(name: str) -> str:
        return texts.load(name, quality.CACHE / "texts")

    length = options.prefix + options.suffix
    held_out = [ids for name in HELD_OUT for ids in replay.sequences(text(name), length, chosen.held_out)]
    every = (*quality.CALIBRATION, *HELD_OUT)
    artifact.about = calibrate.about(
        folder, {name: hashlib.sha256(text(name).encode()).hexdigest() for name in every},
        chosen.calibration * len(quality.CALIBRATION), len(held_out), options)
    calibrate.ladder_into(artifact, calibrate.HeldOut(replay, held_out, options), options)
    data = artifact.dump()
    chosen.out.write_bytes(data)
    print(f"{chosen.out}: id {Artifact.id_of(data):016x}, {len(data)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
