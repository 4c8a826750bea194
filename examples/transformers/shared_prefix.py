#!/usr/bin/env python3
"""Two questions about one long text: the second finds the text in the cache.

    python shared_prefix.py --model FOLDER_OR_HUB_ID --text /usr/share/common-licenses/GPL-3 [--cache 127.0.0.1:7400]

Run it twice: the second time both questions do. Each is asked without the cache, too; the tokens are compared.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tiercel_transformers import PrefixCache
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = ("\n\nQuestion: what may be copied?\nAnswer:", "\n\nQuestion: who gives a warranty?\nAnswer:")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", required=True)
    options.add_argument("--text", required=True, type=Path)
    options.add_argument("--tokens", type=int, default=1500)
    options.add_argument("--max-new", type=int, default=16)
    options.add_argument("--dtype", default="float32")
    options.add_argument("--cache", default=None, help="host:port of a node")
    chosen = options.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=getattr(torch, chosen.dtype)).eval()
    text = tokenizer(chosen.text.read_text())["input_ids"][:chosen.tokens]
    with PrefixCache(model, chosen.cache) as cache:
        for question in QUESTIONS:
            ids = torch.tensor([text + tokenizer(question)["input_ids"]])
            said = {"max_new_tokens": chosen.max_new, "do_sample": False}
            began = time.perf_counter()
            alone = model.generate(ids, **said)
            middle = time.perf_counter()
            past = cache.fetch(ids)
            found = past.get_seq_length()
            out = model.generate(ids, past_key_values=past, **said)
            ended = time.perf_counter()
            stored = cache.push(out, past)
            print(json.dumps({"prompt_tokens": ids.shape[1], "found_tokens": found, "blocks_stored": stored, "same_tokens": bool(torch.equal(alone, out)),
                              "seconds_alone": round(middle - began, 3), "seconds": round(ended - middle, 3),
                              "said": tokenizer.decode(out[0, ids.shape[1]:])}), flush=True)


if __name__ == "__main__":
    main()
