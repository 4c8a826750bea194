"""Byte-level BPE as SmolLM2 uses it: text to token ids and back, from the tables in the GGUF file.

Bytes are written as printable characters (Radford et al., GPT-2), digits stand alone, and the pair
that was learnt first is merged first.
"""

import re

_WORDS = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)|\d| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?=\d)|\s+(?!\S)|\s+"
)


def _byte_characters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    spare = 256
    for b in range(256):
        if b not in table:
            table[b] = chr(spare)
            spare += 1
    return table


class Tokenizer:
    def __init__(self, metadata):
        self._tokens = metadata["tokenizer.ggml.tokens"]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        merges = metadata["tokenizer.ggml.merges"]
        self._ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        kinds = metadata["tokenizer.ggml.token_type"]
        self._special = {t for t, kind in zip(self._tokens, kinds) if kind == 3}
        self._split = re.compile("(" + "|".join(re.escape(t) for t in sorted(self._special)) + ")")
        self._to_character = _byte_characters()
        self._to_byte = {c: b for b, c in self._to_character.items()}
        self._known_words = {}

    def encode(self, text):
        ids = []
        for piece in self._split.split(text):
            if piece in self._special:
                ids.append(self._ids[piece])
                continue
            for word in _WORDS.findall(piece):
                ids += self._encode_word("".join(self._to_character[b] for b in word.encode()))
        return ids

    def decode(self, ids):
        out = bytearray()
        for token in (self._tokens[i] for i in ids):
            out += token.encode() if token in self._special else bytes(self._to_byte[c] for c in token)
        return out.decode(errors="replace")

    def _encode_word(self, word):
        known = self._known_words.get(word)
        if known is not None:
            return known
        parts = list(word)
        never = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, never) for pair in zip(parts, parts[1:])]
            best = min(ranks)
            if best == never:
                break
            i = ranks.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids = self._known_words[word] = [self._ids[part] for part in parts]
        return ids
