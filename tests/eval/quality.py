"""What codecs cost a real model, in bits and in what it says: `tests/eval/run quality`.

    calibrate on half a book and some code --> compress prefixes of other texts --> teacher-force what follows

Prefixes of 768 tokens (Gemma-3: 384, so that its sliding layers see all of it) go through every codec, the first 4
tokens excepted; 192 suffix tokens follow. Where the package with its extension can be imported (tests/eval/run installs
it), EC-* and LLE are records, written, counted whole and decoded; else numpy references: the values are the format's, the
bits the costs of its frozen tables, its lists and a segment's fixed bytes. The report says which.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
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
CALIBRATION = ("debian-reference/calibrate", "python-source/calibrate")
DOMAINS = ("debian-reference/test", "debian-handbook", "python-source")


def points(base: float, quick: bool, first: bool, block: int) -> list[tuple[str, float]]:
    """(codec, setting) of everything that is measured. base: a step of about 4e-3 nats where there are no levels."""
    out = [(name, 0.0) for name in worker.fixed_rate(1)]
    steps = (0.7, 1.4, 2.8) if quick else (0.4, 0.8, 1.4, 2.4, 4.0)
    for name in ("EC-X", "EC-K", "EC-C"):
        out += [(name, base * s) for s in steps]
    if first and not quick:
        out += [("EC-X" + records.NO_LEVELS, base * s) for s in (0.9, 1.5)]
    out += [("EC-C, one step", 0.4 if quick else 0.2)]
    out += [("KVTC-like", b) for b in ((3.0,) if quick else (2.5, 3.0, 4.0))]
    if block != 256:  # Fixed rates do not depend on it.
        out = [p for p in out if p[0] in records.NAMES]
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
    seeds = (1000 + 2 * i + CALIBRATION.index(name) for i in itertools.count())
    for i, part in enumerate(spread(setup, workers, worker.measure, list(zip(sequences, seeds)))):
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
    parser.add_argument("--sequences", type=int, help="test sequences, first domain, blocks of 256 (6; quick 2)")
    parser.add_argument("--fewer", type=int, help="of the other domains and sizes of blocks (3; quick 2)")
    parser.add_argument("--calibration", type=int, help="calibration sequences a text (16; quick 6)")
    parser.add_argument("--calibrate-on", nargs="+", default=CALIBRATION, choices=CALIBRATION, metavar="TEXT",
                        help=f"{' and '.join(CALIBRATION)} (both)")
    parser.add_argument("--domains", nargs="+", default=None, help=f"of {', '.join(DOMAINS)} (all; quick the first)")
    parser.add_argument("--blocks", type=int, nargs="+", help="tokens (256; on the first domain 128 64 16, too)")
    parser.add_argument("--without", nargs="+", default=[], metavar="CODEC", help="families to leave out, by their names")
    parser.add_argument("--eps", type=float, default=1.0)
    parser.add_argument("--strength", type=float, default=calibrate.STRENGTH, help="of levels")
    parser.add_argument("--needles", type=int, help="retrieval trials (200; quick 0)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="docs/reports (quick: build/eval)")
    chosen = parser.parse_args()
    quick = chosen.quick
    count = chosen.sequences or (2 if quick else 6)
    fewer = min(chosen.fewer or (2 if quick else 3), count)
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
    total = calibrate.Measured()
    for name in chosen.calibrate_on:
        total.merge(measured(setup, chosen.model, name, chosen.calibration or (6 if quick else 16), chosen.workers))
    setup.plain = calibrate.blank(replay)
    calibrate.learn(setup.plain, total, chosen.eps, 0.0)
    calibrate.learn(artifact, total, chosen.eps, chosen.strength)
    total.tokens.clear()
    setup.measured = total
    values = 2 * replay.layers * replay.kv_heads * replay.head_dim
    base = float(np.sqrt(24 * 4e-3 / (values * setup.prefix)))

    why = records.missing(artifact)
    setup.records = not why
    report = [f"$ tests/eval/run quality {' '.join(sys.argv[1:])}".rstrip(),
              "EC-* and LLE: " + (f"references, no record was written: {why}" if why
                                  else "records, every byte of them counted"), ""]
    written = out / f"quality-{chosen.model}.txt"
    steps: dict[str, float] = {}  # What gives `balanced`, three times fp8's KL.
    tables = [(d, b) for d in domains for b in (blocks if d == domains[0] else blocks[:1])]
    trials = (0 if quick else 200) if chosen.needles is None else chosen.needles
    for domain, block in tables:
        first = (domain, block) == tables[0]
        text = texts.load(domain, CACHE / "texts")
        sequences = replay.sequences(text, setup.prefix + setup.suffix + 1, count if first else fewer)
        setup.block = block
        wanted = [p for p in points(base, quick, first, block) if p[0] not in chosen.without]
        jobs = [(s, wanted, block == blocks[0]) for s in sequences]
        say(f"{chosen.model} on {domain}, blocks of {block}: {len(jobs)} sequences, {len(wanted)} codecs")
        name = f"quality-{chosen.model}-{domain.split('/')[0]}-{block}"
        results = []
        for points_ in spread(setup, chosen.workers, worker.replay, jobs):
            results.append(points_)
            table.write_csv(out / f"{name}.csv", table.rows(results))  # What there is, should it be cut short.
            say(f"{len(results)} of {len(jobs)} sequences")
        rows = table.rows(results)
        families = table.by_family(rows)
        lines = [f"{chosen.model}, {domain}, blocks of {block} tokens, {len(jobs)} sequences", table.as_text(rows)]
        if block == 256:
            lines += table.goals(rows, chosen.model, aimed_at=first)
            table.plot(out / f"{name}.svg", rows, f"{chosen.model}, {domain}, blocks of {block}")
        if first and "fp8 e4m3 per head" in families:
            limit = 3 * families["fp8 e4m3 per head"][0].kl
            steps = {n: table.setting_at(families[n], limit) for n in ("EC-C", "EC-K", "EC-X") if n in families}
        report += [*lines, ""]
        written.write_text("\n".join(report))
        print("\n".join(lines), flush=True)
        if first and trials:
            setup.block = 256
            steps = steps or dict.fromkeys(("EC-C", "EC-K", "EC-X"), base)
            report += [*needles.run(setup, replay, steps, trials, spread, chosen.workers, say), ""]
            print("\n".join(report[-7:]), flush=True)
    written.write_text("\n".join(report) + "\n")
    print("\n".join(line for line in report if line.startswith("GOAL")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
