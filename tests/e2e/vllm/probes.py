"""Connectors for tests: the real one, watched or disturbed at a point that nothing else can reach.

RecordingConnector writes one line for every block that it stores or has loaded: its key and a digest of the pages'
bytes as they lie in vLLM's tensors. DisturbingConnector runs a command once, between a match and its load.
"""

import hashlib
import json
import os
import subprocess

import torch
from tiercel_vllm import TiercelConnector


class RecordingConnector(TiercelConnector):
    def _digest(self, pages):
        total = hashlib.sha256()
        for tensor in self._worker._pages.tensors:
            for page in pages:
                total.update(tensor[page].contiguous().view(-1).view(dtype=torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def _record(self, what, request, first, pages):
        chain = self._worker._chains[request]
        with open(os.environ["TIERCEL_TEST_RECORD"], "a") as file:
            for i, block in enumerate(pages):
                print(json.dumps([what, chain.key(first + i).hex(), self._digest(block)]), file=file)

    def wait_for_save(self):
        for save in self._get_connector_metadata().saves:
            self._record("saved", save.request, save.first, save.pages)
        super().wait_for_save()

    def start_load_kv(self, forward_context, **kwargs):
        for load in self._get_connector_metadata().loads:
            self.__dict__.setdefault("_asked", {})[load.request] = load
        super().start_load_kv(forward_context, **kwargs)

    def build_connector_worker_meta(self):
        meta = super().build_connector_worker_meta()
        for loaded in meta.loaded:
            load = self._asked.pop(loaded.request)
            self._record("loaded", load.request, load.first, load.pages[:loaded.served])
        return meta


class DisturbingConnector(TiercelConnector):
    """TIERCEL_TEST_COMMAND: a file; while it is there, its content is run once after the next match that hit."""

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        tokens, later = super().get_num_new_matched_tokens(request, num_computed_tokens)
        command = os.environ["TIERCEL_TEST_COMMAND"]
        if tokens and os.path.exists(command):
            with open(command) as file:
                text = file.read()
            os.unlink(command)
            subprocess.run(text, shell=True, check=True)
        return tokens, later
