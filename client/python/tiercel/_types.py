"""What the annotations of this package say; imported by type checkers only."""

from __future__ import annotations

from typing import Any, TypedDict, Union

import numpy as np
import numpy.typing as npt

Key = Union[str, bytes]
# bytes, bytearray, memoryview, an array, or a tensor with DLPack; contiguous, in host memory.
Memory = Any
Addresses = npt.NDArray[np.int64]
PageTable = Union[npt.NDArray[np.int32], npt.NDArray[np.int64]]


class NodeInfo(TypedDict):
    node_id: str
    endpoint: str
    connected: bool
    breaker_open: bool
    transports: list[str]
    last_error: str


class Stats(TypedDict, total=False):
    blocks_asked: int
    blocks_served: int
    misses: dict[str, int]
    puts: int
    puts_stored: int
    puts_refused: int
    raw_bytes_put: int
    record_bytes_put: int
    raw_bytes_got: int
    record_bytes_got: int
    corrupt: int
    late_releases: int
    puts_by_codec: dict[str, int]


class BytesOptions(TypedDict, total=False):
    """Of puts and gets of bytes; durable and reuse are for puts."""

    deadline_s: float | None
    min_class: str
    durable: bool
    reuse: str


class BlockOptions(BytesOptions, total=False):
    """Of puts and gets of blocks; layers, touch and preference are for gets, put_class and codec for puts."""

    prefer_small: bool | None  # Where exact and lossy are both good enough; None: what is here sooner.
    no_touch: bool
    layer_begin: int
    layer_end: int
    put_class: str  # What is stored: exact, or as lossy as this.
    codec: str  # auto: the controller picks.
