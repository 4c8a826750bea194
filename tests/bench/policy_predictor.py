"""How well can it be foretold, without hints, whether a conversation goes on, and what is that worth to the cache?

    tests/bench/run predictor [--traces FOLDER]

Gradient boosting (scikit-learn) is trained on the first half of the conversation trace and says of each request whether it
goes on, as docs/policy.md defines it: of the second half as trained, of the first by five-fold cross-validation. What it says
goes into the trace as hints, at several thresholds, and the production policy replays it (`tiercel policy simulate --hints
said`). Once it sees what a node sees of a request, once also lengths in tokens, of the answer too, which no node knows. Beside
it: no hints, honest ones, and honest ones of which a share is wrong, which is how good a predictor would have to be."""
import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

SIZES = (5, 10)


def look(requests):
    """Of each request what a node sees of it and of what came before, the same in tokens, and whether it goes on."""
    node, tokens, last_use, uses, turn, since, known = [], [], {}, {}, [], [], []
    for i, request in enumerate(requests):
        chain = request["hash_ids"]
        seen = next((k for k, block in enumerate(chain) if block not in uses), len(chain))
        known.append(seen)
        # The turn before: who used the deepest block that was seen before; a head that all share is no conversation.
        before = last_use[chain[seen - 1]] if seen > 1 else None
        turn.append(0 if before is None else turn[before] + 1)
        since.append(-1 if before is None else request["timestamp"] - requests[before]["timestamp"])
        answered = -1 if before is None else requests[before]["output_length"]
        grew = -1 if before is None else request["input_length"] - requests[before]["input_length"] - answered
        node.append([turn[i], since[i], len(chain), len(chain) - seen, seen, -1 if before is None else since[before],
                     uses.get(chain[min(1, len(chain) - 1)], 0), uses.get(chain[-1], 0)])
        tokens.append([request["input_length"], request["output_length"], answered, grew, request["timestamp"]])
        for block in chain:
            uses[block] = uses.get(block, 0) + 1
            last_use[block] = i
    goes_on, later = np.zeros(len(requests), int), set()
    for i in reversed(range(len(requests))):
        chain = requests[i]["hash_ids"]
        last = len(chain) - 1
        middle = known[i] + (last - known[i]) // 2 if known[i] < last else max(last - 1, 0)
        goes_on[i] = chain[middle] in later
        later.update(chain)
    return np.array(node, float), np.array(tokens, float), goes_on


def foretell(features, goes_on, half):
    model = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=40, l2_regularization=1.0, random_state=1)
    first = cross_val_predict(model, features[:half], goes_on[:half], cv=5, method="predict_proba")[:, 1]
    second = model.fit(features[:half], goes_on[:half]).predict_proba(features[half:])[:, 1]
    return np.concatenate([first, second])


def replay(tiercel, requests, hints, how="said"):
    """Hit ratio of the default policy by that of MIN, for each size."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as trace:
        for request, hint in zip(requests, hints):
            trace.write(json.dumps({"timestamp": request["timestamp"], "hash_ids": request["hash_ids"], "hint": "likely" if hint else "done"}) + "\n")
        trace.flush()
        out = subprocess.run([tiercel, "policy", "simulate", trace.name, "--policy", "hazard", "--hints", how, *[f"--sizes={size}" for size in SIZES]],
                             capture_output=True, text=True, check=True).stdout
    rows = {int(m[1]): float(m[2]) / float(m[3]) for m in re.finditer(r"^ +(\d+) +\d+ +([\d.]+) +([\d.]+) *$", out, re.M)}
    return [rows[size] for size in SIZES]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="the folder of conversation_trace_first6000.jsonl")
    parser.add_argument("--tiercel", default="build/dev/bin/tiercel")
    arguments = parser.parse_args()
    path = arguments.traces / "conversation_trace_first6000.jsonl"
    if not path.is_file():
        parser.error(f"{path}: no such trace")
    requests = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    node, tokens, goes_on = look(requests)
    half = len(requests) // 2
    print(f"{len(requests)} requests; {goes_on[:half].mean():.3f} of the first half go on, {goes_on[half:].mean():.3f} of the second")
    print(f"{'':58}{'of MIN at':>10} {SIZES[0]} %   {SIZES[1]} %")

    def row(name, ratios):
        print(f"{name:<66}" + "  ".join(f"{ratio:.3f}" for ratio in ratios), flush=True)

    row("no hints", replay(arguments.tiercel, requests, goes_on, "none"))
    row("honest", replay(arguments.tiercel, requests, goes_on))
    dice = np.random.default_rng(1)
    for share in (0.1, 0.2, 0.25, 0.3, 0.4):
        wrong = dice.random(len(requests)) < share
        row(f"honest, {share:.0%} wrong", replay(arguments.tiercel, requests, np.where(wrong, 1 - goes_on, goes_on)))
    best = 0
    for name, features in (("by what a node sees", node), ("and by lengths in tokens", np.hstack([node, tokens]))):
        chance = foretell(features, goes_on, half)
        auc = [roc_auc_score(goes_on[part], chance[part]) for part in (slice(half), slice(half, None))]
        print(f"{name}: area under the curve {auc[0]:.3f} in the first half, {auc[1]:.3f} in the second")
        for share in (0.2, 0.3, 0.4, 0.5, 0.6):
            says = chance > np.quantile(chance[:half], 1 - share)
            ratios = replay(arguments.tiercel, requests, says)
            best = max(best, ratios[0])
            row(f"  the likeliest {share:.0%}; {np.mean(says != goes_on):.0%} wrong", ratios)
    print(f"GOAL policy_predictor_5pct {best:.3f} of_min >=0.6 {'MET' if best >= 0.6 else 'MISSED'}")


main()
