"""What scheduler and workers tell each other, once a step. vLLM pickles both between its own processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclass
class Extend:
    """Blocks that a request's chain gained. The first of a request says which scope it is of."""

    scope: bytes
    first: int
    hashes: list[bytes]


@dataclass
class Load:
    request: str
    first: int  # Block of the chain.
    pages: list[list[int]]  # Of each block; the first block's first `skip` are the engine's own already.
    skip: int
    deadline_s: float
    exact_pages: bool = True  # False: what is promised ends inside a block; nothing can be loaded.


@dataclass
class Save:
    request: str
    first: int
    pages: list[list[int]]
    reuse: str


@dataclass
class StepMeta(KVConnectorMetadata):
    """Scheduler to workers."""

    extends: dict[str, Extend] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)  # Their saves must end before the step.
    delayed: list[str] = field(default_factory=list)  # Ended; their pages stay until their saves have.
    ended: list[str] = field(default_factory=list)  # Ended, and nothing of theirs is under way.
    idle: bool = False  # Nothing is computed in this step.


@dataclass
class Loaded:
    request: str
    first: int
    blocks: int
    served: int
    seconds: float
    reason: str  # "" or why the first block that is missing is.


@dataclass
class WorkerMeta(KVConnectorWorkerMetadata):
    """Workers to scheduler."""

    loaded: list[Loaded] = field(default_factory=list)
    saved: dict[str, int] = field(default_factory=dict)  # Blocks whose save ended, well or not.
    stored: list[tuple[str, int, bool]] = field(default_factory=list)  # Each of them: request, block, whether it is there.
    trouble: str = ""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> WorkerMeta:
        assert isinstance(other, WorkerMeta)
        saved = dict(self.saved)
        for request, blocks in other.saved.items():
            saved[request] = saved.get(request, 0) + blocks
        return WorkerMeta(self.loaded + other.loaded, saved, self.stored + other.stored, self.trouble or other.trouble)
