"""What the settings of levels are worth, on EC-X's references: `tests/eval/run levels`.

    calibration of `quality` --> levels of some strength, moments with or without them --> bits and KL beside one step

Bits are those of tiercel._ec, all side information counted; what is asked is how many of one step's bits a setting
needs at the KL that it has. Then the same integers cut into 1, 2, 4 and 8 bands.
"""

from __future__ import annotations

import argparse

import models
import numpy as np
import quality
import texts
from tiercel import _ec, calibrate

PREFIX, SUFFIX, BLOCK = 768, 192, 256


def learnt(replay, measured: calibrate.Measured, strength: float, at_levels: bool):
    artifact = calibrate.blank(replay)
    calibrate.learn(artifact, measured, 1.0, strength)
    if not at_levels:
        artifact.transforms.clear()
        calibrate.transforms_into(artifact, measured, 1.0)
    return artifact


def main(arguments: list[str] | None = None) -> int:
    from tiercel._replay import Replay, compress

    parser = argparse.ArgumentParser(prog="tests/eval/run levels", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sequences", type=int, default=2, help="test sequences a domain (2)")
    parser.add_argument("--domains", nargs="+", default=["debian-reference/test", "python-source"])
    parser.add_argument("--strengths", nargs="+", type=float, help="of levels; the first is cut into bands, too",
                        default=[0.5, 0.35, 0.7, 1.0])
    parser.add_argument("--workers", type=int, default=2, help="of calibration")
    chosen = parser.parse_args(arguments)
    folder = models.folder("smollm2", quality.CACHE)
    replay = Replay(folder)
    setup = quality.worker.Setup(folder, PREFIX, SUFFIX, BLOCK, calibrate.blank(replay))
    measured = calibrate.Measured()
    for name in quality.CALIBRATION:
        measured.merge(quality.measured(setup, "smollm2", name, 16, chosen.workers))
    variants = [("one step", learnt(replay, measured, 0.0, True))]
    variants += [(f"levels {s:g}", learnt(replay, measured, s, True)) for s in chosen.strengths]
    variants += [("levels 0.5, moments of all tokens alike", learnt(replay, measured, 0.5, False))]
    measured.tokens.clear()
    base = float(np.sqrt(24 * 4e-3 / (2 * replay.layers * replay.kv_heads * replay.head_dim * PREFIX)))
    options = calibrate.Options(PREFIX, SUFFIX, block=BLOCK)
    for domain in chosen.domains:
        sequences = replay.sequences(texts.load(domain, quality.CACHE / "texts"), PREFIX + SUFFIX + 1, chosen.sequences)
        held_out = calibrate.HeldOut(replay, sequences, options)
        print(f"smollm2, {domain}, {len(sequences)} sequences, blocks of {BLOCK}", flush=True)
        plain: list[tuple[float, float]] = []
        for name, artifact in variants:
            for scale in (0.9, 1.7, 3.2):
                kl, bits = held_out.measure(_ec.codec("EC-X", base * scale, artifact))
                if name == "one step":
                    plain.append((np.log(kl), bits))
                at = int(np.clip(np.searchsorted([p[0] for p in plain], np.log(kl)), 1, max(len(plain) - 1, 1)))
                part = ""
                if name != "one step":
                    (a, below), (b, above) = plain[at - 1:at + 1]
                    same = below + (np.log(kl) - a) * (above - below) / (b - a)
                    part = f"  {bits / same:.3f} of one step's bits at that KL"
                print(f"  {name:<42} {bits:6.3f} bits  KL {kl:.2e}{part}", flush=True)
        name, artifact = variants[1]
        kv = replay.prefix(sequences[0][:PREFIX])
        rule = _ec.bands
        for scale in (0.9, 3.2):
            line = []
            for count in (1, 2, 4, 8):
                _ec.bands = lambda tokens, count=count: count
                line.append(f"{count}: {compress(kv, _ec.codec('EC-X', base * scale, artifact), BLOCK)[1]:.3f}")
            _ec.bands = rule
            print(f"  {name}, first sequence, bits by the count of bands  {', '.join(line)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
