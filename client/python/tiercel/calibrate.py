"""Measures a model once, from text, so that its KV can be coded well: writes an artifact (KVA1).

    python -m tiercel.calibrate --model FOLDER --text FILE... --out MODEL.kva1
    python -m tiercel.calibrate --blocks FOLDER [--rope-theta 10000] --out MODEL.kva1

The first form needs torch and transformers (`pip install tiercel[calibrate]`) and a Hugging Face folder. It
takes stretches of the text: of most, the covariance of K and V and the Fisher information of what the model
says next; of the last few, held out, the mean KL that each step gives, from which the ladder of classes is
found. The second form knows no model: transforms by covariance alone, and no ladder. Its folder holds float
arrays [kv_heads, tokens, dim] named `layer-LLL.k.FIRST.npy` and `layer-LLL.v.FIRST.npy`, FIRST being the
position of the first token. What is computed and why: docs/artifact-format.md, "How it is measured".
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _ec
from ._transforms import Moments, head_scales, klt, levels, rotate, turns_of
from .artifact import CLASSES, CODECS, NO_LAYER, WHOLE_LAYER, Artifact, K, Step, V

if TYPE_CHECKING:
    from ._replay import Kv, Replay

EXACT_TOKENS = 4  # At the start of a prefix: never coded, never counted.
STRENGTH = 0.5  # Of levels: 1 makes a token's step the inverse root of its information, 0 leaves levels out.
# A class's limit of mean KL, as a factor of a plain format's on the same text.
LIMITS = {"near": ("int8", 1.0), "high": ("fp8", 1.0), "balanced": ("fp8", 3.0), "small": ("fp8", 10.0)}


@dataclass
class Options:
    prefix: int = 768
    suffix: int = 192
    sequences: int = 16
    held_out: int = 4
    block: int = 256
    eps: float = 1.0
    strength: float = STRENGTH
    codecs: tuple[str, ...] = ("EC-C", "EC-K", "EC-X")
    seed: int = 20261123
    say: Callable[[str], None] = field(default=lambda line: print(line, file=sys.stderr, flush=True))


@dataclass
class Tokens:
    """Of one sequence's tokens, before rotation: values f16 [tokens, kv_heads * dim], gradients the same times unit."""

    values: np.ndarray
    gradients: np.ndarray
    unit: float


@dataclass
class Measured:
    """Of each (layer, kind): moments of the values, before rotation, and of the gradients, [kv_heads * dim].

    And, where levels are to be learnt, the tokens of each sequence themselves.
    """

    values: dict[tuple[int, int], Moments] = field(default_factory=dict)
    gradients: dict[tuple[int, int], Moments] = field(default_factory=dict)
    tokens: dict[tuple[int, int], list[Tokens]] = field(default_factory=dict)

    @staticmethod
    def _add(to: dict[tuple[int, int], Moments], key: tuple[int, int], x: np.ndarray) -> None:
        """x [heads, tokens, dim]: a row a token, all heads side by side."""
        rows = _rows(x)
        to.setdefault(key, Moments(rows.shape[1])).add(rows)

    def add_values(self, layer: int, kind: int, x: np.ndarray) -> None:
        self._add(self.values, (layer, kind), x)

    def add_gradients(self, layer: int, kind: int, x: np.ndarray) -> None:
        self._add(self.gradients, (layer, kind), x)

    def add_tokens(self, layer: int, kind: int, x: np.ndarray, slope: np.ndarray) -> None:
        unit = max(float(np.abs(slope).max()) / 2**15, 1e-300)
        values = _rows(x).clip(-65504, 65504).astype(np.float16)
        self.tokens.setdefault((layer, kind), []).append(Tokens(values, (_rows(slope) / unit).astype(np.float16), unit))

    def merge(self, other: Measured) -> None:
        for mine, theirs in ((self.values, other.values), (self.gradients, other.gradients)):
            for key, moments in theirs.items():
                mine.setdefault(key, Moments(len(moments.sum))).merge(moments)
        for key, parts in other.tokens.items():
            self.tokens.setdefault(key, []).extend(parts)

    def fisher(self, layer: int, kind: int) -> np.ndarray:
        """Of one coded token and one predicted token; identity where no gradient was seen."""
        seen = self.gradients.get((layer, kind))
        return seen.second if seen else np.eye(len(self.values[layer, kind].sum))


def _rows(x: np.ndarray) -> np.ndarray:
    """[heads, tokens, dim] -> [tokens, heads * dim]"""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def rope_of(frequencies: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Radians a position of each layer [pairs] to the artifact's sections: the commonest table stands for all."""
    tables = [turns_of(f) for f in frequencies]
    keys = [t.tobytes() for t in tables]
    common = max(set(keys), key=lambda k: (keys.count(k), k))
    rope = {NO_LAYER: tables[keys.index(common)]}
    rope.update({layer: t for layer, t in enumerate(tables) if keys[layer] != common})
    return rope


def transforms_into(artifact: Artifact, measured: Measured, eps: float) -> None:
    """Fills in transforms and head scales. Groups too large for a transform get none."""
    for (layer, kind), moments in measured.values.items():
        fisher = measured.fisher(layer, kind)
        mean, covariance = moments.mean, moments.covariance
        dim = artifact.head_dim(kind)
        artifact.head_scales[layer, kind] = head_scales(fisher, artifact.kv_heads)
        parts = [(h, slice(h * dim, (h + 1) * dim)) for h in range(artifact.kv_heads)]
        if len(mean) <= 1024:
            parts.append((WHOLE_LAYER, slice(None)))
        for group, part in parts:
            artifact.transforms[layer, kind, group] = klt(
                mean[part], covariance[part, part], fisher[part, part], eps)


def levels_into(artifact: Artifact, measured: Measured, strength: float) -> None:
    """Fills in levels from what each token's gradient was, in units of its head's."""
    for (layer, kind), parts in measured.tokens.items():
        scales = head_scales(measured.fisher(layer, kind), artifact.kv_heads).astype(np.float64)
        energy = [((p.gradients.astype(np.float32) ** 2).reshape(len(p.gradients), artifact.kv_heads, -1).sum(axis=2)
                   * p.unit**2) @ scales**2 for p in parts]
        keys = [p.values for p in measured.tokens[layer, K]]
        artifact.levels[layer, kind] = levels(keys, energy, EXACT_TOKENS, strength)


def at_levels(artifact: Artifact, measured: Measured) -> Measured:
    """Moments as tokens count when each has its level's step: where it is finer, errors are less, integers larger."""
    out = Measured()
    for (layer, kind), parts in measured.tokens.items():
        n = parts[0].values.shape[1]
        values, gradients = Moments(n), Moments(n)
        for keys, part in zip(measured.tokens[layer, K], parts):
            finer = np.exp2(artifact.levels[layer, kind].foretold(keys.values, EXACT_TOKENS).astype(np.float64))
            values.add(part.values, finer)
            gradients.add(part.gradients.astype(np.float64) * (part.unit / np.sqrt(finer[:, None])))
        out.values[layer, kind], out.gradients[layer, kind] = values, gradients
    return out


def learn(artifact: Artifact, measured: Measured, eps: float, strength: float) -> None:
    """Levels, unless strength is 0 or no tokens were kept; and the transforms and head scales that go with them."""
    if strength > 0 and measured.tokens:
        levels_into(artifact, measured, strength)
        measured = at_levels(artifact, measured)
    transforms_into(artifact, measured, eps)


def collect(replay: Replay, artifact: Artifact, sequences: Sequence[Sequence[int]], options: Options) -> Measured:
    """One forward and one backward pass a sequence."""
    import torch

    measured = Measured()
    generator = torch.Generator().manual_seed(options.seed)
    for i, ids in enumerate(sequences):
        kv = replay.prefix(ids[:options.prefix])
        slopes = replay.gradients(kv, ids[options.prefix:options.prefix + options.suffix], generator)
        for layer in range(replay.layers):
            for kind, x, slope in ((K, kv[layer][0], slopes[layer][0]), (V, kv[layer][1], slopes[layer][1])):
                if kind == K:  # The rotation is orthogonal: gradients turn back as values do.
                    turns = artifact.turns(layer)
                    x, slope = (rotate(a, turns, artifact.rope_style, 0, back=True) for a in (x, slope))
                x, slope = x[:, EXACT_TOKENS:], slope[:, EXACT_TOKENS:] / np.sqrt(options.suffix)
                measured.add_values(layer, kind, x)
                measured.add_gradients(layer, kind, slope)
                if options.strength > 0:
                    measured.add_tokens(layer, kind, x, slope)
        options.say(f"calibrate: {i + 1} of {len(sequences)} sequences measured")
    return measured


class HeldOut:
    """Text kept apart, replayed once exactly, and then after any codec."""

    def __init__(self, replay: Replay, sequences: Sequence[Sequence[int]], options: Options) -> None:
        self._replay = replay
        self._options = options
        self._cases: list[tuple[Kv, Sequence[int], Any]] = []
        for ids in sequences:
            kv = replay.prefix(ids[:options.prefix])
            suffix = ids[options.prefix:options.prefix + options.suffix]
            self._cases.append((kv, suffix, replay.log_probabilities(kv, suffix)))

    def measure(self, codec: _ec.Codec) -> tuple[float, float]:
        """Mean KL in nats a token, bits a value."""
        from ._replay import compress, divergence

        kls, bits = [], []
        for kv, suffix, base in self._cases:
            coded, spent = compress(kv, codec, self._options.block, EXACT_TOKENS)
            kls.append(divergence(base, self._replay.log_probabilities(coded, suffix)).mean())
            bits.append(spent)
        return float(np.mean(kls)), float(np.mean(bits))


def find_step(measure: Callable[[float], tuple[float, float]], limit: float, seen: dict[float, tuple[float, float]],
              first: float, tries: int = 6) -> tuple[float, float, float] | None:
    """The largest step found whose mean KL is at most limit, with its KL and bits; None if none was.

    KL grows about as the square of the step: the next guess lies on that slope, or between what was seen on
    both sides. `seen` keeps what was measured from one call to the next.
    """
    for _ in range(tries):
        fitting = [s for s, (kl, _) in seen.items() if kl <= limit]
        above = [s for s, (kl, _) in seen.items() if kl > limit]
        if fitting and seen[max(fitting)][0] >= 0.9 * limit:
            break
        aim = 0.96 * limit
        if fitting and above and max(fitting) < min(above):
            a, b = max(fitting), min(above)
            low, high = max(seen[a][0], 1e-12), max(seen[b][0], 1e-12)
            guess = a * (b / a) ** (np.log(aim / low) / np.log(high / low)) if aim > low else (a * b) ** 0.5
        elif seen:
            near = max(fitting) if fitting else min(above)
            guess = near * np.clip((aim / max(seen[near][0], 1e-12)) ** 0.5, 0.1, 10)
        else:
            guess = first
        seen[float(guess)] = measure(float(guess))
    fitting = [s for s, (kl, _) in seen.items() if kl <= limit]
    return (max(fitting), *seen[max(fitting)]) if fitting else None


def ladder_into(artifact: Artifact, held_out: HeldOut, options: Options) -> None:
    """Measures which step gives which class and writes it into the artifact's steps and `about`."""
    plain = {"int8": held_out.measure(_ec.int8_per_token)[0], "fp8": held_out.measure(_ec.fp8_per_head)[0]}
    options.say(f"calibrate: mean KL of int8 {plain['int8']:.3g}, of fp8 {plain['fp8']:.3g}")
    artifact.about["ladder"] = {"kl_of": plain, "limits": {c: f"{f:g} x {of}" for c, (of, f) in LIMITS.items()}}
    values = sum(2 * artifact.kv_heads * artifact.head_dim(K) for _ in range(artifact.layers))
    for name in options.codecs:
        seen: dict[float, tuple[float, float]] = {}
        # d^2 / 12 of error a coefficient, half of it lost as KL, over all tokens and groups.
        first = float(np.sqrt(24 * plain["fp8"] / (values * options.prefix)))
        for klass in ("balanced", "small", "high", "near"):
            of, factor = LIMITS[klass]
            found = find_step(lambda d, name=name: held_out.measure(_ec.codec(name, d, artifact)),
                              factor * plain[of], seen, first)
            if found is None:
                options.say(f"calibrate: {name} has no step for {klass}")
                continue
            artifact.steps.append(Step(CODECS[name], CLASSES[klass], *found))
            options.say(f"calibrate: {name} {klass}: step {found[0]:.3g}, KL {found[1]:.3g}, {found[2]:.2f} bits")


def blank(replay: Replay) -> Artifact:
    rope = rope_of(replay.inverse_frequencies())
    return Artifact(replay.layers, replay.kv_heads, replay.head_dim, replay.head_dim,
                    rope_dims=2 * len(rope[NO_LAYER]), rope=rope)


def about(folder: Path, texts: dict[str, str], sequences: int, held_out: int, options: Options) -> dict[str, Any]:
    """What an artifact says of itself. texts: the SHA-256 of each by its name."""
    return {
        "model": folder.name,
        "config_sha256": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        "texts": texts,
        "tokens": {"sequences": sequences, "prefix": options.prefix, "suffix": options.suffix, "held_out": held_out,
                   "exact": EXACT_TOKENS, "block": options.block},
        "metric": {"name": "fisher", "eps": options.eps, "seed": options.seed},
        "levels": {"strength": options.strength},
    }


def from_model(folder: Path, texts: Sequence[Path], options: Options) -> Artifact:
    from ._replay import Replay

    replay = Replay(folder)
    artifact = blank(replay)
    per_text = -(-(options.sequences + options.held_out) // len(texts))
    length = options.prefix + options.suffix
    each = [replay.sequences(path.read_text(errors="replace"), length, per_text) for path in texts]
    mixed = [ids for group in itertools.zip_longest(*each) for ids in group if ids]
    if len(mixed) <= options.held_out:
        raise ValueError(f"the texts give {len(mixed)} sequences; more than {options.held_out} are needed")
    gap = max(len(mixed) // max(options.held_out, 1), 1)
    apart = set(range(gap - 1, len(mixed), gap)[:options.held_out])
    taken = [ids for i, ids in enumerate(mixed) if i not in apart][:options.sequences]
    measured = collect(replay, artifact, taken, options)
    learn(artifact, measured, options.eps, options.strength)
    if options.codecs == ("EC-C",):
        artifact.transforms.clear()
    artifact.about = about(folder, {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in texts}, len(taken),
                           len(apart), options)
    ladder_into(artifact, HeldOut(replay, [mixed[i] for i in sorted(apart)], options), options)
    return artifact


_NAME = re.compile(r"layer-(\d+)\.([kv])\.(\d+)\.npy")


def from_blocks(folder: Path, theta: float, rope_dims: int | None) -> Artifact:
    """Covariance alone, from captured arrays. theta 0: K was captured before its rotation."""
    files = sorted((int(m[1]), K if m[2] == "k" else V, int(m[3]), p)
                   for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)))
    if not files:
        raise ValueError(f"no layer-LLL.k.FIRST.npy in {folder}")
    shapes = {kind: np.load(next(p for _, k, _, p in files if k == kind), mmap_mode="r").shape
              for kind in sorted({f[1] for f in files})}
    if set(shapes) != {K, V}:
        raise ValueError(f"{folder} has K or V alone")
    dim = shapes[K][2]
    dims = 0 if not theta else rope_dims or dim
    frequencies = theta ** -(np.arange(0, dims, 2) / dims) if dims else np.zeros(0)
    artifact = Artifact(files[-1][0] + 1, shapes[K][0], dim, shapes[V][2], rope_dims=dims)
    if dims:
        artifact.rope[NO_LAYER] = turns_of(frequencies)
    measured = Measured()
    for layer, kind, first, path in files:
        x = np.load(path).astype(np.float64)
        if x.ndim != 3 or (x.shape[0], x.shape[2]) != (shapes[kind][0], shapes[kind][2]):
            raise ValueError(f"{path.name} has shape {x.shape}, others {shapes[kind]}")
        if kind == K:
            x = rotate(x, artifact.turns(layer), artifact.rope_style, first, back=True)
        measured.add_values(layer, kind, x[:, max(EXACT_TOKENS - first, 0):])
    transforms_into(artifact, measured, eps=0.0)
    artifact.head_scales.clear()  # Without gradients they would say nothing.
    artifact.about = {"metric": {"name": "identity"}, "blocks": len(files)}
    return artifact


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tiercel.calibrate", description="Writes the artifact (KVA1) of a model.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="Hugging Face folder")
    source.add_argument("--blocks", type=Path, help="folder of captured blocks")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="UTF-8 text; mix the domains you serve")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rope-theta", type=float, default=0.0, help="of captured K; 0: not rotated")
    parser.add_argument("--rope-dims", type=int, help="rotated dimensions of captured K (all)")
    for name, default in (("prefix", 768), ("suffix", 192), ("sequences", 16), ("held-out", 4), ("block", 256)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    parser.add_argument("--eps", type=float, default=1.0, help="regularisation of the metric (1.0)")
    parser.add_argument("--strength", type=float, default=STRENGTH,
                        help=f"of a token's own step; 0: the same step for all tokens ({STRENGTH:g})")
    parser.add_argument("--codecs", nargs="+", type=str.upper, choices=CODECS, default=list(CODECS),
                        help="to measure; EC-C alone has no transforms, and its artifact tens of kilobytes")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.blocks:
            artifact = from_blocks(chosen.blocks, chosen.rope_theta, chosen.rope_dims)
        else:
            if not chosen.text:
                parser.error("--model needs --text")
            options = Options(chosen.prefix, chosen.suffix, chosen.sequences, chosen.held_out, chosen.block, chosen.eps,
                              chosen.strength, tuple(chosen.codecs))
            artifact = from_model(chosen.model, chosen.text, options)
    except ModuleNotFoundError as error:
        print(f"calibrate: {error.name} is missing: pip install 'tiercel[calibrate]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    data = artifact.dump()
    chosen.out.write_bytes(data)
    print(f"{chosen.out}: id {Artifact.id_of(data):016x}, {len(data)} bytes, {len(artifact.transforms)} transforms, "
          f"{len(artifact.levels)} levels, {len(artifact.steps)} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
