"""One vLLM engine in this process, driven by lines of JSON: what it is on the command line, then a request a line.

    {"prompts": [[ids], ...], "max_tokens": 32, "salt": null, "reset": true, "together": false}
    {"wait_open": seconds}                 until the connector's links are open
    {"bench": [[ids], ...], "max_tokens": 16}    all at once; seconds

An answer a line on stdout: of each prompt its tokens, the tokens that were cached (and how many of them came from
Tiercel), the time to the first token. Everything else that vLLM says goes to stderr.
"""

import json
import os
import sys
import time
from pathlib import Path

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # vLLM and its libraries write to stdout as they like.
sys.path.insert(0, str(Path(__file__).parent))
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_NUM_OF_RESERVED_CPU="0", HF_HUB_OFFLINE="1",
                  VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"))


def answer(value):
    print(json.dumps(value), file=answers, flush=True)


def make(options):
    from vllm import LLM
    from vllm.config import KVTransferConfig

    more = {}
    if options.get("connector") is not None:
        more["kv_transfer_config"] = KVTransferConfig(
            kv_connector=options.get("class", "TiercelConnector"), kv_connector_module_path=options.get("module", "tiercel_vllm"),
            kv_role="kv_both", kv_load_failure_policy="recompute", kv_connector_extra_config=options["connector"])
    if options.get("block_size"):
        more["block_size"] = options["block_size"]
    return LLM(model=options["model"], dtype=options.get("dtype", "float32"), max_model_len=4096, enforce_eager=True,
               disable_log_stats=False, max_num_batched_tokens=4096, prefix_caching_hash_algo="sha256",
               kv_cache_memory_bytes=options.get("kv_bytes", 448 << 20), **more)


def connectors():
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    return get_kv_transfer_group() if has_kv_transfer_group() else None


def links(llm):
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler.connector
    worker = connectors()
    return [] if worker is None else [scheduler._scheduler.link, worker._worker.link]


def counts(llm):
    """vLLM's own counters of what came from where."""
    return {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value") and ("tiercel" in m.name or "external" in m.name)}


def reset(llm):
    """Forgets vLLM's own prefix cache. Pages of which a save is under way are in use: it ends with a step or two."""
    until = time.monotonic() + 60
    while llm.reset_prefix_cache() is False:
        if time.monotonic() > until:
            raise RuntimeError("vLLM's prefix cache stays in use")
        llm.llm_engine.step()
        time.sleep(0.005)


def generate(llm, ask):
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=ask.get("max_tokens", 32), ignore_eos=True)
    made = []
    prompts = [{"prompt_token_ids": ids, **({"cache_salt": ask["salt"]} if ask.get("salt") else {})} for ids in ask["prompts"]]
    for group in ([prompts] if ask.get("together") else [[prompt] for prompt in prompts]):
        if ask.get("reset"):
            reset(llm)
        for out in llm.generate(group, sampling, use_tqdm=False):
            made.append({"tokens": list(out.outputs[0].token_ids), "cached": out.num_cached_tokens,
                         "ttft": out.metrics.first_token_latency})
    return made


def main():
    options = json.loads(sys.argv[1])
    began = time.monotonic()
    llm = make(options)
    opened = [link.wait_open(options.get("wait_open", 20)) for link in links(llm)]
    answer({"ready": time.monotonic() - began, "open": opened})
    for line in sys.stdin:
        ask = json.loads(line)
        if "wait_open" in ask:
            answer({"open": [link.wait_open(ask["wait_open"]) for link in links(llm)]})
        elif "bench" in ask:
            began = time.monotonic()
            made = generate(llm, {"prompts": ask["bench"], "max_tokens": ask.get("max_tokens", 16), "together": True})
            seconds = time.monotonic() - began
            answer({"seconds": seconds, "tokens": sum(len(p) for p in ask["bench"]) + sum(len(m["tokens"]) for m in made), "counts": counts(llm)})
        else:
            answer({"made": generate(llm, ask), "counts": counts(llm)})
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
