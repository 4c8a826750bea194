"""The example engine, with a small model made here: random weights, real arithmetic, a real node."""

import json
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest

ENGINE = pathlib.Path(__file__).parents[3] / "examples" / "engine"
sys.path.insert(0, str(ENGINE))

from gguf import Gguf  # noqa: E402
from llama import PAGE_TOKENS, Llama, PagedKv, from_bf16, to_bf16  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402

F32, Q4_1, Q8_0 = 0, 3, 8
LAYERS, WIDTH, HEADS, KV_HEADS, HIDDEN = 2, 64, 4, 2, 128


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value_of(value):
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, list):
        kind = 8 if isinstance(value[0], str) else 5
        items = b"".join(text(v) if kind == 8 else struct.pack("<i", v) for v in value)
        return struct.pack("<IIQ", 9, kind, len(value)) + items
    return struct.pack("<II", 4, value)


def write_gguf(path, metadata, tensors):
    """tensors: name -> (shape, kind, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += text(key) + value_of(value)
    body = b""
    for name, (shape, kind, data) in tensors.items():
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += text(name) + dims + struct.pack("<IQ", kind, len(body))
        body += data + bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)


def vocabulary():
    """Every byte a token, two merges, one special token."""
    bytes_ = Tokenizer.__init__.__globals__["_byte_characters"]()
    return [*bytes_.values(), "th", "the", "<|end|>"], ["t h", "th e"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rng = np.random.default_rng(11)
    tokens, merges = vocabulary()
    head = WIDTH // HEADS

    def weight(*shape):
        data = rng.normal(scale=shape[-1] ** -0.5, size=shape).astype("<f4")
        return shape, F32, data.tobytes()

    def ones():
        return (WIDTH,), F32, np.ones(WIDTH, "<f4").tobytes()

    tensors = {"token_embd.weight": weight(len(tokens), WIDTH), "output_norm.weight": ones()}
    for i in range(LAYERS):
        tensors.update(
            {
                f"blk.{i}.attn_norm.weight": ones(),
                f"blk.{i}.attn_q.weight": weight(WIDTH, WIDTH),
                f"blk.{i}.attn_k.weight": weight(KV_HEADS * head, WIDTH),
                f"blk.{i}.attn_v.weight": weight(KV_HEADS * head, WIDTH),
                f"blk.{i}.attn_output.weight": weight(WIDTH, WIDTH),
                f"blk.{i}.ffn_norm.weight": ones(),
                f"blk.{i}.ffn_gate.weight": weight(HIDDEN, WIDTH),
                f"blk.{i}.ffn_up.weight": weight(HIDDEN, WIDTH),
                f"blk.{i}.ffn_down.weight": weight(WIDTH, HIDDEN),
            }
        )
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    metadata = {
        "general.name": "small " + os.urandom(4).hex(),
        "llama.block_count": LAYERS,
        "llama.embedding_length": WIDTH,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
    }
    write_gguf(path, metadata, tensors)
    return path


def run(model, prompt, tmp_path, *arguments, max_new=64):
    (tmp_path / "prompt.txt").write_text(prompt)
    report = tmp_path / "report.json"
    subprocess.run(
        [sys.executable, ENGINE / "engine.py", "--model", model, "--max-new", str(max_new)]
        + ["--prompt-file", tmp_path / "prompt.txt", "--report", report, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads(report.read_text())


def test_tokens_are_those_of_the_merges(model):
    tokenizer = Tokenizer(Gguf.open(model).metadata)
    tokens, _ = vocabulary()
    assert [tokens[i] for i in tokenizer.encode("the tha<|end|>")] == [
        *["the", "\u0120", "th", "a", "<|end|>"]
    ]
    everything = "".join(map(chr, range(1, 0x250))) + "日本 42"
    assert tokenizer.decode(tokenizer.encode(everything)) == everything


def test_bf16_rounds_to_nearest_even():
    for x, want in ((1.0, 1.0), (1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (-0.1, -0.10009765625)):
        assert from_bf16(to_bf16(np.float32([x])))[0] == np.float32(want)


@pytest.mark.parametrize("kind", [Q8_0, Q4_1])
def test_quantised_tensors_are_read_value_by_value(kind, tmp_path):
    rng = np.random.default_rng(kind)
    blocks, want = b"", []
    for _ in range(6):
        scale, low = np.float16(rng.normal()), np.float16(rng.normal())
        if kind == Q8_0:
            q = rng.integers(-128, 128, 32)
            blocks += scale.tobytes() + q.astype(np.int8).tobytes()
            want += [np.float32(scale) * np.float32(v) for v in q]
        else:
            q = rng.integers(0, 16, 32)
            blocks += scale.tobytes() + low.tobytes() + bytes(q[i] | q[i + 16] << 4 for i in range(16))
            want += [np.float32(scale) * np.float32(v) + np.float32(low) for v in q]
    write_gguf(tmp_path / "t.gguf", {"a": 1}, {"t": ((3, 64), kind, blocks)})
    got = Gguf.open(tmp_path / "t.gguf").tensor("t")
    assert got.shape == (3, 64)
    assert np.array_equal(got.ravel(), np.float32(want))


def test_what_is_not_a_model_is_said_so(tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"GGUX" + bytes(100))
    with pytest.raises(ValueError, match="not a GGUF file"):
        Gguf.open(tmp_path / "no.gguf")


def test_attention_is_causal_and_pages_do_not_matter(model):
    """Computed by its definition, one token at a time, logits agree with the chunked prefill."""
    llama = Llama(Gguf.open(model))
    ids = list(np.random.default_rng(5).integers(0, 256, 2 * PAGE_TOKENS + 17))
    whole, one = PagedKv(llama.config, 400), PagedKv(llama.config, 400)
    at_once = llama.prefill(ids, whole)
    for i in ids:
        step = llama.prefill([i], one)
    # bf16 pages: the two differ by rounding of what the pages hold, no more.
    assert np.abs(at_once - step).max() < 0.05 * np.abs(at_once).max()
    assert whole.tokens == one.tokens == len(ids)


PROMPT = "It is the cache that remembers; the engine computes only what nobody did. " * 12


@pytest.mark.parametrize("transport", ["memfd", "grpc", "ucx"])
def test_a_warm_engine_says_the_same_words(model, endpoint, tmp_path, transport):
    prompt = f"{os.urandom(8).hex()} {PROMPT}"
    way = ("--cache", endpoint, "--transport", transport)
    alone = run(model, prompt, tmp_path)
    cold = run(model, prompt, tmp_path, *way)
    warm = run(model, prompt, tmp_path, *way)
    whole = (cold["prompt_tokens"] - 1) // PAGE_TOKENS * PAGE_TOKENS
    assert whole >= 5 * PAGE_TOKENS
    assert cold["reused_tokens"] == 0 and cold["blocks_pushed"] == cold["prompt_tokens"] // PAGE_TOKENS
    assert warm["reused_tokens"] == whole and warm["computed_tokens"] == warm["prompt_tokens"] - whole
    assert len(warm["tokens"]) == 64
    assert alone["tokens"] == cold["tokens"] == warm["tokens"]
    assert cold["stored_bytes"] < cold["raw_bytes"]
    assert warm["transport"] == transport


def test_without_a_node_the_engine_computes_all(model, tmp_path):
    alone = run(model, PROMPT, tmp_path, max_new=8)
    away = run(model, PROMPT, tmp_path, "--cache", "127.0.0.1:1", max_new=8)
    assert away["tokens"] == alone["tokens"] and away["transport"] == "none"


def test_a_longer_prompt_adds_only_its_own_blocks(model, endpoint, tmp_path):
    prompt = f"{os.urandom(8).hex()} {PROMPT}"
    way = ("--cache", endpoint)
    first = run(model, prompt, tmp_path, *way, max_new=1)
    longer = run(model, prompt + PROMPT, tmp_path, *way, max_new=8)
    alone = run(model, prompt + PROMPT, tmp_path, max_new=8)
    assert longer["reused_tokens"] == first["blocks_pushed"] * PAGE_TOKENS
    assert longer["blocks_pushed"] == longer["prompt_tokens"] // PAGE_TOKENS - first["blocks_pushed"]
    assert longer["tokens"] == alone["tokens"]


def test_a_prompt_of_whole_blocks_leaves_one_to_compute(model, endpoint, tmp_path):
    prompt, cut = os.urandom(600).hex(), ("--prompt-tokens", str(4 * PAGE_TOKENS))
    run(model, prompt, tmp_path, "--cache", endpoint, *cut, max_new=4)
    warm = run(model, prompt, tmp_path, "--cache", endpoint, *cut, max_new=4)
    assert warm["prompt_tokens"] == 4 * PAGE_TOKENS
    assert warm["computed_tokens"] == PAGE_TOKENS


def test_weights_that_differ_share_nothing(model, endpoint, tmp_path):
    prompt = f"{os.urandom(8).hex()} {PROMPT}"
    other = tmp_path / "other.gguf"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    run(model, prompt, tmp_path, "--cache", endpoint, max_new=1)
    assert run(other, prompt, tmp_path, "--cache", endpoint, max_new=1)["reused_tokens"] == 0
