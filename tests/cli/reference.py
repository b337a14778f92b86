"""A second implementation of Qwen3-MoE and Mixtral, in float64, from spec and papers: for configurations that no golden
has. test_grouped.py shows that it agrees with the goldens first."""
import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1"}


def e4m3(codes):
    exponent, mantissa = codes >> 3 & 15, (codes & 7).astype(np.float64)
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0**(exponent.astype(np.float64) - 7))
    return np.where(codes & 128, -value, value)


def values(tensors, name):
    """A tensor [dtype, shape, bytes] of a checkpoint in float64, block scales applied."""
    dtype, shape, data = tensors[name]
    raw = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype != "F8_E4M3":
        return raw.astype(np.float64)
    scale = values(tensors, name + "_scale_inv").repeat(128, 0).repeat(128, 1)
    return e4m3(raw) * scale[:shape[0], :shape[1]]


def softmax(x):
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def frequencies(config, size):
    """Of the rotation of each pair, and what cosine and sine are multiplied by (YaRN: arXiv:2309.00071)."""
    theta, scaling = config["rope_theta"], config.get("rope_scaling")
    base = theta ** (-np.arange(0, size, 2) / size)
    if not scaling:
        return base, 1.0
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    at = lambda turns: size * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(theta))
    low = max(np.floor(at(scaling.get("beta_fast", 32))), 0)
    high = min(np.ceil(at(scaling.get("beta_slow", 1))), size - 1)
    ramp = np.clip((np.arange(size // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    return base / factor * ramp + base * (1 - ramp), 0.1 * np.log(factor) + 1


def rotate(x, config):
    """x [T, heads, size]: pairs (i, i + size / 2)."""
    half = x.shape[-1] // 2
    frequency, factor = frequencies(config, 2 * half)
    angle = np.arange(len(x))[:, None, None] * frequency
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def forward(config, tensors, ids):
    """Logits [T, vocab_size] and, by layer, the chosen experts [T, k] as sets."""
    w = lambda name: values(tensors, name)
    def linear(name, x):
        return x @ w(name + ".weight").T + (w(name + ".bias") if name + ".bias" in tensors else 0)
    def swiglu(gate, up, down, x):
        g = linear(gate, x)
        return linear(down, g / (1 + np.exp(-g)) * linear(up, x))

    x, experts, mixtral, T = w("model.embed_tokens.weight")[ids], {}, config["model_type"] == "mixtral", len(ids)
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    for i in range(config["num_hidden_layers"]):
        c = {**config, **config.get("layer_config", {}).get(str(i), {})}
        p, eps = f"model.layers.{i}.", c["rms_norm_eps"]
        H, G = c["num_attention_heads"], c["num_key_value_heads"]
        size = c.get("head_dim") or c["hidden_size"] // H
        h = rms(x, w(p + "input_layernorm.weight"), eps)
        q, k, v = (linear(f"{p}self_attn.{n}_proj", h).reshape(T, heads, size) for n, heads in (("q", H), ("k", G), ("v", G)))
        if not mixtral:
            q, k = rms(q, w(p + "self_attn.q_norm.weight"), eps), rms(k, w(p + "self_attn.k_norm.weight"), eps)
        q, k, v = rotate(q, c), rotate(k, c).repeat(H // G, 1), v.repeat(H // G, 1)
        score = np.einsum("thn,shn->hts", q, k) / np.sqrt(size)
        window = c.get("sliding_window") if c.get("use_sliding_window", mixtral) else None
        distance = np.arange(T)[:, None] - np.arange(T)
        score[:, (distance < 0) | (distance >= (window or T))] = -np.inf
        x = x + linear(p + "self_attn.o_proj", np.einsum("hts,shn->thn", softmax(score), v).reshape(T, -1))

        h, f = rms(x, w(p + "post_attention_layernorm.weight"), eps), p + ("block_sparse_moe." if mixtral else "mlp.")
        if f + "gate.weight" not in tensors:
            x = x + swiglu(*(f + n for n in names), h)
            continue
        probability = softmax(h @ w(f + "gate.weight").T)
        chosen = np.argsort(-probability, 1, "stable")[:, :c["num_experts_per_tok"]]
        weight = np.take_along_axis(probability, chosen, 1)
        if mixtral or c.get("norm_topk_prob"):
            weight = weight / weight.sum(1, keepdims=True)
        y = np.zeros_like(x)
        for e in np.unique(chosen):
            t, slot = np.nonzero(chosen == e)
            y[t] += weight[t, slot, None] * swiglu(*(f"{f}experts.{e}.{n}" for n in names), h[t])
        x, experts[i] = x + y, np.sort(chosen, 1)
    x = rms(x, w("model.norm.weight"), config["rms_norm_eps"])
    return x @ w("lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight").T, experts
