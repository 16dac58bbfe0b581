"""The transformer of `model/` once more, in NumPy and float64, one document, layer and head at a time."""

import numpy as np

from model.config import ModelConfig


def forward(config: ModelConfig, params, tokens_T, segments_T, positions_T) -> tuple[np.ndarray, np.ndarray]:
    """(hidden_TD, max_logit_LN) of one row. Knows no way to stretch RoPE."""
    x_TD = np.float64(params["embedding"])[tokens_T] * config.embedding_scale
    maxima = []
    for i in range(config.num_layers):
        layer = {
            room: {name: np.float64(leaf[i]) for name, leaf in _leaves(group).items()}
            for room, group in params["layers"].items()
        }
        mixed_TD, maximum_N = _attention(
            config, layer, i, _norm(config, layer["attention_norm"], x_TD), segments_T, positions_T
        )
        maxima.append(maximum_N)
        post = config.norm_position == "pre_post"
        x_TD = x_TD + (_norm(config, layer["attention_post_norm"], mixed_TD) if post else mixed_TD)
        inner_TD = _feed_forward(config, layer["feed_forward"], _norm(config, layer["feed_forward_norm"], x_TD))
        x_TD = x_TD + (_norm(config, layer["feed_forward_post_norm"], inner_TD) if post else inner_TD)
    return _norm(config, params["final_norm"], x_TD), np.array(maxima)


def _leaves(group, at=""):
    """Nested names joined by a slash."""
    found = {}
    for name, value in group.items():
        found |= _leaves(value, f"{at}{name}/") if isinstance(value, dict) else {at + name: value}
    return found


def _norm(config, group, x, kind=None):
    kind = kind or config.norm
    scale = np.float64(group["scale"]) + config.norm_plus_one
    if kind == "rms":
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_epsilon) * scale
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + config.norm_epsilon) * scale + np.float64(group["bias"])


def _attention(config, layer, i, x_TD, segments_T, positions_T):
    weights, H, T = layer["attention"], config.head_dim, len(x_TD)
    scale = 1 / H**0.5 if config.attention_scale is None else config.attention_scale
    out_TD = np.zeros_like(x_TD) + (weights["output_bias"] if config.output_bias else 0)
    maximum_N = np.zeros(config.num_heads)
    for n in range(config.num_heads):
        k = n // (config.num_heads // config.num_kv_heads)
        q_TH, k_TH, v_TH = (
            x_TD @ weights[name][:, head] + (weights[f"{name}_bias"][head] if config.qkv_bias else 0)
            for name, head in (("query", n), ("key", k), ("value", k))
        )
        if config.qk_norm:
            q_TH = _norm(config, {"scale": weights["query_norm/scale"]}, q_TH, "rms")
            k_TH = _norm(config, {"scale": weights["key_norm/scale"]}, k_TH, "rms")
        if config.uses_rope[i]:
            q_TH, k_TH = _rotate(config, q_TH, positions_T), _rotate(config, k_TH, positions_T)
        logits_TT = q_TH @ k_TH.T * scale
        distance_TT = np.arange(T)[:, None] - np.arange(T)
        visible_TT = (distance_TT >= 0) & (segments_T[:, None] == segments_T)
        if config.windows[i]:
            visible_TT &= distance_TT < config.windows[i]
        maximum_N[n] = logits_TT[visible_TT].max()
        if config.attention_soft_cap is not None:
            logits_TT = config.attention_soft_cap * np.tanh(logits_TT / config.attention_soft_cap)
        probabilities_TT = np.where(visible_TT, np.exp(logits_TT), 0)
        probabilities_TT /= probabilities_TT.sum(-1, keepdims=True)
        out_TD = out_TD + probabilities_TT @ v_TH @ weights["output"][n]
    return out_TD, maximum_N


def _rotate(config, x_TH, positions_T):
    """Each pair of features is a complex number, turned by its angle."""
    H, turned = config.head_dim, x_TH.copy()
    for r in range(H // 2):
        first, second = (2 * r, 2 * r + 1) if config.rope_pairs == "interleaved" else (r, r + H // 2)
        angle_T = positions_T / config.rope_theta ** (2 * r / H)
        pair_T = (x_TH[:, first] + 1j * x_TH[:, second]) * np.exp(1j * angle_T)
        turned[:, first], turned[:, second] = pair_T.real, pair_T.imag
    return turned


def _feed_forward(config, weights, x_TD):
    def project(name, x):
        return x @ weights[name] + (weights[f"{name}_bias"] if config.feed_forward_bias else 0)

    if config.feed_forward == "relu2":
        return project("down", np.maximum(project("up", x_TD), 0) ** 2)
    gate_TF = project("gate", x_TD)
    if config.feed_forward == "swiglu":
        gate_TF = gate_TF / (1 + np.exp(-gate_TF))
    else:
        gate_TF = gate_TF / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate_TF + 0.044715 * gate_TF**3)))
    return project("down", gate_TF * project("up", x_TD))
