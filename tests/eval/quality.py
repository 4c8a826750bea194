"""What codecs cost a real model, in bits and in what it says: `tests/eval/run quality`.

    calibrate on one half of a book --> compress prefixes of other texts --> teacher-force what follows

Prefixes of 768 tokens (Gemma-3: 384, so that its sliding layers see all of it) go through every codec, the first 4
tokens excepted; 192 suffix tokens follow. Where the package with its extension can be imported (PYTHONPATH), EC-* and LLE
are records, written, counted whole and decoded; else numpy references: the values are the format's, the bits the costs
of its frozen tables with a byte a column and a segment's fixed bytes. The report says which.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import pickle
import sys
import time
import types
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
try:
    import tiercel.calibrate  # noqa: F401
except ImportError:  # The Python part of the package suffices; its extension need not be built.
    package = types.ModuleType("tiercel")
    package.__path__ = [str(ROOT / "client" / "python" / "tiercel")]
    sys.modules["tiercel"] = package

import models
import needles
import records
import table
import texts
import worker
from tiercel import calibrate

CACHE = ROOT / "build" / "eval"
PREFIX = {"smollm2": 768, "gemma3": 384}
DOMAINS = ("debian-reference/test", "debian-handbook", "python-source")


def points(base: float, quick: bool, block: int) -> list[tuple[str, float]]:
    """(codec, setting) of everything that is measured. base: a step of about 4e-3 nats."""
    out = [(name, 0.0) for name in worker.fixed_rate(1)]
    steps = (0.5, 1.0, 2.0) if quick else (0.25, 0.5, 0.8, 1.3, 2.0, 3.0)
    for name in ("EC-X", "EC-K", "EC-C"):
        out += [(name, base * s) for s in steps]
    out += [("EC-C, one step", s) for s in ((0.4,) if quick else (0.2, 0.4))]
    out += [("KVTC-like", b) for b in ((3.0,) if quick else (2.0, 2.5, 3.0, 4.0))]
    if block != 256:  # Fixed rates do not depend on it.
        out = [p for p in out if p[0].startswith("EC-") and p[0] != "EC-C, one step"]
    return out


def measured(setup: worker.Setup, model: str, name: str, count: int, workers: int) -> calibrate.Measured:
    """Moments over a calibration text, kept in build/eval."""
    text = texts.load(name, CACHE / "texts")
    key = hashlib.sha256(f"{model} {count} {setup.prefix} {setup.suffix} {text}".encode()).hexdigest()[:12]
    kept = CACHE / f"measured-{model}-{key}.pickle"
    if kept.exists():
        return pickle.loads(kept.read_bytes())
    from tiercel._replay import Replay

    sequences = Replay(setup.folder).sequences(text, setup.prefix + setup.suffix, count)
    total = calibrate.Measured()
    for i, part in enumerate(spread(setup, workers, worker.measure, [(s, i) for i, s in enumerate(sequences)])):
        total.merge(part)
        say(f"calibration: {i + 1} of {len(sequences)}")
    kept.write_bytes(pickle.dumps(total))
    return total


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def spread(setup: worker.Setup, workers: int, function, jobs):
    """function over jobs, in order, in processes of their own."""
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs)), worker.start, (setup,)) as pool:
        yield from pool.imap(function, jobs)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/eval/run quality", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", choices=sorted(PREFIX), default="smollm2")
    parser.add_argument("--quick", action="store_true", help="few sequences and points")
    parser.add_argument("--sequences", type=int, help="test sequences a domain (10; quick 2)")
    parser.add_argument("--calibration", type=int, help="calibration sequences a text (16; quick 6)")
    parser.add_argument("--calibrate-on", nargs="+", default=["debian-reference/calibrate"], metavar="TEXT",
                        help="debian-reference/calibrate (alone, the default), python-source/calibrate")
    parser.add_argument("--domains", nargs="+", default=None, help=f"of {', '.join(DOMAINS)} (all; quick the first)")
    parser.add_argument("--blocks", type=int, nargs="+", help="tokens (256; on the first domain 128 64 16, too)")
    parser.add_argument("--eps", type=float, default=1.0)
    parser.add_argument("--needles", type=int, help="retrieval trials (200; quick 0)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="docs/reports (quick: build/eval)")
    chosen = parser.parse_args()
    quick = chosen.quick
    count = chosen.sequences or (2 if quick else 10)
    domains = chosen.domains or (DOMAINS[:1] if quick else DOMAINS)
    blocks = chosen.blocks or ([256] if quick else [256, 128, 64, 16])
    out = chosen.out or (CACHE if quick else ROOT / "docs" / "reports")
    out.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)

    from tiercel._replay import Replay

    folder = models.folder(chosen.model, CACHE)
    replay = Replay(folder)
    artifact = calibrate.blank(replay)
    setup = worker.Setup(folder, PREFIX[chosen.model], 192, 256, artifact)
    setup.measured = calibrate.Measured()
    for name in chosen.calibrate_on:
        setup.measured.merge(measured(setup, chosen.model, name, chosen.calibration or (6 if quick else 16), chosen.workers))
    calibrate.transforms_into(artifact, setup.measured, chosen.eps)
    values = 2 * replay.layers * replay.kv_heads * replay.head_dim
    base = float(np.sqrt(24 * 4e-3 / (values * setup.prefix)))

    report = [f"$ tests/eval/run quality {' '.join(sys.argv[1:])}".rstrip(),
              "EC-* and LLE: " + ("records, every byte of them counted" if records.available()
                                  else "references; no record was written"), ""]
    for domain in domains:
        text = texts.load(domain, CACHE / "texts")
        sequences = replay.sequences(text, setup.prefix + setup.suffix + 1, count)
        for block in blocks if domain == domains[0] else blocks[:1]:
            setup.block = block
            jobs = [(s, points(base, quick, block), block == blocks[0]) for s in sequences]
            say(f"{chosen.model} on {domain}, blocks of {block}: {len(jobs)} sequences, {len(jobs[0][1])} codecs")
            name = f"quality-{chosen.model}-{domain.split('/')[0]}-{block}"
            results = []
            for points_ in spread(setup, chosen.workers, worker.replay, jobs):
                results.append(points_)
                table.write_csv(out / f"{name}.csv", table.rows(results))  # What there is, should it be cut short.
                say(f"{len(results)} of {len(jobs)} sequences")
            rows = table.rows(results)
            report.append(f"{chosen.model}, {domain}, blocks of {block} tokens, {len(jobs)} sequences")
            report.append(table.as_text(rows))
            if block == 256:
                report += table.goals(rows, chosen.model)
                table.plot(out / f"{name}.svg", rows, f"{chosen.model}, {domain}, blocks of {block}")
            report.append("")
            print("\n".join(report[-(3 + (block == 256) * 12):]), flush=True)
    trials = (0 if quick else 200) if chosen.needles is None else chosen.needles
    if trials:
        setup.block = 256
        report += needles.run(setup, replay, artifact, trials, base, spread, chosen.workers, say)
    (out / f"quality-{chosen.model}.txt").write_text("\n".join(report) + "\n")
    print("\n".join(line for line in report if line.startswith("GOAL")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
