"""TiercelL2Adapter: LMCache's own native-connector adapter, with keys that say all that the bytes depend on.

LMCache's key names model, rank, group, chunk hash and salt. Which weights the model's name stands for is the
operator's to say (`revision`); shapes and dtypes come from the objects, and at a lookup from the layouts of their
groups. All of that is in the scope, so an object of another layout is a miss.
"""

from __future__ import annotations

import math
from typing import Any

import tiercel
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.l2_adapters import native_connector_l2_adapter as native
from lmcache.v1.distributed.l2_adapters.base import L2TaskId
from lmcache.v1.distributed.l2_adapters.config import L2AdapterConfigBase
from lmcache.v1.memory_management import MemoryObj

from .client import Name, StoreClient

_OPTIONS = ("view_file", "transports", "ucx_devices", "tls_ca_file", "tls_cert_file", "tls_key_file")
_KEYS = ("endpoint", "namespace", "revision", "deadline_s", "max_capacity_gb", *_OPTIONS)


class TiercelL2AdapterConfig(L2AdapterConfigBase):
    """adapter_params, checked."""

    def __init__(self, params: dict[str, Any]) -> None:
        for key in params:
            if key not in _KEYS:
                raise ValueError(f"adapter_params.{key}: no such key; there are {', '.join(_KEYS)}")
        if not isinstance(params.get("revision"), str) or not params["revision"]:
            raise ValueError("adapter_params.revision: say which weights the model's name stands for; LMCache's keys do not")
        self.revision = params["revision"]
        self.deadline_s = float(params.get("deadline_s", 5.0))
        self.max_capacity_gb = float(params.get("max_capacity_gb", 0))
        if self.deadline_s <= 0 or self.max_capacity_gb < 0:
            raise ValueError("adapter_params: deadline_s must be positive, max_capacity_gb not negative")
        self.options = {"endpoint": params.get("endpoint"), "name_space": params.get("namespace", "default"), "client_name": "lmcache",
                        **{key: params[key] for key in _OPTIONS if key in params}}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> TiercelL2AdapterConfig:
        return cls(d)

    @classmethod
    def help(cls) -> str:
        return ("Tiercel (docs/engines/lmcache.md): revision (required: which weights), endpoint, namespace, deadline_s (5), "
                "max_capacity_gb (0: Tiercel evicts by itself), " + ", ".join(_OPTIONS))


class TiercelL2Adapter(native.NativeConnectorL2Adapter):
    """Errors of the constructor: tiercel.ConnectError when no node answers. A store that is away later costs misses."""

    config_class_name = "TiercelL2AdapterConfig"

    def __init__(self, config: TiercelL2AdapterConfig, l1_memory_desc: Any = None) -> None:
        # LMCache's arena may grow, and values are copied through the client's staging: nothing of it is registered.
        self._revision = config.revision
        self._scopes: dict[str, bytes] = {}
        super().__init__(StoreClient(config.options, config.deadline_s), max_capacity_gb=config.max_capacity_gb, type_name="tiercel")

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2TaskId:
        names = [self._name(key, obj.get_shapes(), obj.get_dtypes(), obj.get_size()) for key, obj in zip(keys, objects, strict=True)]
        buffers = [native._obj_to_memoryview(obj) for obj in objects]
        with self._lock:
            task = self._get_next_task_id()
            future = self._client.submit_batch_set(names, buffers)
            self._pending_ops[future] = (self._OP_STORE, task, len(keys), None)
            self._pending_store_sizes[future] = (list(keys), [len(buffer) for buffer in buffers])
        return task

    def submit_lookup_and_lock_task(self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]) -> L2TaskId:
        names = []
        for key in keys:
            desc = group_layout_descs[key.object_group_id]
            size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in zip(desc.shapes, desc.dtypes))
            names.append(self._name(key, desc.shapes, desc.dtypes, size))
        with self._lock:
            task = self._get_next_task_id()
            future = self._client.submit_batch_exists(names)
            self._pending_ops[future] = (self._OP_LOOKUP, task, len(keys), list(keys))
        return task

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2TaskId:
        names = [self._name(key, obj.get_shapes(), obj.get_dtypes(), obj.get_size()) for key, obj in zip(keys, objects, strict=True)]
        buffers = [native._obj_to_memoryview(obj) for obj in objects]
        with self._lock:
            task = self._get_next_task_id()
            future = self._client.submit_batch_get(names, buffers)
            self._pending_ops[future] = (self._OP_LOAD, task, len(keys), list(keys))
        return task

    def report_status(self) -> dict[str, Any]:
        nodes = self._client.nodes()
        return {**super().report_status(), "nodes": nodes, "stats": self._client.stats(),
                "is_healthy": self._demux_thread.is_alive() and any(node["connected"] for node in nodes)}

    def _name(self, key: ObjectKey, shapes: Any, dtypes: Any, size: int) -> Name:
        layout = " ".join(f"{tuple(shape)} {dtype}" for shape, dtype in zip(shapes, dtypes, strict=True))
        scope = self._scopes.get(layout)
        if scope is None:
            if len(self._scopes) >= 4096:
                self._scopes.clear()
            scope = self._scopes[layout] = tiercel.make_scope(model="lmcache", revision=self._revision, salt=layout)
        return Name(native._object_key_to_string(key), scope, size)
