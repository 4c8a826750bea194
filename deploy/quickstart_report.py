"""Compares the reports of the cold, the warm and the balanced engine: a table, the promises as GOAL lines, and
exit code 0 only when the first two said the same words."""

import json
import sys


def main() -> int:
    cold, warm, balanced = (json.load(open(path)) for path in sys.argv[1:4])

    def row(name, a, b):
        print(f"  {name:<28}{a!s:>16}{b!s:>16}")

    def goal(name, value, unit, target, met):
        print(f"GOAL {name} {value} {unit} {target} {'MET' if met else 'MISSED'}")

    ratio = warm["ttft_s"] / cold["ttft_s"]
    raw, stored = cold["raw_bytes"], cold["stored_bytes"]
    print()
    row("", "engine A", "engine B")
    row("prompt tokens", cold["prompt_tokens"], warm["prompt_tokens"])
    row("tokens computed", cold["computed_tokens"], warm["computed_tokens"])
    row("tokens reused", cold["reused_tokens"], warm["reused_tokens"])
    row("blocks stored", cold["blocks_pushed"], warm["blocks_pushed"])
    row("bytes of KV, raw", f"{raw:,}", "")
    row("bytes stored", f"{stored:,}", "")
    row("ratio", f"{raw / max(stored, 1):.3f}", "")
    row("time to first token, s", f"{cold['ttft_s']:.3f}", f"{warm['ttft_s']:.3f}")
    row("tokens a second after that", f"{cold['decode_tokens_per_s']:.1f}", f"{warm['decode_tokens_per_s']:.1f}")
    names = lambda codecs: ", ".join(f"{n} by {name}" for name, n in codecs.items())  # noqa: E731
    print(f"  blocks coded: {names(cold['codecs'])}")
    lossy_raw, lossy = warm["lossy_raw_bytes"], warm["lossy_stored_bytes"]
    print(f"  as balanced: {lossy:,} bytes ({lossy_raw / max(lossy, 1):.2f} times fewer than raw; {names(warm['lossy_codecs'])});"
          f" engine C reused {balanced['reused_tokens']} tokens,")
    print(f"    and says what follows with a mean KL of {balanced['mean_kl']:.2e} nats a token from exact;"
          f" the likeliest token is the same in {100 * balanced['same_likeliest']:.0f} %")
    print(f"  transport: {warm['transport']}: {warm['transport_reason']}")
    print(f"  both say: {warm['text'][:100]!r}...\n")

    same = cold["tokens"] == warm["tokens"]
    whole_blocks = (cold["prompt_tokens"] - 1) // 128 * 128
    goal("equal_tokens", len(warm["tokens"]) if same else 0, "tokens", 64, same and len(warm["tokens"]) >= 64)
    goal("reused_tokens", warm["reused_tokens"], "tokens", whole_blocks, warm["reused_tokens"] >= whole_blocks)
    goal("exact_ratio", f"{raw / max(stored, 1):.3f}", "x", "> 1", 0 < stored < raw)
    goal("balanced_reused_tokens", balanced["reused_tokens"], "tokens", whole_blocks, balanced["reused_tokens"] >= whole_blocks)
    goal("balanced_mean_kl", f"{balanced['mean_kl']:.2e}", "nats", "<= 0.02", balanced["mean_kl"] <= 0.02)
    goal("balanced_ratio", f"{lossy_raw / max(lossy, 1):.2f}", "x", ">= 3", lossy_raw >= 3 * lossy > 0)
    goal("warm_to_cold_ttft", f"{ratio:.4f}", "ratio", 0.10, ratio <= 0.10)
    if cold["reused_tokens"] != 0:
        print("the first engine was not cold")
        return 1
    if not same:
        print("the engines said different words")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
