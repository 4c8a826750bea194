"""Retrieval: keys given early in a prompt, to be repeated at its end, at 20 depths."""

from __future__ import annotations

import numpy as np
import texts
import worker

DEPTHS = 20
KEYS = 4  # A prompt.
NAMES = ("Alice", "Boris", "Clara", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "James")


Asked = list[tuple[list[int], list[int]]]  # Of each key, the question's tokens and the key's.


def prompt(replay, filler: list[int], prefix: int, depth: int, seed: int) -> tuple[list[int], Asked]:
    """Token ids of a prefix with KEYS keys, of as many names, at that depth and evenly spread after it."""
    g = np.random.default_rng(seed)
    names = g.permutation(NAMES)[:KEYS]
    keys = ["".join(str(d) for d in g.integers(0, 10, 5)) for _ in names]
    told = []
    for name, digits in zip(names, keys):
        fact = f"he secret code of {name} is {digits}."
        told.append(replay.tokens(f"\n\nT{fact} Remember: t{fact}\n\n"))
    room = prefix - sum(len(t) for t in told)
    start = int(g.integers(0, len(filler) - room))
    text = filler[start:start + room]
    depths = sorted((depth + i * DEPTHS // KEYS) % DEPTHS for i in range(KEYS))
    cuts = [8 + (room - 8) * d // DEPTHS for d in depths]
    ids = text[:cuts[0]]
    for fact, begin, end in zip(told, cuts, [*cuts[1:], room]):
        ids += fact + text[begin:end]
    question = "\n\nWhat is the secret code of {0}? The secret code of {0} is"
    asked = [(replay.tokens(question.format(name)), replay.tokens(f" {digits}")) for name, digits in zip(names, keys)]
    return ids, asked


def run(setup, replay, steps: dict[str, float], trials: int, spread, workers: int, say) -> list[str]:
    """Lines of the report: right answers of each codec, ours at the steps given, and the goals."""
    filler = replay.tokens(texts.load("debian-handbook", worker.ROOT / "build" / "eval" / "texts"))
    points = [("TurboQuant-4", 0.0), ("SAW-INT4", 0.0), *steps.items()]
    jobs = []
    for trial in range(-(-trials // KEYS)):
        ids, asked = prompt(replay, filler, setup.prefix, trial % (DEPTHS // KEYS), trial)
        jobs.append((ids, asked, points))
    right = []
    for result in spread(setup, workers, worker.needle, jobs):
        right += result
        if len(right) % 20 == 0:
            say(f"{len(right)} of {len(jobs) * KEYS} keys asked for")
    share = np.mean(right, axis=0)
    lines = [f"retrieval of a key of five digits, {len(right)} trials at {DEPTHS} depths, {KEYS} keys a prompt; "
             "ours at `balanced`, 3 times fp8's KL"]
    names = ["exact", *(f"{n} @{s:.3g}" if s else n for n, s in points)]
    lines += [f"  {name:24}{value:.3f}" for name, value in zip(names, share)]
    lines.append(f"GOAL retrieval.exact {share[0]:.3f} right 0.8 {'MET' if share[0] >= 0.8 else 'MISSED'}")
    worst = share[0] - share[3:].min()
    lines.append(f"GOAL retrieval.loss {worst:.3f} of-exact 0.02 {'MET' if worst <= 0.02 else 'MISSED'}")
    return lines
