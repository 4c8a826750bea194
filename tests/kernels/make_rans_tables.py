"""Makes kernels/rans_frozen.h, the frozen probability and cost tables of the entropy coder.

    python3 tests/kernels/make_rans_tables.py > kernels/rans_frozen.h      (needs numpy)

The tables are part of the format: the file is committed and never made again for version 1. Each set
is the result of k-means (under Kullback-Leibler divergence) over the distributions that columns of KV
have: generalised Gaussians of several shapes, scales and means; for set 0 quantised by a step of 1,
for set 1 as their binary exponents. Also prints, to stderr, what the tables cost above entropy.
"""
import sys

import numpy as np

BITS = 12
TABLES = 31
SYMBOLS = 16  # -7..7 and the escape.
ESCAPE_COST = 8  # Bits that an escaped value takes in the list, for the choice of a table.
rng = np.random.default_rng(20261123)

X = np.concatenate([-np.geomspace(400, 1e-9, 60001), [0.0], np.geomspace(1e-9, 400, 60001)])


def cdf_of(beta):
    """Of a generalised Gaussian of unit variance, on X."""
    t = np.linspace(0, 60, 2_000_001)
    f = np.exp(-t**beta)
    scale = np.sqrt((t * t * f).sum() / f.sum())
    pdf = np.exp(-np.abs(X * scale) ** beta)
    mass = np.concatenate([[0], np.cumsum((pdf[1:] + pdf[:-1]) / 2 * np.diff(X))])
    return mass / mass[-1]


CDFS = {beta: cdf_of(beta) for beta in (0.8, 1.0, 1.4, 2.0, 2.6)}


def below(beta, x):
    return np.interp(x, X, CDFS[beta])


def quantised(beta, sigma, mean):
    edges = (np.arange(-7.5, 8) - mean) / sigma
    p = np.diff(below(beta, edges))
    return np.append(p, max(1 - p.sum(), 0))


def exponents(beta, log_sigma, mean):
    """About their own rounded mean, which has value 2; mean in units of sigma."""
    e = np.arange(-40, 25)
    lo, hi = 2.0**e, 2.0 ** (e + 1)
    s = 2.0**log_sigma
    p = (below(beta, hi / s - mean) - below(beta, lo / s - mean)
         + below(beta, -lo / s - mean) - below(beta, -hi / s - mean))
    p = p / p.sum()
    centre = int(np.floor((p * np.arange(len(e))).sum() + .5))
    q = p[centre - 9: centre + 6]
    return np.append(q, max(1 - q.sum(), 0))


def mix(p, floor):
    p = p + floor
    return p / p.sum()


def kmeans(points, weights, k, start):
    centres = np.array(start)
    for _ in range(60):
        cost = -(points @ np.log2(centres).T)
        own = cost.argmin(1)
        for j in range(k):
            w = weights * (own == j)
            if w.sum() > 0:
                centres[j] = mix((points * w[:, None]).sum(0) / w.sum(), 3e-4)
    return centres


def integers(p):
    """Positive, summing to 2^BITS, nearest in divergence: the greedy exchange is optimal here."""
    n = np.maximum(1, np.floor(p * (1 << BITS))).astype(int)
    while n.sum() != 1 << BITS:
        if n.sum() < 1 << BITS:
            n[np.argmax(p * np.log2((n + 1) / n))] += 1
        else:
            loss = np.where(n > 1, p * np.log2(n / np.maximum(n - 1, 1)), np.inf)
            n[np.argmin(loss)] -= 1
    return n


def entropy(p):
    return -(p * np.log2(np.maximum(p, 1e-300))).sum()


def spread(points, k):
    order = np.argsort([entropy(p) for p in points])
    return [mix(points[i], 3e-4) for i in order[np.linspace(0, len(points) - 1, k).astype(int)]]


def family(points, k):
    points = np.array([mix(p, 1e-6) for p in points])
    return kmeans(points, np.ones(len(points)), k, spread(points, k)), points


def report(name, points, tables):
    cost = points @ (BITS - np.log2(tables.T))
    excess = cost.min(1) - np.array([entropy(p) for p in points])
    print(f"{name}: excess mean {excess.mean():.4f}, p90 {np.quantile(excess, .9):.4f}, "
          f"max {excess.max():.4f} bits", file=sys.stderr)


def emit(name, comment, tables):
    print(f"\n// {comment}\ninline constexpr uint16_t {name}[{TABLES}][{SYMBOLS}] = {{")
    for row in tables:
        print("    {" + ", ".join(str(v) for v in row) + "},")
    print("};")


def main():
    betas = list(CDFS)
    low = [quantised(rng.choice(betas[:4]), 2 ** rng.uniform(-4.3, 0.15), rng.uniform(-.08, .08))
           for _ in range(6000)]
    top = [quantised(rng.choice(betas[:4]), 2 ** rng.uniform(0.15, 1.15), rng.uniform(-.08, .08))
           for _ in range(3000)]
    a, low = family(low, 23)
    b, top = family(top, 8)
    a = a[np.argsort([entropy(p) for p in a])]
    b = b[np.argsort([entropy(p) for p in b])]
    quant = np.array([integers(p) for p in np.concatenate([a, b])])
    report("quantised, narrow", low, quant)
    report("quantised, wide", top, quant)

    exps = []
    for _ in range(12000):
        mean = rng.choice([0, 0, rng.normal() * .7, rng.normal() * 1.5, rng.normal() * 4])
        exps.append(exponents(rng.choice(betas), rng.uniform(0, 1), mean))
    c, exps = family(exps, TABLES)
    c = c[np.argsort([entropy(p) for p in c])]
    exp = np.array([integers(p) for p in c])
    report("exponents", exps, exp)

    print("""// The frozen tables of the entropy coder, made once by tests/kernels/make_rans_tables.py. They are
// part of the format (docs/block-format.md): never change them. Plain constants, for device code too.
#ifndef TIERCEL_KERNELS_RANS_FROZEN_H_
#define TIERCEL_KERNELS_RANS_FROZEN_H_

#include <cstdint>

namespace tiercel::rans {
// clang-format off""")
    emit("kQuantizedFrequencies",
         "Quantised values: symbol s is value s - 7, symbol 15 the escape; each row sums to 4096.",
         quant)
    emit("kExponentFrequencies", "Exponents about a base.", exp)
    for name, tables in (("kQuantizedCosts", quant), ("kExponentCosts", exp)):
        cost = np.rint(256 * (BITS - np.log2(tables))).astype(int)
        cost[:, 15] += 256 * ESCAPE_COST
        emit(name, "What a symbol takes, in 1/256 bit; of an escape with 8 bits for its value.", cost)
    print("""
// clang-format on
}  // namespace tiercel::rans

#endif  // TIERCEL_KERNELS_RANS_FROZEN_H_""")


main()
