"""An engine as the connector sees it: both sides of the connector, called in vLLM's order; the model is whoever writes
into the tensors."""

import os
from types import SimpleNamespace

import torch

from tiercel import KvLayout
from tiercel_vllm.layout import Shape
from tiercel_vllm.scheduler import SchedulerSide
from tiercel_vllm.settings import parse
from tiercel_vllm.worker import WorkerSide

LAYERS, HEADS, DIM, PAGE, PAGES = 3, 2, 32, 16, 64


def shape(pages_per_block=1, world=1, replicas=1, **changes):
    fields = dict(layers=LAYERS, kv_heads=HEADS, head_dim=DIM, tokens_per_block=PAGE * pages_per_block, dtype="fp32", k_order="hdt",
                  v_order="htd", world=world, engine="vllm-cpu", isa="vec")
    layout = KvLayout(**{**fields, **changes})
    return Shape(layout, PAGE, world, replicas, os.urandom(8).hex(), "", "", "")


def tensors(fill=None):
    """As vLLM's CPU worker makes them: all layers in one storage."""
    whole = torch.zeros(LAYERS, PAGES, HEADS, PAGE, 2 * DIM) if fill is None else torch.randn(
        LAYERS, PAGES, HEADS, PAGE, 2 * DIM, generator=torch.Generator().manual_seed(fill))
    return {f"layer.{i}": whole[i] for i in range(LAYERS)}


class Request(SimpleNamespace):
    """What the connector reads of vLLM's."""

    def __init__(self, name, tokens, hashes, prompt=None, lora=None, params=None):
        super().__init__(request_id=name, num_tokens=tokens, num_prompt_tokens=prompt or tokens, block_hashes=hashes, lora_request=lora, all_token_ids=list(range(tokens)),
                         kv_transfer_params=params, status=SimpleNamespace(name="WAITING"))


def output(new=(), cached=(), resumed=()):
    """new: (request, pages, computed, scheduled); cached: the same, pages are those added."""
    scheduled = {r.request_id: n for r, _, _, n in (*new, *cached)}
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=r.request_id, block_ids=(pages,), num_computed_tokens=c) for r, pages, c, _ in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[r.request_id for r, *_ in cached], resumed_req_ids=set(resumed), new_block_ids=[(p,) if p else None for _, p, *_ in cached],
            num_computed_tokens=[c for _, _, c, _ in cached]),
        num_scheduled_tokens=scheduled, total_num_scheduled_tokens=sum(scheduled.values()))


class Engine:
    """Both sides of the connector, called in vLLM's order; the model is whoever writes into the tensors."""

    def __init__(self, endpoint, of, ranks=1, fill=None, audience=None, **extra):
        settings = parse({"endpoint": endpoint, "match_wait_s": 2.0, "tokens_per_block": of.block_tokens, **extra})
        self.scheduler = SchedulerSide(settings, of, audience=audience)
        self.workers = [WorkerSide(settings, of, PAGES) for _ in range(ranks)]
        self.tensors = [tensors(None if fill is None else fill + rank) for rank in range(ranks)]
        for rank, worker in enumerate(self.workers):
            worker.register(self.tensors[rank], rank)
        self.links = [self.scheduler.link, *(worker.link for worker in self.workers)]
        self.bad, self.loaded, self.saved = set(), set(), set()

    def wait_open(self, seconds=10):
        return all(link.wait_open(seconds) for link in self.links)

    def matched(self, request, computed=0, tries=2000):
        self.scheduler.on_new_request(request)
        return self.ask(request, computed, tries)

    def ask(self, request, computed=0, tries=2000):
        for _ in range(tries):
            tokens = self.scheduler.matched_tokens(request, computed)
            if tokens is not None:
                return tokens
            self.step(output())
        raise AssertionError("asked again and again")

    def step(self, out, check=lambda meta: None):
        meta = self.scheduler.step(out)
        check(meta)
        metas = []
        for worker in self.workers:
            worker.settle(meta.preempted)
            worker.load(meta)
            worker.save(meta)
            saved, loaded = worker.finished(meta)
            self.saved |= saved
            self.loaded |= loaded
            self.bad |= worker.take_bad_pages()
            metas.append(worker.take_meta())
        told = metas[0]
        for other in metas[1:]:
            told = told.aggregate(other)
        self.scheduler.stepped(told)
        return meta

    def until(self, done, steps=4000):
        for _ in range(steps):
            if done():
                return True
            self.step(output())
        return False

    def quiet(self):
        return self.until(lambda: not any(worker._puts or worker._loads for worker in self.workers))

    def compute(self, request, pages, tokens=None):
        """A prefill of the whole request in one step, its saves, and its end."""
        tokens = tokens or request.num_tokens
        self.step(output(new=[(request, pages, 0, tokens)]))
        assert self.quiet()
        self.scheduler.finished(request)
        self.step(output())

    def close(self):
        self.scheduler.close()
        for worker in self.workers:
            worker.close()


def hashes(count, start=None):
    return [os.urandom(32) for _ in range(count)] if start is None else start + [os.urandom(32) for _ in range(count)]
