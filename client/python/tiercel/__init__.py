"""Tiercel, a KV-cache service: the client. Guide: docs/python.md."""

from ._core import (
    BlockResult,
    Chain,
    ClosedError,
    Completion,
    ConnectError,
    KvLayout,
    NotContiguous,
    PagedKv,
    make_scope,
)
from .aio import AsyncClient
from .client import Client
from .memory import MemoryBackend
from .status import Status

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "BlockResult",
    "Chain",
    "Client",
    "ClosedError",
    "Completion",
    "ConnectError",
    "KvLayout",
    "MemoryBackend",
    "NotContiguous",
    "PagedKv",
    "Status",
    "make_scope",
]
