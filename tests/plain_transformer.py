"""The transformer of `model/`, its further tokens and its teachers once more, in plain float64 `jax.numpy`.

One module or offset after the other, all logits and maps at once. Only the default options of the config.
"""

import jax
import jax.numpy as jnp
import numpy as np


def losses(config, params, batch, objective, progress=0.0):
    """What is minimised, by the definition: of every offset the mean over the tokens that count."""
    total = 0.0
    for offset, weight, logits_BTV in every(config, params, batch, objective, progress):
        nats, count = 0.0, 0.0
        log_BTV = jax.nn.log_softmax(logits_BTV)
        for row in range(len(log_BTV)):
            places, aims = targets(batch, row, offset)
            nats -= log_BTV[row, places, aims].sum()
            count += len(places)
        total += (weight[0] if isinstance(weight, tuple) else weight) * nats / max(count, 1)
    return total


def accuracies(config, params, batch, objective):
    """By the names of the metrics: how many of the tokens that count are the likeliest."""
    found = {}
    for offset, weight, logits_BTV in every(config, params, batch, objective, 0.0):
        hits = []
        for row, best_T in enumerate(np.asarray(logits_BTV.argmax(-1))):
            places, aims = targets(batch, row, offset)
            hits += (best_T[places] == aims).tolist()
        name = f"{'trunk_' if isinstance(weight, tuple) else ''}accuracy_offset_{offset}"
        found["accuracy" if offset == 1 else name] = float(np.mean(hits or [0]))
    return found


def every(config, params, batch, objective, progress):
    """(offset, its weight, logits)."""
    trunk_BTD, modules, _ = jax.vmap(lambda *row: _row(config, params, row))(*map(jnp.asarray, batch))
    head_VD = params["embedding" if config.tied_head else "head"]
    for offset, weight in weights_of(config, objective, progress):
        hidden_BTD = modules[offset] if offset in modules and not isinstance(weight, tuple) else trunk_BTD
        yield offset, weight, hidden_BTD @ head_VD.T


def distilled(config, params, teacher, teacher_params, batch, distill):
    """The same of a student: part of the cross-entropy gives way to the divergence from a teacher's distributions."""
    (own_BTD, _, inside), (theirs_BTE, _, given) = (
        jax.vmap(lambda *row, c=c, p=p: _row(c, p, row))(*map(jnp.asarray, batch))
        for c, p in ((config, params), (teacher, teacher_params))
    )
    T, count = distill.temperature, batch.weights_BT.sum()
    heads = (p["embedding" if c.tied_head else "head"] for c, p in ((config, params), (teacher, teacher_params)))
    logits_BTV, teacher_BTV = (x_BTX @ w_VX.T for x_BTX, w_VX in zip((own_BTD, theirs_BTE), heads))
    hits_BTV = jax.nn.one_hot(batch.targets_BT, config.vocab_size)
    nats_BT = -(hits_BTV * jax.nn.log_softmax(logits_BTV)).sum(-1)
    apart_BT = _divergence(distill.divergence, *map(jax.nn.log_softmax, (logits_BTV / T, teacher_BTV / T)))
    own, theirs = ((of_BT * batch.weights_BT).sum() / count for of_BT in (nats_BT, apart_BT))
    total = (1 - distill.weight) * own + distill.weight * T**2 * theirs
    asked = {"features": distill.features.weight, "maps": distill.attention.maps, "values": distill.attention.values}
    for kind, weight in asked.items():
        layers = (distill.features if kind == "features" else distill.attention).layers
        for number, (s, t) in enumerate(layers if weight else ()):
            if kind == "features":
                x_BTE = inside[s - 1][0] @ params["distill"]["layers"]["projection"][number]
                y_BTE = given[t - 1][0]
                norms_BT = jnp.linalg.norm(x_BTE, axis=-1) * jnp.linalg.norm(y_BTE, axis=-1)
                apart_BT = 1 - (x_BTE * y_BTE).sum(-1) / norms_BT
            else:
                first, second = (1, 2) if kind == "maps" else (3, 3)  # query and key, or value and value
                pairs = ((layer[first], layer[second]) for layer in (inside[s - 1], given[t - 1]))
                apart_BT = _relation_kl(*pairs, batch)
            total += weight / len(layers) * (apart_BT * batch.weights_BT).sum() / count
    return total


def _relation_kl(own, given, batch):
    """[B, T], the mean over so many relation heads as divide both models' heads."""
    R = int(np.gcd(own[0].shape[2], given[0].shape[2]))
    B, T = batch.tokens_BT.shape

    def log(a_BTNH, b_BTNH):
        a, b = (x.reshape(B, T, R, -1) for x in (a_BTNH, b_BTNH))
        logits_BRTT = jnp.einsum("BTRH,BSRH->BRTS", a, b) / np.sqrt(a.shape[-1])
        return jax.nn.log_softmax(jnp.where(visible_B1TT, logits_BRTT, -jnp.inf))

    segments_BT = batch.segment_ids_BT
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None]
    visible_B1TT = (same_BTT & (jnp.arange(T)[:, None] >= jnp.arange(T)))[:, None]
    log_p, log_q = (jnp.where(visible_B1TT, log(*of), 0) for of in (own, given))
    return (jnp.exp(log_q) * (log_q - log_p) * visible_B1TT).sum(-1).mean(1)


def _divergence(kind, log_p, log_q):
    if kind == "forward_kl":
        return (jnp.exp(log_q) * (log_q - log_p)).sum(-1)
    if kind == "reverse_kl":
        return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    mean = (jnp.exp(log_p) + jnp.exp(log_q)) / 2
    return sum((jnp.exp(of) * (of - jnp.log(mean))).sum(-1) for of in (log_p, log_q)) / 2


def weights_of(config, objective, progress):
    """(offset, weight), the weight in a tuple where the trunk's own logits are meant."""
    del progress  # constant weights alone
    M = config.multi_token.tokens
    found = [(1, 1.0)]
    found += [(offset, objective.multi_token.weight / (M - 1)) for offset in range(2, M + 1)]
    return found + [(offset, (weight,)) for offset, weight in enumerate(objective.multi_token.trunk, 2)]


def targets(batch, row, offset):
    """Places, and the tokens at the offset from them, where both are of one document and the token is trained on."""
    segments, T = batch.segment_ids_BT[row], batch.tokens_BT.shape[1]
    lasts = {t: t + offset - 1 for t in range(T - offset + 1)}  # the place whose next token it is
    found = {t: last for t, last in lasts.items() if segments[t] == segments[last] and batch.weights_BT[row, last]}
    return np.array([*found], int), batch.targets_BT[row, np.array([*found.values()], int)]


def _row(config, params, row):
    tokens_T, targets_T, segments_T, positions_T, _ = row
    x_TD, inside = params["embedding"][tokens_T], []
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        x_TD, heads = _block(config, layer, x_TD, segments_T, positions_T, config.uses_rope[i])
        inside.append((x_TD, *heads))
    modules, before_TD = {}, x_TD
    for m in range(config.multi_token.tokens - 1):
        own = jax.tree.map(lambda a, m=m: a[m], params["multi_token"]["layers"])
        start_TD = x_TD
        if config.multi_token.kind == "sequential":
            token_TD = params["embedding"][jnp.roll(targets_T, -m)]  # at offset m + 1; no target is where it wraps
            both_TI = [_norm(own["hidden_norm"], before_TD), _norm(own["embedding_norm"], token_TD)]
            start_TD = jnp.concatenate(both_TI, -1) @ own["projection"]
        before_TD, _ = _block(config, own, start_TD, segments_T, positions_T, True)
        modules[m + 2] = _norm(own["final_norm"], before_TD)
    return _norm(params["final_norm"], x_TD), modules, inside


def _block(config, layer, x_TD, segments_T, positions_T, uses_rope):
    weights, y_TD = layer["attention"], _norm(layer["attention_norm"], x_TD)
    q_TNH, k_TKH, v_TKH = (jnp.einsum("TD,DNH->TNH", y_TD, weights[name]) for name in ("query", "key", "value"))
    if uses_rope:
        q_TNH, k_TKH = (_rotate(config, a, positions_T) for a in (q_TNH, k_TKH))
    group = config.num_heads // config.num_kv_heads
    k_TNH, v_TNH = (jnp.repeat(a, group, 1) for a in (k_TKH, v_TKH))
    logits_NTT = jnp.einsum("TNH,SNH->NTS", q_TNH, k_TNH) / config.head_dim**0.5
    T = len(x_TD)
    visible_TT = (jnp.arange(T)[:, None] >= jnp.arange(T)) & (segments_T[:, None] == segments_T)
    probabilities_NTT = jax.nn.softmax(jnp.where(visible_TT, logits_NTT, -jnp.inf))
    x_TD = x_TD + jnp.einsum("NTS,SNH,NHD->TD", probabilities_NTT, v_TNH, weights["output"])
    y_TD, weights = _norm(layer["feed_forward_norm"], x_TD), layer["feed_forward"]
    x_TD = x_TD + (jax.nn.silu(y_TD @ weights["gate"]) * (y_TD @ weights["up"])) @ weights["down"]
    return x_TD, (q_TNH, k_TNH, v_TKH)


def _norm(group, x):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * group["scale"]


def _rotate(config, x_TNH, positions_T):
    half = config.head_dim // 2
    angle_TR = positions_T[:, None] / config.rope_theta ** (jnp.arange(half) / half)
    turn_T1R = jnp.exp(1j * angle_TR)[:, None]
    pair_TNR = (x_TNH[..., :half] + 1j * x_TNH[..., half:]) * turn_T1R
    return jnp.concatenate([pair_TNR.real, pair_TNR.imag], -1)
