"""Ideas for fewer bits at equal quality, each alone, on EC-X's coefficients: `tests/eval/run ideas`.

    coefficients of test prefixes --> an idea's integers --> bits under tables learnt from all of them, mean KL

All ideas, the plain rounding of EC-X among them, are coded with tables learnt from the very integers that they code
(a table for each of 28 scales of a column, and for each context), so the rows compare with each other and not with a
record. What is asked: how many of plain's bits an idea needs at the KL that it has.

    plain      rounding to the nearest
    loudness   plain, the table chosen by how large the token's earlier coefficients were for their columns
    rdo        the rounding that costs least in error + lambda * bits (values move toward zero)
    feedback   a token's rounding errors, times alpha, are added to the next token's coefficients
    dependent  two quantisers of twice the step, shifted, chosen by four states that the parities drive; Viterbi
               (ECTCQ: Fischer and Wang 1992; as in VVC: Schwarz et al. 2019)
    levels     a step of its own for each token, in half octaves, by how much the model will depend on it, as a linear
               function of the token's key before rotation (and of its position) predicts; a level a token is sent
"""

from __future__ import annotations

import argparse
import pickle
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Planes = list[np.ndarray]  # Of each layer K's coefficients [columns, tokens], then V's.
MOST = 40  # Magnitudes from here on are one symbol.
EDGES = np.concatenate([[0.004, 0.008, 0.015], np.geomspace(0.03, 8, 24)])  # Of a column's mean magnitude.
LEVELS = 6  # Half octaves to either side.
STATES = np.array([[0, 2], [2, 0], [1, 3], [3, 1]])  # [state][parity] -> state; 0 and 1 use the first quantiser.


class Tables:
    """Costs in bits of integers, by the column's scale and a context."""

    def __init__(self, contexts: int) -> None:
        self._counts = np.full((len(EDGES) + 1, contexts, 2 * MOST + 1), 0.02)

    def learn(self, q: np.ndarray, context: np.ndarray) -> None:
        scale = np.broadcast_to(scales(q)[:, None], q.shape)
        np.add.at(self._counts, (scale.ravel(), context.ravel(), symbols(q).ravel()), 1)

    def costs(self) -> np.ndarray:
        p = self._counts / self._counts.sum(-1, keepdims=True)
        return -np.log2(np.maximum(p, 1 / 4096))


def scales(q: np.ndarray) -> np.ndarray:
    return np.searchsorted(EDGES, np.abs(q).mean(axis=1))


def symbols(q: np.ndarray) -> np.ndarray:
    return np.clip(q, -MOST, MOST) + MOST


def bits(costs: np.ndarray, q: np.ndarray, context: np.ndarray) -> float:
    """With the best of three tables a column, and a byte to name it."""
    own = scales(q)
    choices = [costs[np.clip(own + d, 0, len(EDGES))[:, None], context, symbols(q)].sum(axis=1) for d in (-1, 0, 1)]
    return float((np.min(choices, axis=0) + 8).sum())


def loudness(q: np.ndarray) -> np.ndarray:
    size = np.abs(q)
    expected = np.broadcast_to(size.mean(axis=1, keepdims=True), q.shape)
    ratio = np.ones(q.shape)
    ratio[1:] = (np.cumsum(size, 0)[:-1] + 1) / (np.cumsum(expected, 0)[:-1] + 1)
    return np.digitize(ratio, [0.75, 1.0, 1.3])


def rdo(x: np.ndarray, start: np.ndarray, costs: np.ndarray, weight: float) -> np.ndarray:
    table = costs[scales(start), 0]
    best, out = np.full(x.shape, np.inf), np.zeros(x.shape, int)
    for k in (np.floor(np.abs(x)), np.floor(np.abs(x)) + 1, np.zeros(x.shape)):
        q = (k * np.sign(x)).astype(int)
        cost = (x - q) ** 2 + weight * np.take_along_axis(table, symbols(q), 1)
        out = np.where(cost < best, q, out)
        best = np.minimum(best, cost)
    return out


def feedback(x: np.ndarray, alpha: float) -> np.ndarray:
    q, error = np.zeros(x.shape, int), np.zeros(len(x))
    for t in range(x.shape[1]):
        wanted = x[:, t] + alpha * error
        q[:, t] = np.rint(wanted)
        error = np.clip(wanted - q[:, t], -0.5, 0.5)
    return q


def dependent(x: np.ndarray, start: np.ndarray, costs: np.ndarray, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """x in units of half a quantiser's step. Integers, and which quantiser each is of: k stands for 2k - sign(k) * that."""
    columns, tokens = x.shape
    own = scales(start)
    total = np.full((4, tokens), np.inf)
    total[0] = 0
    came, chose = np.zeros((columns, 4, tokens), np.int8), np.zeros((columns, 4, tokens), np.int32)
    for i in range(columns):
        best = {}
        for second in (0, 1):
            low = np.maximum(np.floor((np.abs(x[i]) + second) / 2), 0)
            for k in (low, low + 1, np.zeros(tokens)):
                q = (k * np.where(x[i] < 0, -1, 1)).astype(int)
                cost = (x[i] - 2 * q + second * np.sign(q)) ** 2 + weight * costs[own[i], second, symbols(q)]
                for parity in (0, 1):
                    fits = np.where(np.abs(q) % 2 == parity, cost, np.inf)
                    held = best.get((second, parity), (np.zeros(tokens, int), np.full(tokens, np.inf)))
                    best[second, parity] = (np.where(fits < held[1], q, held[0]), np.minimum(fits, held[1]))
        new = np.full((4, tokens), np.inf)
        for state in range(4):
            for parity in (0, 1):
                q, cost = best[state // 2, parity]
                to, sum_ = STATES[state][parity], total[state] + cost
                better = sum_ < new[to]
                came[i, to] = np.where(better, state, came[i, to])
                chose[i, to] = np.where(better, q, chose[i, to])
                new[to] = np.minimum(new[to], sum_)
        total = new
    state, every = total.argmin(0), np.arange(tokens)
    out, second = np.zeros(x.shape, int), np.zeros(x.shape, int)
    for i in range(columns - 1, -1, -1):
        out[i], state = chose[i, state, every], came[i, state, every]
        second[i] = state // 2
    return out, second


class Importance:
    """Of each plane, what predicts the log of a token's Fisher information from its key: ridge regression."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
        self._fitted: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    @staticmethod
    def features(key: np.ndarray, first: int) -> np.ndarray:
        """key [tokens, kv_heads * dim] before rotation."""
        return np.column_stack([key, np.log(np.arange(first, first + len(key)))])

    def add(self, plane: tuple[int, int], features: np.ndarray, energy: np.ndarray) -> None:
        self._seen.setdefault(plane, []).append((features, np.log(energy)))

    def fit(self, ridge: float = 300.0) -> None:
        for plane, parts in self._seen.items():
            x, y = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
            mean, spread = x.mean(0), x.std(0) + 1e-6
            z = (x - mean) / spread
            w = np.linalg.solve(z.T @ z + ridge * np.eye(z.shape[1]), z.T @ (y - y.mean()))
            self._fitted[plane] = (mean, spread, w)
        self._seen.clear()

    def levels(self, plane: tuple[int, int], features: np.ndarray, strength: float) -> np.ndarray:
        """Half octaves by which a token's step is smaller; 1.0: as the formula has it, step ~ information^(-1/2)."""
        mean, spread, w = self._fitted[plane]
        return np.clip(np.rint(strength * ((features - mean) / spread) @ w / np.log(2)), -LEVELS, LEVELS).astype(int)


def calibration_texts(cache: Path) -> list[str]:
    import texts

    library = Path(sysconfig.get_paths()["stdlib"])  # Modules that texts.load("python-source") does not take.
    modules = ("smtplib", "shutil", "random", "statistics", "subprocess", "threading", "typing", "urllib/request", "uuid",
               "weakref", "xmlrpc/client", "socketserver", "textwrap", "unittest/mock")
    return [texts.load("debian-reference/calibrate", cache), "\n\n".join((library / f"{m}.py").read_text() for m in modules)]


def unrotated(artifact, layer: int, kind: int, x: np.ndarray, first: int) -> np.ndarray:
    """[tokens, kv_heads * dim]"""
    from tiercel._transforms import rotate
    from tiercel.artifact import K

    turns = artifact.turns(layer) if kind == K else np.zeros(0, np.uint64)
    x = rotate(np.asarray(x, np.float32), turns, artifact.rope_style, first, back=True)
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def learn_importance(replay, artifact, measured, texts_: list[str], count: int, prefix: int, suffix: int) -> Importance:
    import torch
    from tiercel._transforms import metric
    from tiercel.artifact import K, V
    from tiercel.calibrate import EXACT_TOKENS as FIRST

    out, generator = Importance(), torch.Generator().manual_seed(9)
    roots = {(layer, kind): metric(measured.fisher(layer, kind), 1.0) for layer in range(replay.layers) for kind in (K, V)}
    for text in texts_:
        for ids in replay.sequences(text, prefix + suffix, count):
            kv = replay.prefix(ids[:prefix])
            slopes = replay.gradients(kv, ids[prefix:], generator)
            for layer in range(replay.layers):
                key = Importance.features(unrotated(artifact, layer, K, kv[layer][0], 0)[FIRST:], FIRST)
                for at, kind in enumerate((K, V)):
                    slope = unrotated(artifact, layer, kind, slopes[layer][at], 0)[FIRST:]
                    out.add((layer, kind), key, (np.linalg.solve(roots[layer, kind], slope.T) ** 2).sum(0))
    out.fit()
    return out


class Bench:
    """Test prefixes as coefficients of EC-X, and back to what the model says from them."""

    def __init__(self, replay, artifact, importance: Importance, sequences: list[list[int]], prefix: int, block: int) -> None:
        from tiercel.artifact import WHOLE_LAYER, K, V
        from tiercel.calibrate import EXACT_TOKENS

        self.replay, self.artifact, self.first = replay, artifact, EXACT_TOKENS
        self.cases, self.planes, self.keys = [], [], []
        self.kinds = [(layer, kind) for layer in range(replay.layers) for kind in (K, V)]
        for ids in sequences:
            kv, suffix = replay.prefix(ids[:prefix]), ids[prefix:-1]
            self.cases.append((kv, suffix, replay.log_probabilities(kv, suffix)))
            rows = {p: unrotated(artifact, *p, kv[p[0]][0 if p[1] == K else 1][:, self.first:], self.first) for p in self.kinds}
            self.planes.append([((rows[p] - artifact.transforms[(*p, WHOLE_LAYER)].mean)
                                 @ artifact.transforms[(*p, WHOLE_LAYER)].analysis.T).T for p in self.kinds])
            self.keys.append({layer: Importance.features(rows[layer, K], self.first) for layer in range(replay.layers)})
        self.importance = importance
        cuts = [c - self.first for c in range(block, prefix, block)]
        self.blocks = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, prefix - self.first])]

    def kl(self, coded: list[Planes]) -> float:
        from tiercel._ec import bf16
        from tiercel._replay import divergence
        from tiercel._transforms import rotate
        from tiercel.artifact import WHOLE_LAYER, K

        out = []
        for (kv, suffix, base), planes in zip(self.cases, coded):
            given: list[list[np.ndarray]] = [[] for _ in kv]
            for (layer, kind), y in zip(self.kinds, planes):
                x = kv[layer][0 if kind == K else 1]
                t = self.artifact.transforms[layer, kind, WHOLE_LAYER]
                rows = (y.T.astype(np.float32) @ t.synthesis.T.astype(np.float32)) * t.scale + t.mean
                z = rows.reshape(len(rows), len(x), -1).transpose(1, 0, 2)
                turns = self.artifact.turns(layer) if kind == K else np.zeros(0, np.uint64)
                z = bf16(rotate(z.astype(np.float32), turns, self.artifact.rope_style, self.first))
                given[layer].append(np.concatenate([x[:, :self.first], z], axis=1))
            out.append(divergence(base, self.replay.log_probabilities([tuple(g) for g in given], suffix)).mean())
        return float(np.mean(out))

    def parts(self) -> Iterator[tuple[int, int, slice]]:
        for case in range(len(self.cases)):
            for plane in range(len(self.kinds)):
                for block in self.blocks:
                    yield case, plane, block

    def run(self, idea: str, step: float, setting: float = 0.0) -> tuple[float, float]:
        """Bits a value, mean KL."""
        back = [[np.zeros(y.shape) for y in planes] for planes in self.planes]
        coded: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = {}
        contexts, side = {"loudness": 4, "dependent": 2, "levels": 2 * LEVELS + 1}.get(idea, 1), 0.0
        tables = Tables(contexts)
        for _ in range(3 if idea in ("rdo", "dependent") else 1):
            costs, learnt = tables.costs(), Tables(contexts)
            for case, plane, block in self.parts():
                y = self.planes[case][plane][:, block]
                held = coded.get((case, plane, block.start))
                context, unit = np.zeros(y.shape, int), step
                if idea == "levels":
                    layer, kind = self.kinds[plane]
                    level = self.importance.levels((layer, kind), self.keys[case][layer][block], setting)
                    unit = step * 2.0 ** (-level / 2)
                    context = np.broadcast_to(level + LEVELS, y.shape)
                if idea == "rdo" and held:
                    q = rdo(y / unit, held[0], costs, setting)
                elif idea == "feedback":
                    q = feedback(y / unit, setting)
                elif idea == "dependent" and held:
                    q, context = dependent(y / unit, held[0], costs, setting)
                else:
                    q = np.rint(y / unit / (2 if idea == "dependent" else 1)).astype(int)
                if idea == "loudness":
                    context = loudness(q)
                coded[case, plane, block.start] = (q, context)
                learnt.learn(q, context)
                back[case][plane][:, block] = (2 * q - context * np.sign(q) if idea == "dependent" else q) * unit
            tables = learnt
        costs = tables.costs()
        spent = sum(bits(costs, q, context) for q, context in coded.values()) + 832 * len(coded)  # Fixed bytes of a segment.
        if idea == "levels":
            for q, context in coded.values():
                p = np.bincount(context[0], minlength=contexts) / q.shape[1]
                side -= q.shape[1] * float((p[p > 0] * np.log2(p[p > 0])).sum())
        values = sum(y.size for planes in self.planes for y in planes)
        return (spent + side) / values, self.kl(back)


def main(arguments: list[str] | None = None) -> int:
    import models
    import quality
    import texts
    import worker
    from tiercel import calibrate
    from tiercel._replay import Replay

    parser = argparse.ArgumentParser(prog="tests/eval/run ideas", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sequences", type=int, default=2, help="test sequences a domain (2)")
    parser.add_argument("--domains", nargs="+", default=["debian-reference/test", "python-source"])
    parser.add_argument("--calibration", type=int, default=8, help="sequences of each of two texts, for levels (8)")
    parser.add_argument("--dependent", action="store_true", help="also dependent quantisation: minutes a row")
    chosen = parser.parse_args(arguments)
    cache, prefix, suffix = quality.CACHE, 768, 192
    replay = Replay(models.folder("smollm2", cache))
    artifact = calibrate.blank(replay)
    setup = worker.Setup(models.folder("smollm2", cache), prefix, suffix, 256, artifact)
    measured = quality.measured(setup, "smollm2", quality.CALIBRATION[0], 16, 2)
    calibrate.transforms_into(artifact, measured, 1.0)
    kept = cache / f"importance-smollm2-{chosen.calibration}.pickle"
    if kept.exists():
        importance = pickle.loads(kept.read_bytes())
    else:
        importance = learn_importance(replay, artifact, measured, calibration_texts(cache / "texts"), chosen.calibration, prefix, suffix)
        kept.write_bytes(pickle.dumps(importance))
    base = float(np.sqrt(24 * 4e-3 / (2 * replay.layers * replay.kv_heads * replay.head_dim * prefix)))
    for domain in chosen.domains:
        sequences = replay.sequences(texts.load(domain, cache / "texts"), prefix + suffix + 1, chosen.sequences)
        bench = Bench(replay, artifact, importance, sequences, prefix, 256)
        print(f"smollm2, {domain}, {len(sequences)} sequences, blocks of 256", flush=True)
        plain = sorted((kl, b) for b, kl in (bench.run("plain", base * s) for s in (0.6, 0.9, 1.3, 1.9, 2.7)))
        for kl, b in plain:
            print(f"  {'plain':<18} {b:6.3f} bits  KL {kl:.2e}", flush=True)
        rows = [("loudness", 0.9, 0.0), ("rdo", 0.8, 0.1), ("rdo", 0.8, 0.03), ("feedback", 0.9, 0.3), ("feedback", 0.9, 0.6),
                ("levels", 1.3, 0.5), ("levels", 1.3, 0.8), ("levels", 1.9, 0.8), ("levels", 1.9, 1.1), ("levels", 2.7, 0.8)]
        rows += [("dependent", 0.42, 0.3), ("dependent", 0.5, 0.05)] if chosen.dependent else []
        for idea, scale, setting in rows:
            b, kl = bench.run(idea, base * scale, setting)
            same = float(np.interp(np.log(kl), np.log([p[0] for p in plain]), [p[1] for p in plain]))
            print(f"  {idea + (f' {setting:g}' if setting else ''):<18} {b:6.3f} bits  KL {kl:.2e}  {b / same:.3f} of plain's bits at that KL", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
