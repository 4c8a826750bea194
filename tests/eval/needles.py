"""Retrieval: keys given early in a prompt, to be repeated at its end, at 20 depths."""

from __future__ import annotations

import numpy as np
import texts
import worker

DEPTHS = 20
NAMES = ("Alice", "Boris", "Clara", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "James")


def prompt(replay, filler: list[int], prefix: int, depth: int, seed: int) -> tuple[list[int], list[int]]:
    """Token ids of a prompt whose first `prefix` tokens hold the key at that depth, and the key's."""
    g = np.random.default_rng(seed)
    name = NAMES[int(g.integers(len(NAMES)))]
    digits = "".join(str(d) for d in g.integers(0, 10, 5))
    fact = f"he secret code of {name} is {digits}."
    told = replay.tokens(f"\n\nT{fact} Remember: t{fact}\n\n")
    room = prefix - len(told)
    start = int(g.integers(0, len(filler) - room))
    text = filler[start:start + room]
    at = 8 + (room - 8) * depth // DEPTHS
    asked = replay.tokens(f"\n\nWhat is the secret code of {name}? The secret code of {name} is")
    whole = replay.tokens(f" {digits}")
    return text[:at] + told + text[at:] + asked, whole


def run(setup, replay, artifact, trials: int, base: float, spread, workers: int, say) -> list[str]:
    """Lines of the report: right answers of each codec, and the goal."""
    filler = replay.tokens(texts.load("debian-handbook", worker.ROOT / "build" / "eval" / "texts"))
    points = [("TurboQuant-4", 0.0), ("SAW-INT4", 0.0), ("EC-C", base), ("EC-K", base), ("EC-X", base)]
    jobs = []
    for trial in range(trials):
        ids, key = prompt(replay, filler, setup.prefix, trial % DEPTHS, trial)
        jobs.append((ids, key, points))
    right = []
    for result in spread(setup, workers, worker.needle, jobs):
        right.append(result)
        if len(right) % 20 == 0:
            say(f"{len(right)} of {trials} keys asked for")
    share = np.mean(right, axis=0)
    lines = [f"retrieval of a key of five digits, {trials} trials at {DEPTHS} depths"]
    lines += [f"  {name:24}{value:.3f}" for name, value in zip(["exact", *(f'{n} @{s:.3g}' for n, s in points)], share)]
    lines.append(f"GOAL retrieval.exact {share[0]:.3f} right 0.8 {'MET' if share[0] >= 0.8 else 'MISSED'}")
    worst = share[0] - share[3:].min()
    lines.append(f"GOAL retrieval.loss {worst:.3f} of-exact 0.02 {'MET' if worst <= 0.02 else 'MISSED'}")
    return lines
