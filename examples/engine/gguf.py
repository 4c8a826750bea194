"""Reads a GGUF file, or one inside a wheel: metadata, and tensors as float32 arrays.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only what SmolLM2's file uses is read:
little-endian version 2 or 3, tensors in F32, Q8_0 and Q4_1.
"""

import hashlib
import mmap
import struct
import zipfile

import numpy as np

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8


class Gguf:
    def __init__(self, data):
        self._data = memoryview(data)
        self._at = 0
        magic, version, tensors, pairs = self._take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"not a GGUF file of version 2 or 3 ({magic!r}, {version})")
        self.metadata = {}
        for _ in range(pairs):
            key = self._string()
            self.metadata[key] = self._value(self._take("I")[0])
        self._tensors = {}
        for _ in range(tensors):
            name = self._string()
            shape = self._take(f"{self._take('I')[0]}Q")[::-1]  # GGUF names the fastest axis first.
            kind, offset = self._take("IQ")
            self._tensors[name] = (shape, kind, offset)
        alignment = self.metadata.get("general.alignment", 32)
        self._base = -(-self._at // alignment) * alignment

    @classmethod
    def open(cls, path):
        if str(path).endswith(".whl"):
            with zipfile.ZipFile(path) as wheel:
                name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
                return cls(wheel.read(name))
        with open(path, "rb") as file:
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def digest(self):
        """SHA-256 of the whole file, in hex."""
        return hashlib.sha256(self._data).hexdigest()

    def tensor(self, name):
        shape, kind, offset = self._tensors[name]
        count = int(np.prod(shape))
        at = self._base + offset
        if kind == _F32:
            return np.frombuffer(self._data, np.float32, count, at).reshape(shape)
        # Blocks of 32 values: scale (and minimum) in fp16, then the quantised values.
        block_bytes = {_Q8_0: 34, _Q4_1: 20}[kind]
        blocks = np.frombuffer(self._data, np.uint8, count // 32 * block_bytes, at).reshape(-1, block_bytes)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        if kind == _Q8_0:
            values = blocks[:, 2:].view(np.int8) * scale
        else:
            minimum = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
            packed = blocks[:, 4:]
            values = np.concatenate([packed & 15, packed >> 4], axis=1) * scale + minimum
        return values.astype(np.float32).reshape(shape)

    def _take(self, format_):
        values = struct.unpack_from("<" + format_, self._data, self._at)
        self._at += struct.calcsize("<" + format_)
        return values

    def _string(self):
        (size,) = self._take("Q")
        text = bytes(self._data[self._at : self._at + size]).decode()
        self._at += size
        return text

    def _value(self, kind):
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._take("IQ")
            if element in _SCALARS:
                return list(self._take(f"{count}{_SCALARS[element]}"))
            return [self._value(element) for _ in range(count)]
        return self._take(_SCALARS[kind])[0]
