"""What stands between the norm and the output projection of a block of modeling_isentrope.py, one class a kind of model.mixers, in its quadratic
form. It lies beside that file in a checkpoint, and imports nothing but torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, elu, normalize, relu, rms_norm, silu, softplus


def _heads(x: Tensor, size: int) -> Tensor:
    """[B, T, heads · size] → [B, heads, T, size]"""
    heads: Tensor = x.unflatten(-1, (-1, size)).transpose(1, 2)
    return heads


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x [B, heads, T, D] turned by angles of cosine, sine [B, 1, T, D / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


def _taylor2(x: Tensor) -> Tensor:
    """1, x_i / D^(1/4), x_i x_j / √D for i < j, x_i² / √(2 D): the product of two is 1 + s + s²/2, s = q·k / √D."""
    D = x.shape[-1]
    i, j = torch.triu_indices(D, D, device=x.device)
    factor = torch.where(i == j, 1 / math.sqrt(2 * D), 1 / math.sqrt(D)).to(x.dtype)
    return torch.cat([torch.ones_like(x[..., :1]), x / D**0.25, x[..., i] * x[..., j] * factor], -1)


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"elu_plus_one": lambda x: elu(x) + 1, "relu": torch.relu, "exp_normalized": lambda x: x.softmax(-1), "taylor2": _taylor2}
DENOMINATORS: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp, "softplus": softplus, "sigmoid": torch.sigmoid}


class Softmax(nn.Module):
    """softmax(q·k / (√D t)) over the keys in sight, rotary positions, grouped queries; docs/configuration.md, model.attention. Of kind
    softmax_rnn with another denominator, or a norm in its place, and gates."""

    def __init__(self, config: Any, layer: int, options: dict[str, Any]) -> None:
        super().__init__()
        C, H, G, D = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        qkv, own = config.attention_bias or config.qkv_bias, config.attention_bias
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(C, n * D, bias=qkv) for n in (H, G, G))
        self.o_proj = nn.Linear(H * D, C, bias=own)
        if config.qk_norm:
            self.q_norm, self.k_norm = (nn.RMSNorm(D, config.rms_norm_eps) for _ in range(2))
        if config.attention_temperature != "none":
            rows = config.max_position_embeddings if config.attention_temperature == "row" else 1
            self.log_temperature = nn.Parameter(torch.zeros(H * rows))
        types = getattr(config, "layer_types", None)
        self.window = config.sliding_window if types and types[layer] == "sliding_attention" else None
        self.softcap, self.D, self.H, self.eps, self.causal = config.attn_logit_softcapping, D, H, config.rms_norm_eps, config.causal
        self.norm = options.get("norm", "none")
        self.denominator = options.get("denominator", "sum") if self.norm == "none" else "sum"  # of which a norm makes the same
        if self.denominator in ("max_one", "count", "none"):
            self.softcap = options["clamp"]
        if self.norm in ("rms", "layer"):
            self.o_norm = nn.RMSNorm(D, config.rms_norm_eps)
        if options.get("value_gate"):
            self.value_gate_proj = nn.Linear(C, G, bias=False)
        if options.get("output_gate"):
            self.output_gate_proj = nn.Linear(C, H, bias=False)

    def _finished(self, out: Tensor, logits: Tensor, x: Tensor) -> Tensor:
        """What becomes of the rows [B, H, T, D] of softmax attention; logits are −∞ where a key is not seen."""
        Z, factor = logits.logsumexp(-1, keepdim=True), None  # of the denominator, its logarithm
        if self.denominator == "max_one":
            factor = Z.clamp_max(0)
        elif self.denominator == "count":
            factor = Z - logits.isfinite().sum(-1, keepdim=True).to(Z.dtype).log()
        elif self.denominator == "none":
            factor = Z
        elif self.denominator == "detached":
            factor = Z - Z.detach()
        if factor is not None:
            out = out * factor.exp()
        if self.norm == "layer":
            out = out - out.mean(-1, keepdim=True)
        if self.norm in ("rms", "layer"):
            out = rms_norm(out, (self.D,), self.o_norm.weight.to(out.dtype), self.eps)
        if self.norm == "l2":
            out = normalize(out, dim=-1)
        if hasattr(self, "output_gate_proj"):
            out = out * self.output_gate_proj(x).to(out.dtype).sigmoid().mT[..., None]
        return out

    def rows(self, x: Tensor, seen: Tensor, position: Tensor, cosine: Tensor, sine: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, H, T, T], −∞ where a key is not in sight, and the values of its heads [B, H, T, D]."""
        q, k, v = (_heads(p(x), self.D) for p in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = _rotated(q, cosine, sine), _rotated(k, cosine, sine)
        if hasattr(self, "value_gate_proj"):
            v = v * self.value_gate_proj(x).sigmoid().mT[..., None]
        k, v = (y.repeat_interleave(self.H // k.shape[1], 1) for y in (k, v))
        logits = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(self.D)
        if hasattr(self, "log_temperature"):
            log = self.log_temperature.view(self.H, -1)
            log = log[:, position].transpose(0, 1) if log.shape[1] > 1 else log[None]  # [B or 1, H, T or 1]
            logits = logits / log.to(logits.dtype).exp()[..., None]
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        back = position[:, :, None] - position[:, None, :]
        sight = (back >= 0) & (back < (self.window or back.shape[-1] + 1)) if self.causal else torch.ones_like(back, dtype=torch.bool)
        sight = sight & seen[:, None, :]
        sight = sight | torch.eye(len(sight[0]), dtype=torch.bool, device=x.device)  # a row of padding sees itself
        return logits.masked_fill(~sight[:, None], -torch.inf), v

    def forward(self, x: Tensor, *place: Tensor) -> Tensor:
        logits, v = self.rows(x, *place)
        rows = self._finished((logits.softmax(-1).to(v.dtype) @ v).to(logits.dtype), logits, x)
        out: Tensor = self.o_proj(rows.to(x.dtype).transpose(1, 2).flatten(-2))
        return out


class Routed(nn.Module):
    """Half of the heads see a window, the others tokens of their cluster, by centres of their queries: csrc/model/mixers/routed.h."""

    centroids: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        C, H, D, o = config.hidden_size, config.num_attention_heads, config.head_dim, config.routed
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(C, H * D, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(H * D, C, bias=False)
        self.near, self.D, self.o = H - H // 2, D, o
        self.register_buffer("centroids", torch.zeros(H // 2, o["clusters"], D))

    def rows(self, x: Tensor, seen: Tensor, position: Tensor, cosine: Tensor, sine: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, H, T, T], −∞ where a key is not in sight, and the values of the heads [B, H, T, D]. Of balanced clusters the logarithms of
        the weights' mean over those that have the token; a row of −∞ where none has."""
        near, T = self.near, x.shape[1]
        q, k, v = (_heads(p(x), self.D) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = torch.nn.functional.normalize(q[:, near:].float() if q.dtype != torch.float64 else q[:, near:], dim=-1)
        scores = scores @ self.centroids.to(scores.dtype).mT  # [B, routed heads, T, clusters]
        q, k = (torch.cat([_rotated(y[:, :near], cosine, sine), y[:, near:]], 1) for y in (q, k))
        logits = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(self.D)
        back = position[:, :, None] - position[:, None, :]
        there = (back >= 0) & seen[:, None, :]
        there = there | torch.eye(T, dtype=torch.bool, device=x.device)  # a row of padding sees itself
        local = (there & (back < self.o["local_window"]))[:, None].expand(-1, near, -1, -1)
        if self.o["assign"] == "argmax":
            cluster = scores.argmax(-1)
            alike = (cluster[..., :, None] == cluster[..., None, :]) & there[:, None]
            alike &= alike.flip(-1).cumsum(-1).flip(-1) <= self.o["window"]
            return logits.masked_fill(~torch.cat([local, alike], 1), -torch.inf), v
        scores = scores.masked_fill(~seen[:, None, :, None], -torch.inf)
        taken = torch.zeros_like(scores, dtype=torch.bool).scatter(2, scores.topk(min(self.o["window"], T), 2).indices, True) & seen[:, None, :, None]
        weights = torch.zeros_like(logits[:, near:])
        for own in taken.unbind(-1):  # [B, routed heads, T]
            sight = own[..., :, None] & own[..., None, :] & there[:, None]
            weights += logits[:, near:].masked_fill(~sight, -torch.inf).softmax(-1).nan_to_num(0)
        weights = weights / taken.sum(-1).clamp_min(1)[..., None]
        return torch.cat([logits[:, :near].masked_fill(~local, -torch.inf), weights.log()], 1), v

    def forward(self, x: Tensor, *place: Tensor) -> Tensor:
        logits, v = self.rows(x, *place)
        rows = logits.softmax(-1).nan_to_num(0).to(v.dtype) @ v
        out: Tensor = self.o_proj(rows.to(x.dtype).transpose(1, 2).flatten(-2))
        return out


class Estimated(nn.Module):
    """Softmax attention over tokens that an estimate of it holds for the largest, and the mean of the values: csrc/model/mixers/estimated.h."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        C, H, G, D, o, eps = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.estimated, config.rms_norm_eps
        self.q_proj, self.k_proj, self.v_proj, self.estimate_q_proj, self.estimate_k_proj = (nn.Linear(C, n * D, bias=False) for n in (H, G, G, H, G))
        self.o_proj, self.o_norm = nn.Linear(H * D, C, bias=False), nn.RMSNorm(D, eps)
        self.estimator = nn.ModuleDict({"in_proj": nn.Linear(4 * D, 2 * D, bias=False), "norm": nn.RMSNorm(2 * D, eps), "columns": nn.Linear(2 * D, o["columns"]),
                                        "conv": nn.Conv1d(H, H, 3, padding=1, bias=False), "gate": nn.Linear(2 * D, 2)})  # fmt: skip
        self.map, self.columns, self.keep, self.H, self.D = FEATURE_MAPS[o["feature_map"]], o["columns"], o["keep"], H, D

    def estimated(self, x: Tensor, there: Tensor, position: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log of the estimate [B, H, T, M], the cell of each token for each row [B, T, T], gates [B, H, T, 2]; there [B, T, T]: tokens in sight."""
        H, M = self.H, self.columns
        a, b, v = (_heads(p(x), self.D) for p in (self.estimate_q_proj, self.estimate_k_proj, self.v_proj))
        a, b, v = self.map(a), self.map(b).repeat_interleave(H // b.shape[1], 1), v.repeat_interleave(H // v.shape[1], 1)
        code = torch.cat([cosine, sine], -1).to(v.dtype).expand(len(x), H, -1, -1)
        weights = (a @ b.mT) * there[:, None]
        found = (weights @ torch.cat([v, code], -1)) / weights.sum(-1, keepdim=True)
        c, s = cosine.to(v.dtype), sine.to(v.dtype)
        value, p, r = found.split([self.D, self.D // 2, self.D // 2], -1)
        z = nn.functional.gelu(self.estimator["norm"](self.estimator["in_proj"](torch.cat([value, c * p + s * r, s * p - c * r, v, code], -1))))
        rows = self.estimator["columns"](z).transpose(1, 2)  # [B, T, H, M]
        rows = rows + self.estimator["conv"](rows.flatten(0, 1)).view_as(rows)
        count = position[..., None] + 1
        begin = (torch.arange(M + 1, device=x.device) * count + M - 1) // M  # [B, T, M + 1]
        rows = rows.masked_fill((begin[..., :-1] == begin[..., 1:])[:, :, None], -torch.inf).transpose(1, 2)
        return rows.log_softmax(-1), (position[:, None, :] * M // count).clamp(0, M - 1), self.estimator["gate"](z).sigmoid()

    def rows(self, x: Tensor, seen: Tensor, position: Tensor, cosine: Tensor, sine: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, H, T, T], −∞ where a key is not chosen, and the values of the heads [B, H, T, D]."""
        logits, v, _gates, _there = self._rows(x, seen, position, cosine, sine)
        return logits, v

    def _rows(self, x: Tensor, seen: Tensor, position: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        there = (position[:, :, None] >= position[:, None, :]) & seen[:, None, :] | itself  # a row of padding sees itself
        log, cell, gates = self.estimated(x, there, position, cosine, sine)
        count = position + 1
        wanted = ((2 * self.keep * self.columns + count) // (2 * count)).clamp_min(1) * self.H  # [B, T]
        order = log.transpose(1, 2).flatten(-2).argsort(dim=-1, descending=True, stable=True)
        taken = (order.argsort(-1) < wanted[..., None]).unflatten(-1, (self.H, self.columns)).transpose(1, 2)
        sight = there[:, None] & (taken.gather(-1, cell[:, None].expand(-1, self.H, -1, -1)) | itself)
        q, k, v = (_heads(p(x), self.D) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _rotated(q, cosine, sine), _rotated(k, cosine, sine)
        k, v = (y.repeat_interleave(self.H // k.shape[1], 1) for y in (k, v))
        logits = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(self.D)
        return logits.masked_fill(~sight, -torch.inf), v, gates, there

    def forward(self, x: Tensor, seen: Tensor, position: Tensor, cosine: Tensor, sine: Tensor, *_: Tensor) -> Tensor:
        logits, v, gates, there = self._rows(x, seen, position, cosine, sine)
        mean = there.to(v.dtype) @ v.transpose(0, 1) / there.sum(-1, keepdim=True)
        f, g = gates[..., :1], gates[..., 1:]
        rows = g * f * (logits.softmax(-1).to(v.dtype) @ v) + (1 - g) * mean.transpose(0, 1)
        rows = rows + self.o_norm(rows)
        out: Tensor = self.o_proj(rows.to(x.dtype).transpose(1, 2).flatten(-2))
        return out


class Hierarchical(Softmax):
    """Softmax attention tied in blocks by a tree: of families of `branching` neighbours, and of as many families (arXiv 2509.15448)."""

    def __init__(self, config: Any, layer: int, options: dict[str, Any]) -> None:
        super().__init__(config, layer, {})
        self.branching: int = options["branching"]

    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        """The weights [B, H, T, T] that are nearest to the softmax of logits; seen [B, T]: padding behind each sequence is False."""
        T, b = logits.shape[-1], self.branching
        node = torch.arange(T, device=logits.device)  # of a level that each token is of
        real = seen.to(logits.dtype)
        self_logit, levels = logits.diagonal(0, -2, -1), []
        while True:
            of = (node[:, None] == torch.arange(int(node[-1]) + 1, device=node.device)).to(logits.dtype)  # [T, nodes]
            mean = of * real[..., None] / (count := real @ of).clamp_min(1)[:, None]  # [B, T, nodes]; count [B, nodes]
            pooled = mean.mT[:, None] @ logits @ mean[:, None]  # [B, H, nodes, nodes]
            family, own = torch.arange(of.shape[1], device=node.device) // b, torch.eye(of.shape[1], dtype=torch.bool, device=node.device)
            rows = pooled + count.log()[:, None, None]
            rows = torch.where(own, self_logit[..., None], rows).masked_fill(family[:, None] != family, -torch.inf)
            total = rows.logsumexp(-1)
            levels.append((of, (rows - total[..., None]).exp(), own, count))
            if family[-1] == 0:
                break
            above = (family[:, None] == torch.arange(int(family[-1]) + 1, device=node.device)).to(logits.dtype)
            sums = count @ above
            self_logit = ((count[:, None] * total) @ above) / sums.clamp_min(1)[:, None]
            node = family[node]
        theta, mass = torch.zeros_like(logits), torch.ones_like(logits[..., :1])  # mass: what of a row is left for its own node
        for i, (of, share, own, count) in reversed(list(enumerate(levels))):
            each = (share if i == 0 else share.masked_fill(own, 0)) / count.clamp_min(1)[:, None, None]
            theta = theta + mass * (of @ each @ of.mT)
            mass = mass * (of @ share.diagonal(0, -2, -1)[..., None])
        return theta * real[:, None, None, :] * real[:, None, :, None]

    def forward(self, x: Tensor, seen: Tensor, position: Tensor, *angles: Tensor) -> Tensor:
        order = (~seen).to(torch.uint8).argsort(dim=-1, stable=True)  # padding behind, so that it moves no family
        back = order.argsort(-1)
        x, seen, position = x.gather(1, order[..., None].expand_as(x)), seen.gather(1, order), position.gather(1, order)
        cosine, sine = (angle.expand(len(x), -1, -1, -1).gather(2, order[:, None, :, None].expand(-1, -1, -1, angle.shape[-1])) for angle in angles[:2])
        logits, v = self.rows(x, torch.ones_like(seen), position, cosine, sine)
        result: Tensor = self.o_proj((self.weights(logits, seen).to(v.dtype) @ v).to(x.dtype).transpose(1, 2).flatten(-2))
        return result.gather(1, back[..., None].expand_as(result))


class Decay(nn.Module):
    """The weights of a decay that the token sets: exp(−exp(A_log) · softplus(proj(x) + dt_bias))."""

    def __init__(self, C: int, states: int) -> None:
        super().__init__()
        self.proj = nn.Linear(C, states, bias=False)
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(states)), nn.Parameter(torch.zeros(states))


class Recurrence(nn.Module):
    """S_t = a_t S_{t−1} + φ(k_t) u_tᵀ, out_t = S_tᵀ φ(q_t), for all t at once: out = (φ(q) φ(k)ᵀ ∘ Γ) u, Γ_ts = a_{s+1} … a_t for s ≤ t.
    The kinds and their u: csrc/model/mixers/recurrence.h."""

    def __init__(self, config: Any, kind: str) -> None:
        super().__init__()
        C, H, G, D = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        o = getattr(config, kind)
        delta, steps = kind == "gated_delta", kind == "ssd"
        grouped = delta or steps  # queries are shared by heads of the values, else keys and values by heads of the queries
        self.kind, self.size, self.E = kind, D, D * o["expand_v"] if grouped else D
        self.queries, self.keys, self.values = (G, G, H) if grouped else (H, G, G)
        states, self.heads = max(self.keys, self.values), H
        self.q_proj, self.k_proj = (nn.Linear(C, n * D, bias=False) for n in (self.queries, self.keys))
        self.v_proj, self.o_proj = nn.Linear(C, self.values * self.E, bias=False), nn.Linear(H * self.E, C, bias=False)
        self.prefix = kind == "prefix_linear"
        if self.prefix:
            self.prefix_k_proj, self.prefix_v_proj = nn.Linear(C, G * D, bias=False), nn.Linear(C, G * D, bias=False)
        self.feature_map, self.normalizer = o.get("feature_map"), o.get("normalizer", self.prefix)
        self.denominator = o.get("denominator") if o.get("denominator") != "rms" else None
        self.most_beta = 2 if o.get("allow_negative") else 1
        if self.denominator:
            self.n_proj = nn.Linear(C, H, bias=False)
        if o["conv_size"] > 1:
            channels = (self.queries + self.keys) * D + self.values * self.E + 2 * G * D * self.prefix
            self.conv = nn.Conv1d(channels, channels, o["conv_size"], groups=channels, bias=False)
        if grouped or o.get("decay") == "token":
            self.decay = Decay(C, states)
        if o.get("decay") == "head":
            self.head_decay = nn.Parameter(torch.zeros(states))
        if grouped:
            self.g_proj = nn.Linear(C, H * self.E, bias=False)
        if delta:
            self.b_proj = nn.Linear(C, states, bias=False)
        if steps:
            self.D = nn.Parameter(torch.ones(states))
        self.o_norm = nn.RMSNorm(self.E, config.rms_norm_eps) if grouped or o.get("denominator") == "rms" else None

    def rows(self, x: Tensor, seen: Tensor, *place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """φ(q), φ(k) [B, H, T, F] and what they write, u [B, H, T, E]; Γ [B or 1, H or 1, T, T]; the values v [B, values, T, E]. Of a layer that
        reads a prefix, place[3] [B, T], T keys and writes more, before the others: those of its tokens, which every row sees."""
        wide, there = torch.promote_types(x.dtype, torch.float32), seen[:, None, :, None]
        sizes = [self.queries * self.size, self.keys * self.size, self.values * self.E]
        projections = [self.q_proj, self.k_proj, self.v_proj]
        if self.prefix:
            sizes, projections = sizes + sizes[1:], [*projections, self.prefix_k_proj, self.prefix_v_proj]
        inputs = torch.cat([p(x) for p in projections], -1) * seen[..., None]
        if hasattr(self, "conv"):
            weight = self.conv.weight
            inputs = silu(conv1d(nn.functional.pad(inputs.mT, (weight.shape[-1] - 1, 0)), weight, groups=len(weight)).mT)
        q, k, v, *early = (_heads(y, d) for y, d in zip(inputs.split(sizes, -1), (self.size, self.size, self.E, self.size, self.E)))
        if self.feature_map:
            q, k = FEATURE_MAPS[self.feature_map](q), FEATURE_MAPS[self.feature_map](k)
        if self.kind == "gated_delta":
            q, k = normalize(q, dim=-1), normalize(k, dim=-1)
        if self.kind in ("gated_delta", "normalized"):
            q = q / math.sqrt(self.size)
        k, u = k * there, v
        q, k, u = (y.repeat_interleave(self.heads // y.shape[1], 1).to(wide) for y in (q, k, u))
        log_decay = None
        if hasattr(self, "decay"):
            step = softplus(self.decay.proj(x).to(wide) + self.decay.dt_bias.to(wide)).mT  # [B, states, T]
            log_decay = -self.decay.A_log.to(wide).exp()[:, None] * step
            if self.kind == "ssd":
                u = u * step[..., None]
        if hasattr(self, "head_decay"):
            log_decay = -softplus(self.head_decay.to(wide))[:, None].expand(-1, x.shape[1])[None]
        between = torch.zeros(1, 1, x.shape[1], x.shape[1], dtype=wide, device=x.device)
        if log_decay is not None:
            sums = log_decay.repeat_interleave(self.heads // log_decay.shape[1], 1).cumsum(-1)
            between = sums[..., :, None] - sums[..., None, :]
        decay = between.tril().exp().tril()
        if self.prefix:
            e = FEATURE_MAPS[self.feature_map](early[0]) * place[3][:, None, :, None]
            e, w = (y.repeat_interleave(self.heads // y.shape[1], 1).to(wide) for y in (e, early[1]))
            k, u, decay = torch.cat([e, k], 2), torch.cat([w, u], 2), torch.cat([torch.ones_like(decay), decay], -1)
        if self.kind == "gated_delta":  # U = (I + tril(β K Kᵀ ∘ Γ, −1))⁻¹ β V
            beta = (self.most_beta * self.b_proj(x).to(wide).sigmoid()).mT[..., None]
            u = torch.linalg.solve_triangular((beta * (k @ k.mT) * decay).tril(-1), beta * u, upper=False, unitriangular=True)
        return q, k, u, decay, v

    def forward(self, x: Tensor, *place: Tensor) -> Tensor:
        q, k, u, decay, v = self.rows(x, *place)
        weights = (q @ k.mT) * decay
        out = weights @ u
        if self.normalizer:
            total = weights.sum(-1, keepdim=True)
            out = out / torch.where(total == 0, 1, total)
        if self.denominator:
            out = out / DENOMINATORS[self.denominator](self.n_proj(x).to(out.dtype)).mT[..., None]
        gate = silu(_heads(self.g_proj(x), self.E)) if hasattr(self, "g_proj") else 1
        if self.kind == "ssd":
            out = (out + v * self.D[:, None, None]) * gate
        if self.o_norm is not None:
            out = rms_norm(out, (self.E,), self.o_norm.weight.to(out.dtype), self.o_norm.eps)
        if self.kind != "ssd":
            out = out * gate
        result: Tensor = self.o_proj(out.to(x.dtype).transpose(1, 2).flatten(-2))
        return result


class Natsl(nn.Module):
    """Softmax attention and the gated delta rule on the same queries, keys and values, between which a router shares out chunks of tokens:
    csrc/model/mixers/natsl.h."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        C, H, D, o, eps = config.hidden_size, config.num_attention_heads, config.head_dim, config.natsl, config.rms_norm_eps
        self.H, self.D, self.chunk, self.beta = H, D, o["chunk"], 2 if o["allow_negative"] else 1
        self.q_proj, self.k_proj, self.v_proj, self.g_proj = (nn.Linear(C, H * D, bias=False) for _ in range(4))
        self.b_proj, self.decay, self.route_proj = nn.Linear(C, H, bias=False), Decay(C, H), nn.Linear(C, 2 * H)
        self.blend, self.o_proj = nn.Linear(D, 2, bias=False), nn.Linear(H * D, C, bias=False)
        self.q_norm, self.k_norm, self.soft_norm, self.linear_norm, self.o_norm = (nn.RMSNorm(D, eps) for _ in range(5))
        if o["conv_size"] > 1:
            self.conv = nn.Conv1d(3 * H * D, 3 * H * D, o["conv_size"], groups=3 * H * D, bias=False)

    def _heads(self, x: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        """q, k, v [B, H, T, D] behind the convolution."""
        inputs = torch.cat([p(x) for p in (self.q_proj, self.k_proj, self.v_proj)], -1) * seen[..., None]
        if hasattr(self, "conv"):
            weight = self.conv.weight
            inputs = silu(conv1d(nn.functional.pad(inputs.mT, (weight.shape[-1] - 1, 0)), weight, groups=len(weight)).mT)
        return tuple(_heads(y, self.D) for y in inputs.chunk(3, -1))

    def sight(self, x: Tensor, seen: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, T, T] bool: the keys that a row sees by softmax attention, and those whose writes it finds in the state."""
        chunk = position // self.chunk
        of = (chunk[..., None] == torch.arange(int(chunk.max()) + 1, device=x.device)) & seen[..., None]  # [B, T, chunks]
        route = self.route_proj(x).to(torch.promote_types(x.dtype, torch.float32))
        mean = (of.to(route.dtype).mT @ route / self.chunk).gather(1, chunk[..., None].expand_as(route))  # of a chunk that has ended
        logits = mean.unflatten(-1, (self.H, 2)).movedim(2, 1)  # [B, H, T, 2], of the chunk of each token
        soft = (logits[..., 0] >= logits[..., 1])[..., None, :]
        there = (position[:, :, None] >= position[:, None, :]) & seen[:, None, :]
        there = (there | torch.eye(x.shape[1], dtype=torch.bool, device=x.device))[:, None]  # a row of padding sees itself
        own = (chunk[:, :, None] == chunk[:, None, :])[:, None]
        return there & (own | soft), there & (own | ~soft)

    def rows(self, x: Tensor, seen: Tensor, position: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, H, T, T] of softmax attention, −∞ where a key is not in sight, and the values of the heads [B, H, T, D]."""
        q, k, v = self._heads(x, seen)
        logits = (self.q_norm(q) @ self.k_norm(k).mT).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(self.D)
        return logits.masked_fill(~self.sight(x, seen, position)[0], -torch.inf), v

    def written(self, x: Tensor, seen: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the delta rule q, k and what they write, u [B, H, T, D], and what of each write a row finds, [B, H, T, T]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k, v = (y.to(wide) for y in self._heads(x, seen))
        q, k = normalize(q, dim=-1) / math.sqrt(self.D), normalize(k, dim=-1) * seen[:, None, :, None]
        step = softplus(self.decay.proj(x).to(wide) + self.decay.dt_bias.to(wide)).mT
        sums = (-self.decay.A_log.to(wide).exp()[:, None] * step).cumsum(-1)
        left = (sums[..., :, None] - sums[..., None, :]).tril().exp() * self.sight(x, seen, position)[1]
        beta = (self.beta * self.b_proj(x).to(wide).sigmoid()).mT[..., None]
        u = torch.linalg.solve_triangular((beta * (k @ k.mT) * left).tril(-1), beta * v, upper=False, unitriangular=True)
        return q, k, u, left

    def forward(self, x: Tensor, seen: Tensor, position: Tensor, *_: Tensor) -> Tensor:
        logits, v = self.rows(x, seen, position)
        q, k, u, left = self.written(x, seen, position)
        soft, linear = logits.softmax(-1).to(u.dtype) @ v.to(u.dtype), ((q @ k.mT) * left) @ u
        w = nn.functional.linear(self._heads(x, seen)[0].to(u.dtype), self.blend.weight.to(u.dtype)).softmax(-1)
        norms = (rms_norm(y, (self.D,), n.weight.to(u.dtype), n.eps) for y, n in ((soft, self.soft_norm), (linear, self.linear_norm)))
        out = sum(w[..., i : i + 1] * y for i, y in enumerate(norms))
        out = rms_norm(out, (self.D,), self.o_norm.weight.to(u.dtype), self.o_norm.eps) * silu(_heads(self.g_proj(x), self.D))
        result: Tensor = self.o_proj(out.to(x.dtype).transpose(1, 2).flatten(-2))
        return result
