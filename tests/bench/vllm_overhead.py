#!/usr/bin/env python3
"""What the connector costs vLLM when nothing hits and everything is stored: tokens a second beside vLLM without it.

Two engines stand ready, one with the connector; in each pair both are given the same prompts, which nobody has seen,
and the one that goes first changes. Run by tests/bench/run vllm; --quick: three pairs.
"""

import argparse
import json
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e/vllm"))
from rig import Engine, Server, finish, goal, setup  # noqa: E402

VOCABULARY, LEAST = 49152, 0.95


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--json", metavar="FILE")
    options.add_argument("--pairs", type=int, default=10)
    options.add_argument("--prompts", type=int, default=4)
    options.add_argument("--tokens", type=int, default=900)
    chosen = options.parse_args()
    pairs = 3 if chosen.quick else chosen.pairs
    setup()
    dice = random.Random(7)
    ratios, rows = [], []
    with Server() as server, Engine("bench-plain") as plain, Engine("bench-tiercel", {"endpoint": server.grpc}) as stored:
        if not all(stored.began["open"]):
            sys.exit("the connector did not reach the node")
        engines = [("plain", plain), ("tiercel", stored)]
        for pair in range(-1, pairs):  # The first is for warmth.
            prompts = [[dice.randrange(100, VOCABULARY) for _ in range(chosen.tokens)] for _ in range(chosen.prompts)]
            speed = {}
            for name, engine in engines if pair % 2 else engines[::-1]:
                told = engine.ask(bench=prompts)
                speed[name] = told["tokens"] / told["seconds"]
            if pair < 0:
                continue
            ratios.append(speed["tiercel"] / speed["plain"])
            rows.append({"pair": pair, **speed, "ratio": ratios[-1], "counts": told["counts"]})
            print(f"pair {pair}: plain {speed['plain']:.0f} tokens/s, with Tiercel {speed['tiercel']:.0f}, ratio {ratios[-1]:.3f}", flush=True)
        counts = stored.ask(bench=[[dice.randrange(100, VOCABULARY) for _ in range(200)]])["counts"]
    expected = chosen.prompts * (chosen.tokens // 128) * pairs
    saved = counts.get("vllm:tiercel_blocks_saved", 0)
    print(f"stored {saved:.0f} blocks, loaded {counts.get('vllm:tiercel_blocks_loaded', 0):.0f}, skipped {counts.get('vllm:tiercel_saves_skipped', 0):.0f}")
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(rows, indent=1))
    middle = statistics.median(ratios)
    print(f"throughput with Tiercel over plain: median {middle:.3f} min {min(ratios):.3f} max {max(ratios):.3f} of {pairs} pairs")
    goal("vllm_throughput_all_stored_over_plain", middle, "ratio", f">={LEAST}", middle >= LEAST)
    goal("vllm_overhead_blocks_stored", saved, "blocks", f">={expected}", saved >= expected)
    finish()


main()
