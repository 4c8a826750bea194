"""What a user may say in kv_connector_extra_config. Every key is checked: one that is unknown is an error."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

CLASSES = ("exact", "near", "high", "balanced", "small")
SAVES = ("all", "prompt", "none")
FORMATS = ("map", "array", "store")
HINTS = ("unknown", "likely", "unlikely", "done")


@dataclasses.dataclass(frozen=True)
class Settings:
    endpoint: str | tuple[str, ...] = ""  # "" and no view_file: TIERCEL_ENDPOINT, or 127.0.0.1:7400.
    view_file: str = ""
    namespace: str = "default"
    transports: tuple[str, ...] = ()
    ucx_devices: str = ""
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    model: str = ""  # What the model is called in keys; "": as vLLM calls it.
    revision: str = ""  # Of the weights; "": vLLM's, the hub's commit, or a digest of a local folder.
    quality: str = "exact"  # The class that is stored, and the worst that is loaded. One an engine.
    artifact: str = ""  # The model's KVA1 file, for classes other than exact.
    tokens_per_block: int = 128  # Of a stored block; a multiple of vLLM's block, or vLLM's if that is greater.
    save: str = "all"  # all: generated tokens, too. prompt. none: only load.
    load: bool = True
    match_wait_s: float = 0.1  # So long a request may wait to hear what the cache has.
    load_deadline_s: float = 2.0  # And at most so long for its blocks; what is missing then is computed.
    put_deadline_s: float = 2.0
    max_put_bytes: int = 256 << 20  # In flight from one worker; beyond it blocks are not stored.
    events_endpoint: str = ""  # Of a stream of KV events of our own, as of vLLM's --kv-events-config; "": none.
    events_replay_endpoint: str = ""
    events_topic: str = ""
    events_format: str = "map"  # What the router reads: publish.py.
    events_sweep_s: float = 30.0  # Each announced block is looked up once in so long; that it went is told then.

    def client_options(self) -> dict[str, Any]:
        """Of tiercel.Client."""
        endpoint = list(self.endpoint) if isinstance(self.endpoint, tuple) else self.endpoint
        return {
            "endpoint": endpoint or None,
            "view_file": self.view_file or None,
            "name_space": self.namespace,
            "transports": list(self.transports) or None,
            "ucx_devices": self.ucx_devices,
            "tls_ca_file": self.tls_ca_file,
            "tls_cert_file": self.tls_cert_file,
            "tls_key_file": self.tls_key_file,
            "client_name": "vllm",
        }


def _refuse(key: str, why: str) -> ValueError:
    return ValueError(f"kv_connector_extra_config.{key}: {why}")


def _value(field: dataclasses.Field[Any], value: Any) -> Any:
    name, kind = field.name, type(field.default)
    if name == "endpoint" and isinstance(value, list) or kind is tuple:
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
            raise _refuse(name, "expected a list of strings")
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise _refuse(name, f"expected {kind.__name__}, not {value!r}")
    return value


def parse(extra: Mapping[str, Any]) -> Settings:
    """Errors: ValueError that names the key and what is wrong with it."""
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    for key in extra:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise _refuse(key, f"no such key; did you mean {near[0]}?" if near else f"no such key; there are {', '.join(fields)}")
    settings = Settings(**{key: _value(fields[key], value) for key, value in extra.items()})
    for key, known in (("quality", CLASSES), ("save", SAVES), ("events_format", FORMATS)):
        if getattr(settings, key) not in known:
            raise _refuse(key, f"{getattr(settings, key)!r} is none of {', '.join(known)}")
    for key in ("match_wait_s", "load_deadline_s", "put_deadline_s", "tokens_per_block", "max_put_bytes", "events_sweep_s"):
        if getattr(settings, key) <= 0:
            raise _refuse(key, "must be positive")
    if not settings.events_endpoint and (settings.events_replay_endpoint or settings.events_topic):
        raise _refuse("events_endpoint", "missing: a replay endpoint or a topic is of its stream")
    if settings.artifact and settings.quality == "exact":
        raise _refuse("artifact", "of no use to class exact")
    return settings
