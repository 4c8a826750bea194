"""Client: KV blocks by chain, and bytes by key."""

from . import _core, keys
from ._core import Chain, ClosedError, KvLayout

_OPAQUE = KvLayout.opaque()
_BYTE_SCOPE = keys.byte_scope()


class Client:
    """A connection to every node of the service.

    Any thread may call any method; the GIL is released while data moves. A miss, a timeout or a full
    node is a status in a BlockResult, never an exception: those are for wrong use (ValueError,
    TypeError, NotContiguous), a closed client (ClosedError) and no node at all (ConnectError).
    """

    def __init__(
        self,
        endpoint="127.0.0.1:7400",
        *,
        name_space="default",
        transports=None,
        ucx_devices="",
        view_file=None,
        deadline_s=2.0,
        **options,
    ):
        endpoints = [endpoint] if isinstance(endpoint, str) else list(endpoint)
        self._core = _core.Client(
            endpoints=[] if view_file else endpoints,
            view_file=str(view_file) if view_file else "",
            name_space=name_space,
            transports=list(transports or ()),
            ucx_devices=ucx_devices,
            **options,
        )
        self.name_space = name_space
        self.deadline_s = deadline_s

    # Life

    def close(self):
        """Cancels what is in flight and hangs up. Again: nothing."""
        self._core.close()

    @property
    def closed(self):
        return self._core.closed

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    # KV blocks

    def match_prefix(self, chain, deadline_s=None, hold=False):
        """How many leading blocks of the chain are there."""
        if hold:
            raise NotImplementedError("hold: the client library does not hold matches")
        if len(chain) == 0:
            return 0
        return self._core.match(chain, deadline_s=self._deadline(deadline_s)).prefix

    def lookup(self, chain, deadline_s=None):
        """One BlockResult a block: where it is, or the reason why not."""
        if len(chain) == 0:
            return []
        return self._core.match(chain, deadline_s=self._deadline(deadline_s)).blocks

    def get_blocks(self, chain, first, n, layout, k_ptrs, v_ptrs=None, **opts):
        """Fetches blocks first .. first + n - 1 into planes at these addresses.

        k_ptrs and v_ptrs: C-contiguous int64 [n, layers] in host memory, read where they are. Each
        address is one layer's K (or V) of one block, dense in the layout's order. Options:
        deadline_s, min_class, prefer_small, no_touch, layer_begin, layer_end.
        """
        self._fill(opts)
        return self._core.get_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts).blocks

    def put_blocks(self, chain, first, n, layout, k_ptrs, v_ptrs=None, **opts):
        """Stores blocks from planes at these addresses. Options: deadline_s, durable, reuse."""
        self._fill(opts)
        return self._core.put_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts).blocks

    def get_pages(self, chain, first, layout, paged, page_table, **opts):
        """As get_blocks, into a paged cache; page_table: [n, pages a block], int32 or int64."""
        self._fill(opts)
        return self._core.get_pages(chain, first, layout, paged, page_table, **opts).blocks

    def put_pages(self, chain, first, layout, paged, page_table, **opts):
        self._fill(opts)
        return self._core.put_pages(chain, first, layout, paged, page_table, **opts).blocks

    # Bytes by key: 1 byte to 16 MiB. A key is text or bytes; a value never changes once stored.

    def put(self, key, data, scope=None, **opts):
        """Stores one value; of an equal key that is stored already, the first value stays."""
        return self.batch_put([key], [data], scope, **opts)[0]

    def get(self, key, scope=None, deadline_s=None):
        """The value as bytes, or None."""
        chain = self.key_chain(key, scope)
        return self._core.get_value(chain, deadline_s=self._deadline(deadline_s))[1]

    def get_into(self, key, buffer, scope=None, **opts):
        """Bytes written into the buffer, or -1 on a miss. A buffer too small: ValueError."""
        return _written(self.batch_get_into([key], [buffer], scope, **opts)[0])

    def exists(self, key, scope=None, deadline_s=None):
        return self.match_prefix(self.key_chain(key, scope), deadline_s) == 1

    def batch_put(self, keys, datas, scope=None, **opts):
        self._fill(opts)
        return self._core.put_buffers(self._chains(keys, scope), datas, _OPAQUE, **opts).blocks

    def batch_get_into(self, keys, buffers, scope=None, **opts):
        """One BlockResult a key; bytes says how much of the buffer was written."""
        self._fill(opts)
        return self._core.get_buffers(self._chains(keys, scope), buffers, _OPAQUE, **opts).blocks

    def batch_put_ptrs(self, keys, ptrs, sizes, scope=None, **opts):
        """As batch_put, of memory at addresses: int64 [n] each, read where they are."""
        self._fill(opts)
        return self._core.put_ptrs(self._chains(keys, scope), ptrs, sizes, _OPAQUE, **opts).blocks

    def batch_get_into_ptrs(self, keys, ptrs, sizes, scope=None, **opts):
        self._fill(opts)
        return self._core.get_ptrs(self._chains(keys, scope), ptrs, sizes, _OPAQUE, **opts).blocks

    # Without waiting. A ticket of 0: the queue is full and nothing was submitted. Buffers and the
    # memory behind addresses are the library's until the completion says released.

    def submit_match_prefix(self, chain, deadline_s=None):
        return self._core.submit_match(chain, deadline_s=self._deadline(deadline_s))

    submit_lookup = submit_match_prefix

    def submit_get_blocks(self, chain, first, n, layout, k_ptrs, v_ptrs=None, **opts):
        self._fill(opts)
        return self._core.submit_get_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts)

    def submit_put_blocks(self, chain, first, n, layout, k_ptrs, v_ptrs=None, **opts):
        self._fill(opts)
        return self._core.submit_put_blocks(chain, first, n, layout, k_ptrs, v_ptrs, **opts)

    def submit_get_pages(self, chain, first, layout, paged, page_table, **opts):
        self._fill(opts)
        return self._core.submit_get_pages(chain, first, layout, paged, page_table, **opts)

    def submit_put_pages(self, chain, first, layout, paged, page_table, **opts):
        self._fill(opts)
        return self._core.submit_put_pages(chain, first, layout, paged, page_table, **opts)

    def submit_batch_put(self, keys, datas, scope=None, **opts):
        self._fill(opts)
        return self._core.submit_put_buffers(self._chains(keys, scope), datas, _OPAQUE, **opts)

    def submit_batch_get_into(self, keys, buffers, scope=None, **opts):
        self._fill(opts)
        return self._core.submit_get_buffers(self._chains(keys, scope), buffers, _OPAQUE, **opts)

    def submit_put(self, key, data, scope=None, **opts):
        return self.submit_batch_put([key], [data], scope, **opts)

    def submit_get_into(self, key, buffer, scope=None, **opts):
        return self.submit_batch_get_into([key], [buffer], scope, **opts)

    def poll(self, max=64):
        """Completions that are ready; never blocks."""
        return self._core.poll(max)

    def event_fd(self):
        """Readable while poll() has something. Do not read or close it."""
        return self._core.event_fd()

    def wait(self, ticket):
        """This ticket's Completion, at most 5 ms after its deadline."""
        return self._core.wait(ticket)

    def cancel(self, ticket):
        self._core.cancel(ticket)

    # Around

    def register_memory(self, address, nbytes):
        """Of a long-lived cache, once: some transports then need no copy. Unregister before freeing."""
        self._core.register_memory(address, nbytes)

    def unregister_memory(self, address, nbytes):
        self._core.unregister_memory(address, nbytes)

    def stats(self):
        """Counts since connect; misses by reason sum to blocks_asked - blocks_served."""
        return self._core.stats()

    def nodes(self):
        """One dict a node: node_id, endpoint, connected, breaker_open, transports, last_error."""
        return self._core.nodes()

    def view(self):
        """The view in use, as JSON."""
        return self._core.view()

    def set_view(self, json):
        self._core.set_view(json)

    def key_chain(self, key, scope=None):
        """The chain of one block that a byte-store key stands for."""
        chain = Chain(scope or _BYTE_SCOPE, name_space=self.name_space)
        chain.append(keys.byte_hash(key))
        return chain

    def _chains(self, names, scope):
        return [self.key_chain(name, scope) for name in names]

    def _deadline(self, deadline_s):
        return self.deadline_s if deadline_s is None else deadline_s

    def _fill(self, opts):
        if opts.get("deadline_s") is None:
            opts["deadline_s"] = self.deadline_s


def _written(result):
    if result.status == "OK":
        return result.bytes
    if result.status == "NO_SPACE":
        raise ValueError("the buffer is smaller than the value")
    return -1


__all__ = ["Client", "ClosedError"]
