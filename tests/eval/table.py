"""Tables, comparisons at equal KL, goals and the curve."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from anchors import FOUR_BIT
from worker import Point


@dataclass
class Row:
    name: str
    bits: float
    kl: float
    kl_p99: float
    kl_p999: float
    delta_nll: float
    low: float  # 95 % bootstrap interval of delta_nll, over sequences.
    high: float
    top1: float

    @property
    def family(self) -> str:
        return self.name.split(" @")[0]


def rows(sequences: Sequence[Sequence[Point]]) -> list[Row]:
    """One row a codec and setting, over all sequences."""
    out = []
    draws = np.random.default_rng(1).integers(0, len(sequences), (2000, len(sequences)))
    for points in zip(*sequences):
        kl = np.concatenate([p.kl for p in points])
        exact = points[0].name == "exact"
        means = np.array([p.delta_nll.mean() for p in points])
        low, high = np.quantile(means[draws].mean(axis=1), [0.025, 0.975])
        out.append(Row(points[0].name + (" (its NLL)" if exact else ""), float(np.mean([p.bits for p in points])),
                       float(kl.mean()), float(np.quantile(kl, 0.99)), float(np.quantile(kl, 0.999)),
                       float(means.mean()), float(low), float(high),
                       float(np.concatenate([p.same_top for p in points]).mean())))
    return out


def bits_at(curve: Iterable[Row], kl: float) -> float:
    """Bits of a family where its mean KL is kl: linear in log KL, beyond the points at the end's slope."""
    points = sorted((np.log(r.kl), r.bits) for r in curve if r.kl > 0)
    if len(points) < 2:
        return float("nan")
    x, y = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    at = int(np.clip(np.searchsorted(x, np.log(kl)), 1, len(x) - 1))
    return float(y[at - 1] + (np.log(kl) - x[at - 1]) * (y[at] - y[at - 1]) / (x[at] - x[at - 1]))


def setting_at(curve: Iterable[Row], kl: float) -> float:
    """The step of a family where its mean KL is kl: both logarithmic, beyond the points at the end's slope."""
    points = sorted((np.log(r.kl), np.log(float(r.name.split(" @")[1]))) for r in curve if r.kl > 0)
    x, y = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    at = int(np.clip(np.searchsorted(x, np.log(kl)), 1, len(x) - 1))
    return float(np.exp(y[at - 1] + (np.log(kl) - x[at - 1]) * (y[at] - y[at - 1]) / (x[at] - x[at - 1])))


# Our codec, what it is compared with, at most this part of its bits; and what is hoped for beyond that.
GOALS = {
    "smollm2": (("EC-X", "four-bit", (0.42, 0.35)), ("EC-X", "KVTC-like", (0.42, 0.33)),
                ("EC-K", "four-bit", (0.50,)), ("EC-C", "four-bit", (0.65,))),
    "gemma3": (("EC-X", "four-bit", (0.38,)), ("EC-X", "KVTC-like", (0.60,))),
}


def by_family(table: Sequence[Row]) -> dict[str, list[Row]]:
    families: dict[str, list[Row]] = {}
    for row in table:
        families.setdefault(row.family, []).append(row)
    return families


def goals(table: Sequence[Row], model: str, aimed_at: bool = True) -> list[str]:
    """GOAL name value unit target MET|MISSED. The best four-bit anchor is the hardest: our bits are the most of its.

    Where nothing is aimed at, the comparisons alone.
    """
    families = by_family(table)
    out = []

    def say(name: str, value: float, unit: str, target: float, met: bool) -> None:
        if aimed_at:
            out.append(f"GOAL {name} {value:.3f} {unit} {target:g} {'MET' if met else 'MISSED'}")

    for ours, other, targets in GOALS[model]:
        if other == "four-bit":
            rivals = [families[name][0] for name in FOUR_BIT if name in families]
        else:
            rivals = sorted(families.get(other, []), key=lambda r: abs(np.log(r.kl / 2e-2)))[:1]
        if not rivals or ours not in families:
            continue
        ratios = sorted(((bits_at(families[ours], r.kl) / r.bits, r.name) for r in rivals), reverse=True)
        out.append(f"  {ours}, its part of the bits at equal KL: " + ", ".join(f"{n} {q:.3f}" for q, n in ratios))
        ratio = ratios[0][0]
        for target, name in zip(targets, ("", ".moonshot")):
            say(f"{model}.{ours}/{other}{name}", ratio, "of-its-bits", target, ratio <= target)
    for ours in ("EC-X", "EC-K", "EC-C"):
        for r in families.get(f"{ours}, no levels", []):
            part = bits_at(families[ours], r.kl) / r.bits
            out.append(f"  {ours}, its part of what it takes without levels, at KL {r.kl:.2e}: {part:.3f}")
    lossless = families.get("LLE") or families.get("LLE (reference)")
    if lossless and model == "smollm2":
        ratio = 16 / lossless[0].bits
        say(f"{model}.LLE", ratio, "x", 1.45, ratio >= 1.45)
    return out


def as_text(table: Sequence[Row]) -> str:
    lines = [f"{'codec':26}{'bits':>7}{'mean KL':>10}{'p99':>9}{'p99.9':>9}{'top-1':>7}  delta NLL [95 %]"]
    for r in table:
        lines.append(f"{r.name:26}{r.bits:7.3f}{r.kl:10.2e}{r.kl_p99:9.1e}{r.kl_p999:9.1e}{r.top1:7.3f}"
                     f"  {r.delta_nll:+.4f} [{r.low:+.4f} {r.high:+.4f}]")
    return "\n".join(lines)


def write_csv(path: Path, table: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["codec", "bits", "kl_mean", "kl_p99", "kl_p999",
                      "delta_nll", "delta_nll_low", "delta_nll_high", "top1"])
        for r in table:
            figures = (r.bits, r.kl, r.kl_p99, r.kl_p999, r.delta_nll, r.low, r.high, r.top1)
            out.writerow([r.name, *(f"{x:.6g}" for x in figures)])


def plot(path: Path, table: Sequence[Row], title: str) -> None:
    """Mean KL over bits a value; families with several points are lines."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tiercel"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    families: dict[str, list[Row]] = {}
    for row in table:
        if row.kl > 0:
            families.setdefault(row.family, []).append(row)
    for name, points in families.items():
        points = sorted(points, key=lambda r: r.bits)
        x, y = [r.bits for r in points], [r.kl for r in points]
        if len(points) > 1:
            axes.plot(x, y, marker="o", markersize=4, label=name, linewidth=2 if re.match("EC-", name) else 1)
        else:
            axes.plot(x, y, "k.", markersize=4)
            axes.annotate(name, (x[0], y[0]), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes.set(yscale="log", xlabel="bits a value", ylabel="mean KL, nats a token", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
