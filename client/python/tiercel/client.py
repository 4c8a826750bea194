"""Client: KV blocks by chain, and bytes by key."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from . import _core, keys
from ._core import BlockResult, Chain, ClosedError, CodecArtifact, Completion, KvLayout, PagedKv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from ._types import (
        Addresses,
        BlockOptions,
        BytesOptions,
        Key,
        Memory,
        NodeInfo,
        PageTable,
        Stats,
    )

_OPAQUE = KvLayout.opaque()
_BYTE_SCOPE = keys.byte_scope()
_EXISTS_AT_ONCE = 256
_PIECE_BYTES = 16 << 20


class Client:
    """A connection to every node of the service.

    Any thread may call any method; the GIL is released while data moves. A miss, a timeout or a
    full node is a status in a BlockResult, never an exception: those are for wrong use (ValueError,
    TypeError, NotContiguous), a closed client (ClosedError) and no node at all (ConnectError).
    Make it after a fork, not before: its threads and connections stay with the parent.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str] | None = None,
        *,
        name_space: str = "default",
        transports: Sequence[str] | None = None,
        ucx_devices: str = "",
        view_file: str | os.PathLike[str] | None = None,
        deadline_s: float = 2.0,
        artifact: CodecArtifact | None = None,
        **options: Any,
    ) -> None:
        """Without an endpoint: TIERCEL_ENDPOINT, or 127.0.0.1:7400.

        artifact: the model's (tiercel.codec.load_artifact), for puts of EC-K and EC-X. Further options:
        ucx_tls, client_name, staging_bytes, max_bytes_in_flight, codec, tls_ca_file, tls_cert_file,
        tls_key_file.
        """
        if endpoint is None:
            endpoint = os.environ.get("TIERCEL_ENDPOINT", "127.0.0.1:7400")
        endpoints = [endpoint] if isinstance(endpoint, str) else list(endpoint)
        self._core = _core.Client(
            endpoints=[] if view_file else endpoints,
            view_file=str(view_file) if view_file else "",
            name_space=name_space,
            transports=list(transports or ()),
            ucx_devices=ucx_devices,
            artifact=artifact.id if artifact is not None else 0,
            **options,
        )
        self.name_space = name_space
        self.deadline_s = deadline_s

    # Life

    def close(self) -> None:
        """Cancels what is in flight and hangs up. Again: nothing."""
        self._core.close()

    @property
    def closed(self) -> bool:
        return self._core.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # KV blocks

    def match_prefix(
        self, chain: Chain, deadline_s: float | None = None, hold: bool = False, min_class: str = "exact"
    ) -> int:
        """How many leading blocks of the chain are there, in this class or a better one; hold keeps them for a get
        that follows at once."""
        if len(chain) == 0:
            return 0
        return self._core.match(chain, deadline_s=self._deadline(deadline_s), hold=hold, min_class=min_class).prefix

    def pin_prefix(
        self, chain: Chain, seconds: float, deadline_s: float | None = None, min_class: str = "exact"
    ) -> int:
        """As match_prefix, and those blocks stay in RAM for so long, whatever becomes of this client, until
        unpin_prefix. At most the node's limits.pin, and the namespace's pin_limit in bytes: the first block
        that is not kept ends the count."""
        if len(chain) == 0:
            return 0
        return self._core.match(chain, deadline_s=self._deadline(deadline_s), min_class=min_class, pin_s=seconds).prefix

    def unpin_prefix(self, chain: Chain, deadline_s: float | None = None, min_class: str = "exact") -> int:
        """They may go as others do."""
        return self.pin_prefix(chain, 0.0, deadline_s, min_class)

    def lookup(
        self, chain: Chain, deadline_s: float | None = None, min_class: str = "exact"
    ) -> list[BlockResult]:
        """One BlockResult a block: where it is, or the reason why not."""
        if len(chain) == 0:
            return []
        return self._core.match(chain, deadline_s=self._deadline(deadline_s), min_class=min_class).blocks

    def get_blocks(
        self,
        chain: Chain,
        first: int,
        n: int,
        layout: KvLayout,
        k_ptrs: Addresses,
        v_ptrs: Addresses | None = None,
        **options: Unpack[BlockOptions],
    ) -> list[BlockResult]:
        """Fetches blocks first .. first + n - 1 into planes at these addresses.

        k_ptrs and v_ptrs: C-contiguous int64 [n, layers] in host memory, read where they are. Each
        address is one layer's K (or V) of one block, dense in the layout's order. Options:
        deadline_s, min_class, prefer_small, no_touch, layer_begin, layer_end. A record that needs an
        artifact which this process does not have gets it from the cache, and is asked for once more.
        """
        opts = self._fill(options)
        return self._with_artifacts(lambda: self._core.get_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts).blocks)

    def put_blocks(
        self,
        chain: Chain,
        first: int,
        n: int,
        layout: KvLayout,
        k_ptrs: Addresses,
        v_ptrs: Addresses | None = None,
        **options: Unpack[BlockOptions],
    ) -> list[BlockResult]:
        """Stores blocks from planes at these addresses. Options: deadline_s, durable, reuse, put_class, codec."""
        opts = self._fill(options)
        return self._core.put_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts).blocks

    def get_pages(
        self,
        chain: Chain,
        first: int,
        layout: KvLayout,
        paged: PagedKv,
        page_table: PageTable,
        **options: Unpack[BlockOptions],
    ) -> list[BlockResult]:
        """As get_blocks, into a paged cache; page_table: [n, pages a block], int32 or int64."""
        opts = self._fill(options)
        return self._with_artifacts(lambda: self._core.get_pages(chain, first, layout, paged, page_table, **opts).blocks)

    def put_pages(
        self,
        chain: Chain,
        first: int,
        layout: KvLayout,
        paged: PagedKv,
        page_table: PageTable,
        **options: Unpack[BlockOptions],
    ) -> list[BlockResult]:
        opts = self._fill(options)
        return self._core.put_pages(chain, first, layout, paged, page_table, **opts).blocks

    # Bytes by key. A key is text or bytes; a value never changes once stored. One over 16 MiB travels in
    # pieces and is there whole or not at all; whoever asks for it must know its size: a buffer of exactly
    # that size, value_bytes elsewhere. The values of one batch have one number of pieces.

    def put(
        self, key: Key, data: Memory, scope: bytes | None = None, **options: Unpack[BytesOptions]
    ) -> BlockResult:
        """Stores one value; of an equal key that is stored already, the first value stays."""
        return self.batch_put([key], [data], scope, **options)[0]

    def get(
        self, key: Key, scope: bytes | None = None, deadline_s: float | None = None
    ) -> bytes | None:
        """The value of at most 16 MiB, or None."""
        chain = self.key_chain(key, scope)
        return self._core.get_value(chain, deadline_s=self._deadline(deadline_s))[1]

    def get_into(
        self, key: Key, buffer: Memory, scope: bytes | None = None, **options: Unpack[BytesOptions]
    ) -> int:
        """Bytes written into the buffer, or -1 on a miss. A buffer too small: ValueError."""
        return _written(self.batch_get_into([key], [buffer], scope, **options)[0])

    def exists(
        self,
        key: Key,
        scope: bytes | None = None,
        deadline_s: float | None = None,
        value_bytes: int = 0,
    ) -> bool:
        return self.match_prefix(self.key_chain(key, scope, value_bytes), deadline_s) == 1

    def batch_exists(
        self, keys: Sequence[Key], scope: bytes | None = None, deadline_s: float | None = None
    ) -> list[bool]:
        """One bool a key; False also where the node could not be asked."""
        out = []
        for start in range(0, len(keys), _EXISTS_AT_ONCE):
            tickets = [
                self.submit_match_prefix(chain, deadline_s)
                for chain in self._chains(keys[start : start + _EXISTS_AT_ONCE], scope)
            ]
            out += [ticket != 0 and self.wait(ticket).prefix == 1 for ticket in tickets]
        return out

    def batch_put(
        self,
        keys: Sequence[Key],
        datas: Sequence[Memory],
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> list[BlockResult]:
        opts = self._fill(options)
        return self._core.put_buffers(self._chains(keys, scope, _sizes(datas)), datas, _OPAQUE, **opts).blocks

    def batch_get_into(
        self,
        keys: Sequence[Key],
        buffers: Sequence[Memory],
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> list[BlockResult]:
        """One BlockResult a key; bytes says how much of the buffer was written."""
        opts = self._fill(options)
        return self._core.get_buffers(self._chains(keys, scope, _sizes(buffers)), buffers, _OPAQUE, **opts).blocks

    def batch_put_ptrs(
        self,
        keys: Sequence[Key],
        ptrs: Addresses,
        sizes: Addresses,
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> list[BlockResult]:
        """As batch_put, of memory at addresses: int64 [n] each, read where they are."""
        opts = self._fill(options)
        return self._core.put_ptrs(self._chains(keys, scope, sizes), ptrs, sizes, _OPAQUE, **opts).blocks

    def batch_get_into_ptrs(
        self,
        keys: Sequence[Key],
        ptrs: Addresses,
        sizes: Addresses,
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> list[BlockResult]:
        opts = self._fill(options)
        return self._core.get_ptrs(self._chains(keys, scope, sizes), ptrs, sizes, _OPAQUE, **opts).blocks

    # Without waiting. A ticket of 0: the queue is full and nothing was submitted. Buffers and the
    # memory behind addresses are the library's until the completion says released.

    def submit_match_prefix(
        self, chain: Chain, deadline_s: float | None = None, hold: bool = False, min_class: str = "exact"
    ) -> int:
        return self._core.submit_match(chain, deadline_s=self._deadline(deadline_s), hold=hold, min_class=min_class)

    submit_lookup = submit_match_prefix

    def submit_pin_prefix(
        self, chain: Chain, seconds: float, deadline_s: float | None = None, min_class: str = "exact"
    ) -> int:
        return self._core.submit_match(chain, deadline_s=self._deadline(deadline_s), min_class=min_class, pin_s=seconds)

    def submit_get_blocks(
        self,
        chain: Chain,
        first: int,
        n: int,
        layout: KvLayout,
        k_ptrs: Addresses,
        v_ptrs: Addresses | None = None,
        **options: Unpack[BlockOptions],
    ) -> int:
        opts = self._fill(options)
        return self._core.submit_get_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts)

    def submit_put_blocks(
        self,
        chain: Chain,
        first: int,
        n: int,
        layout: KvLayout,
        k_ptrs: Addresses,
        v_ptrs: Addresses | None = None,
        **options: Unpack[BlockOptions],
    ) -> int:
        opts = self._fill(options)
        return self._core.submit_put_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts)

    def submit_get_pages(
        self,
        chain: Chain,
        first: int,
        layout: KvLayout,
        paged: PagedKv,
        page_table: PageTable,
        **options: Unpack[BlockOptions],
    ) -> int:
        opts = self._fill(options)
        return self._core.submit_get_pages(chain, first, layout, paged, page_table, **opts)

    def submit_put_pages(
        self,
        chain: Chain,
        first: int,
        layout: KvLayout,
        paged: PagedKv,
        page_table: PageTable,
        **options: Unpack[BlockOptions],
    ) -> int:
        opts = self._fill(options)
        return self._core.submit_put_pages(chain, first, layout, paged, page_table, **opts)

    def submit_put(
        self, key: Key, data: Memory, scope: bytes | None = None, **options: Unpack[BytesOptions]
    ) -> int:
        return self.submit_batch_put([key], [data], scope, **options)

    def submit_get_into(
        self, key: Key, buffer: Memory, scope: bytes | None = None, **options: Unpack[BytesOptions]
    ) -> int:
        return self.submit_batch_get_into([key], [buffer], scope, **options)

    def submit_batch_put(
        self,
        keys: Sequence[Key],
        datas: Sequence[Memory],
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> int:
        opts = self._fill(options)
        return self._core.submit_put_buffers(self._chains(keys, scope, _sizes(datas)), datas, _OPAQUE, **opts)

    def submit_batch_get_into(
        self,
        keys: Sequence[Key],
        buffers: Sequence[Memory],
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> int:
        opts = self._fill(options)
        return self._core.submit_get_buffers(self._chains(keys, scope, _sizes(buffers)), buffers, _OPAQUE, **opts)

    def submit_batch_put_ptrs(
        self,
        keys: Sequence[Key],
        ptrs: Addresses,
        sizes: Addresses,
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> int:
        opts = self._fill(options)
        return self._core.submit_put_ptrs(self._chains(keys, scope, sizes), ptrs, sizes, _OPAQUE, **opts)

    def submit_batch_get_into_ptrs(
        self,
        keys: Sequence[Key],
        ptrs: Addresses,
        sizes: Addresses,
        scope: bytes | None = None,
        **options: Unpack[BytesOptions],
    ) -> int:
        opts = self._fill(options)
        return self._core.submit_get_ptrs(self._chains(keys, scope, sizes), ptrs, sizes, _OPAQUE, **opts)

    def poll(self, max: int = 64) -> list[Completion]:
        """Completions that are ready; never blocks."""
        return self._core.poll(max)

    def event_fd(self) -> int:
        """Readable while poll() has something. Do not read or close it."""
        return self._core.event_fd()

    def wait(self, ticket: int) -> Completion:
        """This ticket's Completion, at most 5 ms after its deadline."""
        return self._core.wait(ticket)

    def cancel(self, ticket: int) -> None:
        self._core.cancel(ticket)

    # Codecs

    def store_artifact(self, artifact: CodecArtifact, deadline_s: float | None = None) -> None:
        """Puts a model's artifact into the cache, where readers of its records find it by its id."""
        self._core.store_artifact(artifact, self.name_space, self._deadline(deadline_s))

    def load_artifact(self, id: int, deadline_s: float | None = None) -> CodecArtifact:
        """The artifact of that id: this process's, else the cache's, verified and in use from then on. KeyError:
        it is in neither."""
        return self._core.fetch_artifact(id, self.name_space, self._deadline(deadline_s))

    def explain_codecs(
        self, scope: bytes, layout: KvLayout, worst: str = "exact", blocks: int = 1
    ) -> list[dict[str, object]]:
        """What each codec would cost a block of this scope put now, cheapest first; measured says by how many
        blocks that is known (0: by a table)."""
        return self._core.explain_codecs(scope, layout, worst, blocks)

    # Around

    def register_memory(self, address: int, nbytes: int) -> None:
        """Of a long-lived cache, once: some transports then need no copy. Undo before freeing."""
        self._core.register_memory(address, nbytes)

    def unregister_memory(self, address: int, nbytes: int) -> None:
        self._core.unregister_memory(address, nbytes)

    def stats(self) -> Stats:
        """Counts since connect; misses by reason sum to blocks_asked - blocks_served."""
        return cast("Stats", self._core.stats())

    def nodes(self) -> list[NodeInfo]:
        """What each node is to this client: how it is reached and why so."""
        return cast("list[NodeInfo]", self._core.nodes())

    def view(self) -> str:
        """The view in use, as JSON."""
        return self._core.view()

    def set_view(self, json: str) -> None:
        self._core.set_view(json)

    def key_chain(self, key: Key, scope: bytes | None = None, value_bytes: int = 0) -> Chain:
        """The chain of one block that a byte-store key stands for; value_bytes counts over 16 MiB."""
        chain = Chain(scope or _BYTE_SCOPE, name_space=self.name_space, value_bytes=value_bytes)
        chain.append(keys.byte_hash(key))
        return chain

    def _chains(
        self, names: Sequence[Key], scope: bytes | None, sizes: Iterable[int] = ()
    ) -> list[Chain]:
        """Of values of these sizes, which count only over 16 MiB."""
        sizes = list(sizes)
        if len(sizes) != len(names):  # Refused where lengths are checked.
            sizes = [0] * len(names)
        if len({max(1, -(-int(size) // _PIECE_BYTES)) for size in sizes}) > 1:
            raise ValueError("the values of one batch have different numbers of pieces of 16 MiB")
        return [self.key_chain(n, scope, int(size)) for n, size in zip(names, sizes)]

    def _with_artifacts(self, get: Callable[[], list[BlockResult]]) -> list[BlockResult]:
        results = get()
        wanted = {r.artifact for r in results if r.status == "NEEDS_ARTIFACT"}
        if not wanted:
            return results
        try:
            for artifact in wanted:
                self.load_artifact(artifact)
        except (KeyError, RuntimeError):
            return results  # It is as if the blocks were not there.
        return get()

    def _deadline(self, deadline_s: float | None) -> float:
        return self.deadline_s if deadline_s is None else deadline_s

    def _fill(self, options: Any) -> dict[str, Any]:
        return {**options, "deadline_s": self._deadline(options.get("deadline_s"))}


def _sizes(things: Sequence[Memory]) -> list[int]:
    """Their bytes; 0 of what does not say, and of what is no memory, which is refused later."""

    def size(thing: Memory) -> int:
        try:
            return memoryview(cast("bytes", thing)).nbytes
        except (TypeError, ValueError, BufferError):
            said = getattr(thing, "nbytes", 0)
            return said if isinstance(said, int) else 0

    return [size(thing) for thing in things]


def _written(result: BlockResult) -> int:
    if result.status == "OK":
        return result.bytes
    if result.status == "NO_SPACE":
        raise ValueError("the buffer is smaller than the value")
    return -1


__all__ = ["Client", "ClosedError"]
