"""Which weights these are. Two engines share KV only where this text is equal, so it comes from the weights
themselves or from whoever vouches for them, never from a folder's name alone."""

from __future__ import annotations

import hashlib
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from .settings import Settings

MAX_HASHED_BYTES = 16 << 30  # Of a local folder; a minute of one core. Beyond it the user names the revision.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_CONFIGS = ("config.json", "adapter_config.json")
MAX_ADAPTERS = 4096

Stamp = tuple[tuple[str, int, int], ...]  # Path, bytes, time of change.


def weights_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS or path.name in _CONFIGS)


def digest(paths: list[Path]) -> str:
    """Of names, sizes and every byte."""
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


def stamp_of(paths: list[Path]) -> Stamp:
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


@lru_cache(maxsize=16)
def _digest_once(stamp: Stamp) -> str:
    return digest([Path(name) for name, _, _ in stamp])


def digest_of_folder(folder: str, key: str) -> str:
    """Errors: ValueError names the key that must be set instead."""
    paths = weights_of(Path(folder))
    size = sum(path.stat().st_size for path in paths)
    if not paths:
        raise ValueError(f"{key}: {folder} has no weights to tell models apart by; name their revision")
    if size > MAX_HASHED_BYTES:
        raise ValueError(f"{key}: {folder} has {size >> 30} GiB of weights, too many to read; name their revision")
    return _digest_once(stamp_of(paths))


def revision(settings: Settings, model_config: Any) -> str:
    if settings.revision:
        return settings.revision
    if os.path.isdir(model_config.model):
        return "sha256:" + digest_of_folder(model_config.model, "kv_connector_extra_config.revision")
    commit = getattr(model_config.hf_config, "_commit_hash", None)
    if isinstance(commit, str) and commit:
        return commit
    if model_config.revision:
        return str(model_config.revision)
    raise ValueError(
        f"kv_connector_extra_config.revision: nothing says which weights of {model_config.model} these are; name their revision"
    )


def model(settings: Settings, model_config: Any) -> str:
    """A local folder goes by its weights alone: where it lies does not matter."""
    if settings.model:
        return settings.model
    return "local" if os.path.isdir(model_config.model) else str(model_config.model)


class Adapters:
    """LoRA adapters by content: vLLM's block hash has only their names. Digests are made on a thread of their own;
    until one is there its requests are not cached."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Stamp], str | None] = {}

    def __call__(self, name: str, path: str) -> str | None:
        """Of the adapter, or None: not known yet, or not knowable."""
        try:
            stamp = stamp_of(weights_of(Path(path)))
        except OSError:
            return None
        key = (name, stamp)
        if key not in self._known:
            if not stamp or len(self._known) >= MAX_ADAPTERS:
                return None
            self._known[key] = None
            threading.Thread(target=self._read, args=(key,), name="tiercel-adapter", daemon=True).start()
        return self._known[key]

    def _read(self, key: tuple[str, Stamp]) -> None:
        try:
            self._known[key] = f"{key[0]}@{_digest_once(key[1])}"
        except OSError:
            pass  # Stays None: such requests are computed.
