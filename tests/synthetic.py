"""A checkpoint of random weights of any size, for tests and measurements of the converter: Qwen3-MoE in bf16, in shards."""
import json
import pathlib
import struct

import numpy as np


def tensors(layers, experts, hidden, width, vocabulary):
    """Names and shapes, in the order of the layers."""
    heads, head = hidden // 64, 64
    yield "model.embed_tokens.weight", [vocabulary, hidden]
    for layer in range(layers):
        p = f"model.layers.{layer}."
        yield p + "input_layernorm.weight", [hidden]
        yield p + "post_attention_layernorm.weight", [hidden]
        for name, rows, columns in (("q_proj", heads * head, hidden), ("k_proj", head, hidden), ("v_proj", head, hidden),
                                    ("o_proj", hidden, heads * head)):
            yield p + f"self_attn.{name}.weight", [rows, columns]
        yield p + "self_attn.q_norm.weight", [head]
        yield p + "self_attn.k_norm.weight", [head]
        yield p + "mlp.gate.weight", [experts, hidden]
        for expert in range(experts):
            for name, rows, columns in (("gate_proj", width, hidden), ("up_proj", width, hidden), ("down_proj", hidden, width)):
                yield p + f"mlp.experts.{expert}.{name}.weight", [rows, columns]
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [vocabulary, hidden]


def make(folder, size, seed=1, shards=8):
    """Writes a checkpoint of about `size` bytes into a new folder."""
    folder = pathlib.Path(folder)
    folder.mkdir()
    hidden, width, vocabulary, experts = (1024, 512, 4096, 16) if size > 100e6 else (128, 64, 256, 4)
    per_layer = 2 * (3 * experts * hidden * width + 2 * hidden * hidden)
    layers = max(1, round((size - 4 * vocabulary * hidden) / per_layer))
    config = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": vocabulary, "hidden_size": hidden,
              "intermediate_size": width, "moe_intermediate_size": width, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
              "num_key_value_heads": 1, "head_dim": 64, "num_experts": experts, "num_experts_per_tok": 2, "norm_topk_prob": True,
              "decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 1024, "rope_theta": 10000.0,
              "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    everything = list(tensors(layers, experts, hidden, width, vocabulary))
    limit = sum(2 * int(np.prod(shape)) for _, shape in everything) / shards
    parts, filled = [[]], 0
    for name, shape in everything:
        n = 2 * int(np.prod(shape))
        if filled + n > limit * 1.01 and parts[-1]:
            parts.append([])
            filled = 0
        parts[-1].append((name, shape))
        filled += n
    weight_map = {}
    for i, part in enumerate(parts):
        name = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        header, end = {}, 0
        for tensor, shape in part:
            n = 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + n]}
            weight_map[tensor] = name
            end += n
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, shape in part:  # finite, and below 2 in size
                file.write((random.integers(0, 65536, int(np.prod(shape)), dtype=np.uint16) & 0xBFFF).tobytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
