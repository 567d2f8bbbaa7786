"""Modules over the ops: EntropyAttention, and what turns its entropy into a share of the largest one possible; SigmaLinear and
SigmaConv2d, and what puts them into a model and takes them out again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isentrope import ops
from isentrope.ops import entropy_attention, sigma_linear

__all__ = [
    "EntropyAttention",
    "LayerStep",
    "SigmaConv2d",
    "SigmaLinear",
    "convert_to_sigma",
    "fold",
    "normalized_entropy",
    "power_step",
    "visible_keys",
]


class EntropyAttention(nn.Module):
    """Multi-head self-attention that can return the entropy of its rows and be trained on it.

    With W_q, W_k, W_v, W_o the four projections, head h reading key head h // (heads // kv_heads), natural logarithms::

        s_tj = softcap · tanh(q_t·k_j / (√D · softcap)) / temperature        p_t = softmax(s_t) over the keys that t sees
        out_t = W_o concat_h Σ_j p_tj v_j                                    entropy_t = -Σ_j p_tj log p_tj   (nats)

    The parameters have the names of Hugging Face's Llama and Qwen3 (q_proj, k_proj, v_proj, o_proj, q_norm, k_norm), so that
    their attention weights load as they are.

    Args:
        width: C, of the input and the output.
        heads: H query heads.
        kv_heads: G key/value heads, a divisor of heads; heads by default.
        head_size: D, a multiple of 8 up to 256; width / heads by default.
        bias: of all four projections.
        causal: position t sees positions up to t.
        window: causal only; position t sees itself and the window - 1 positions before it.
        softcap: above 0.
        qk_norm: RMSNorm over D of each query and key, with a learned weight, before the rotation (Qwen3).
        rope_base: rotates pairs (i, i + D/2) of queries and keys by position · rope_base^(-2i/D), as Llama does; None: not at all.
        temperature: "head": a learned temperature a head; "row": one a head and position (Entropy-guided attention,
            arXiv 2501.03489), which needs `context`, the most positions there will be. What is learned is its logarithm,
            log_temperature [H] or [H, context], from 0. None: 1.
        watch: after each forward last_entropy and last_max_logit hold those of the op, without gradient.

    Raises:
        ValueError: an option that is not as above; the message names it.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        head_size: int | None = None,
        *,
        bias: bool = False,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        qk_norm: bool = False,
        rope_base: float | None = None,
        temperature: str | None = None,
        context: int | None = None,
        watch: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"heads is {heads} and kv_heads is {kv_heads}; wanted heads a multiple of kv_heads")
        if head_size is None:
            if width % heads:
                raise ValueError(f"width is {width} and heads is {heads}; wanted a multiple of heads, or head_size given")
            head_size = width // heads
        if head_size % 8 or not 8 <= head_size <= 256:
            raise ValueError(f"head_size is {head_size}; wanted a multiple of 8 up to 256")
        if window is not None and (window < 1 or not causal):
            raise ValueError(f"window is {window} and causal is {causal}; wanted a window of at least 1 on causal attention, or None")
        if softcap is not None and softcap <= 0:
            raise ValueError(f"softcap is {softcap}; wanted above 0, or None")
        if temperature not in (None, "head", "row"):
            raise ValueError(f"temperature is {temperature!r}; wanted None, 'head' or 'row'")
        if (temperature == "row") != (context is not None):
            raise ValueError(f"temperature is {temperature!r} and context is {context}; 'row', and 'row' alone, needs a context")
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size
        self.causal, self.window, self.softcap, self.rope_base, self.watch = causal, window, softcap, rope_base, watch
        made = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(width, heads * head_size, bias, **made)
        self.k_proj = nn.Linear(width, kv_heads * head_size, bias, **made)
        self.v_proj = nn.Linear(width, kv_heads * head_size, bias, **made)
        self.o_proj = nn.Linear(heads * head_size, width, bias, **made)
        self.q_norm = nn.RMSNorm(head_size, eps=1e-6, **made) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_size, eps=1e-6, **made) if qk_norm else nn.Identity()
        shape = {None: None, "head": (heads,), "row": (heads, context)}[temperature]
        self.log_temperature = None if shape is None else nn.Parameter(torch.zeros(shape, **made))
        self.last_entropy: Tensor | None = None
        self.last_max_logit: Tensor | None = None

    def forward(
        self,
        x: Tensor,
        *,
        key_lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_entropy: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of x over itself.

        Args:
            x: [B, T, C]; [total, C] with cu_seqlens.
            key_lengths: [B] integers from 0 to T; positions at and after it are padding that no position sees. (What comes out
                at the padding itself is of no meaning.)
            cu_seqlens: [sequences + 1] integers, 0 first, then where each sequence ends; each attends to itself alone, and its
                positions count from 0.
            return_entropy: also return the entropy, with gradient.

        Returns:
            out like x, or (out, entropy [B, H, T] in nats, float32 or float64; [total, H] with cu_seqlens).

        Raises:
            ValueError: x has more positions than context, or not 3 dimensions (2 with cu_seqlens).
        """
        dims = 3 if cu_seqlens is None else 2
        if x.dim() != dims:
            raise ValueError(f"x has shape {list(x.shape)}; wanted [B, T, C], or [total, C] with cu_seqlens")
        # One token a row of [.., H, D]; the op takes it as it lies.
        q, k, v = (p(x).unflatten(-1, (-1, self.head_size)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)
        position = _positions(x.shape[-2], x.device, cu_seqlens)  # [T]
        if self.rope_base is not None:
            q, k = _rotate(q, position, self.rope_base), _rotate(k, position, self.rope_base)
        if cu_seqlens is None:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        wants = return_entropy or self.watch
        out, _, entropy, max_logit = entropy_attention(
            q,
            k,
            v,
            causal=self.causal,
            window=self.window,
            softcap=self.softcap,
            temperature=self._temperature(position, q.dtype, packed=cu_seqlens is not None),
            key_lengths=key_lengths,
            cu_seqlens=cu_seqlens,
            return_entropy=wants,
        )
        if self.watch:
            self.last_entropy, self.last_max_logit = entropy.detach(), max_logit.detach()
        if cu_seqlens is None:
            out = out.transpose(1, 2)
        out = self.o_proj(out.flatten(-2))
        return (out, entropy) if return_entropy else out

    def _temperature(self, position: Tensor, dtype: torch.dtype, packed: bool) -> Tensor | None:
        if self.log_temperature is None:
            return None
        log_t = self.log_temperature
        if log_t.dim() == 2:
            context = log_t.shape[1]
            if packed:
                log_t = log_t[:, position]  # a sequence beyond context is an index error
            elif position.shape[0] > context:
                raise ValueError(f"x has {position.shape[0]} positions; wanted at most context, which is {context}")
            else:
                log_t = log_t[:, : position.shape[0]]
        return log_t.to(torch.promote_types(dtype, torch.float32)).exp()

    def extra_repr(self) -> str:
        shown = ("heads", "kv_heads", "head_size", "causal", "window", "softcap", "rope_base")
        return ", ".join(f"{name}={value}" for name in shown if (value := getattr(self, name)) is not None)


def visible_keys(
    queries: int,
    keys: int,
    *,
    causal: bool,
    window: int | None = None,
    key_lengths: Tensor | None = None,
    query_start: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """n, the number of keys that each row of entropy_attention sees, by the meaning its options have there.

    Args:
        queries, keys: T and S; both the total with cu_seqlens.
        device: of the result where no tensor is given.

    Returns:
        int64 [B, T]; [1, T] where neither key_lengths nor query_start is given; [total] with cu_seqlens.
    """
    given = [x for x in (key_lengths, query_start, cu_seqlens) if x is not None]
    device = given[0].device if given else device
    if cu_seqlens is not None:
        place = _positions(queries, device, cu_seqlens)
        end = place + 1 if causal else (cu_seqlens[1:] - cu_seqlens[:-1]).long()[_sequences(queries, cu_seqlens)]
    else:
        start = torch.full((1,), keys - queries, device=device) if query_start is None else query_start.long()
        place = start[:, None] + torch.arange(queries, device=device)  # [B, T]
        end = torch.full_like(place, keys) if key_lengths is None else key_lengths.long()[:, None].expand(-1, queries)
        end = torch.minimum(end, place + 1) if causal else end + 0 * place
    first = torch.zeros_like(place) if window is None else (place - window + 1).clamp(min=0)
    return (end - first).clamp(min=0)


def normalized_entropy(entropy: Tensor, keys: Tensor) -> Tensor:
    """H / log n: 0 where a row looks at one key alone, 1 where at all n alike.

    Args:
        entropy: [B, H, T] nats, or [total, H].
        keys: [B, T] or [1, T], or [total]: n of visible_keys. Rows with fewer than two keys give 0; leave them out of a mean.

    Returns:
        Like entropy, with its gradient.
    """
    n = keys.unsqueeze(1 if entropy.dim() == 3 else -1)
    most = n.clamp(min=2).to(entropy.dtype).log()
    return torch.where(n > 1, entropy / most, 0)


def _sequences(total: int, cu_seqlens: Tensor) -> Tensor:
    """[total]: the sequence that each row belongs to."""
    return torch.searchsorted(cu_seqlens, torch.arange(total, device=cu_seqlens.device, dtype=cu_seqlens.dtype), right=True) - 1


def _positions(rows: int, device: torch.device | str | None, cu_seqlens: Tensor | None) -> Tensor:
    """[rows]: where each row stands in its sequence, from 0."""
    index = torch.arange(rows, device=device)
    return index if cu_seqlens is None else index - cu_seqlens[_sequences(rows, cu_seqlens)]


def _rotate(x: Tensor, position: Tensor, base: float) -> Tensor:
    """x [..., T, heads, D], position [T] → x with its pairs (i, i + D/2) turned by position · base^(-2i/D)."""
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (torch.arange(half, device=x.device, dtype=wide) / -half)
    angle = (position.to(wide)[:, None] * frequency)[:, None]  # [T, 1, D/2]
    a, b = x.to(wide).split(half, dim=-1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), dim=-1).to(x.dtype)


# ---- sigmaReparam ----------------------------------------------------------------------------------------------------

# Matrices whose smaller side is above this get u by power steps: the SVD of 512 takes some tenths of a second, eight times
# that for twice the size.
_SVD_SIZE = 512
# Steps of such a start: σ of Gaussian and uniform matrices of 600 to 3072 was too low by at most 7e-5 after them, of square ones
# too (after 50: by up to 7e-3).
_START_STEPS = 200


class _Sigma:
    """What SigmaLinear and SigmaConv2d share: weight [out, ...], taken as the matrix [out, the rest], with gain γ and buffer u."""

    weight: Tensor

    def _start(self, gamma_init: str, sigma_grad: str) -> None:
        if gamma_init not in ("one", "sigma"):
            raise ValueError(f"gamma_init is {gamma_init!r}; wanted 'one' or 'sigma'")
        if sigma_grad not in ("through", "detached"):
            raise ValueError(f"sigma_grad is {sigma_grad!r}; wanted 'through' or 'detached'")
        self.sigma_grad = sigma_grad
        W = self.weight.detach().flatten(1)
        wide = torch.promote_types(W.dtype, torch.float32)
        # Not called gamma: some loaders of checkpoints rename a parameter of that name to weight.
        self.gain = nn.Parameter(torch.ones((), device=W.device, dtype=wide), requires_grad=self.weight.requires_grad)
        self.register_buffer("u", _first_direction(W.to(wide)))
        if gamma_init == "sigma" and not W.is_meta:
            self.gain.data.copy_(self.sigma())

    def sigma(self) -> Tensor:
        """σ = ‖W u‖, [], with gradient unless sigma_grad is detached."""
        W = self.weight.flatten(1)
        return sigma_linear(W.new_empty(0, W.shape[1]), W, self.gain.detach(), self.u, sigma_grad=self.sigma_grad).sigma

    def scaled_weight(self) -> Tensor:
        """(γ/σ) · W like weight, with gradient; 0 where σ is 0."""
        sigma = self.sigma()
        return (self.gain / sigma.masked_fill(sigma == 0, torch.inf) * self.weight.to(sigma.dtype)).to(self.weight.dtype)


class SigmaLinear(_Sigma, nn.Linear):
    """nn.Linear with y = (γ/σ) · x Wᵀ + b, where σ = ‖W u‖ and u is near the first right singular vector of W (sigmaReparam).

    Forward does not change u. Call isentrope.nn.power_step(model) once after each optimiser step, and give `gain` (γ) no weight
    decay. u starts as the singular vector of the weight that the constructor draws; give other weights by convert_to_sigma, or
    let power_step follow.

    Args:
        in_features, out_features, bias, device, dtype: as of nn.Linear.
        gamma_init: γ at the start: "one", or "sigma", for which the layer starts as the nn.Linear of its weight.
        sigma_grad: "through" or "detached", as of isentrope.sigma_linear.

    Attributes:
        weight [out, in], bias [out], gain [] (parameters), u [in] (a buffer, in the state_dict). gain and u are float32 (float64
        for a float64 weight): cast the model first and convert it then, for .bfloat16() rounds them too.

    Raises:
        ValueError: an option that is not as above, or a weight that is not finite.

    Source: arXiv 2303.06296.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        gamma_init: str = "one",
        sigma_grad: str = "through",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._start(gamma_init, sigma_grad)

    def forward(self, x: Tensor) -> Tensor:
        return sigma_linear(x, self.weight, self.gain, self.u, self.bias, sigma_grad=self.sigma_grad).y


class SigmaConv2d(_Sigma, nn.Conv2d):
    """nn.Conv2d whose weight is (γ/σ) · W; σ is that of the matrix [out, in / groups · kernel], not of the convolution operator.

    Here the scaled weight is made: it is small beside the activations of a convolution. Else as SigmaLinear.

    Args:
        in_channels, out_channels, kernel_size, and options: as of nn.Conv2d.
        gamma_init, sigma_grad: as of SigmaLinear.
    """

    def __init__(self, *args, gamma_init: str = "one", sigma_grad: str = "through", **options) -> None:
        super().__init__(*args, **options)
        self._start(gamma_init, sigma_grad)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.scaled_weight(), self.bias)


class LayerStep(NamedTuple):
    """What power_step says of one layer."""

    sigma: Tensor
    steps: Tensor


@torch.no_grad()
def power_step(module: nn.Module, *, steps_max: int = 20, tolerance: float = 1e-4) -> dict[str, LayerStep]:
    """Moves u of all SigmaLinear and SigmaConv2d in module at once; call it after each optimiser step.

    Args:
        steps_max, tolerance: as of isentrope.power_step.

    Returns:
        {name of the layer: (sigma [], steps [] int32)}, on its device. No host synchronisation.
    """
    groups = defaultdict(list)  # one call for the layers of a dtype and device
    for name, layer in module.named_modules():
        if isinstance(layer, _Sigma):
            groups[layer.weight.dtype, layer.weight.device].append((name, layer))
    found = {}
    for layers in groups.values():
        step = ops.power_step(
            [layer.weight.detach().flatten(1) for _, layer in layers],
            [layer.u for _, layer in layers],
            steps_max=steps_max,
            tolerance=tolerance,
        )
        found.update({name: LayerStep(*values) for (name, _), *values in zip(layers, step.sigmas, step.steps)})
    return found


def convert_to_sigma(
    module: nn.Module,
    *,
    where: Callable[[str], bool] | None = None,
    gamma_init: str = "sigma",
    sigma_grad: str = "through",
) -> nn.Module:
    """Puts SigmaLinear and SigmaConv2d in the place of nn.Linear and nn.Conv2d; weights and biases stay the same parameters.

    Args:
        module: any module. Layers of a subclass of nn.Linear or nn.Conv2d stay as they are, as do layers whose weight another
            module holds too (a head tied to its embedding).
        where: of a layer's name, whether to convert it; all by default.
        gamma_init: "sigma", which leaves the module's output as it was, or "one".
        sigma_grad: as of SigmaLinear.

    Returns:
        module, changed in place; the new layer where module is itself one.

    Raises:
        ValueError: nothing to convert; a layer whose weight is 0, with which it would stay, or not finite; a layer that where
            names by itself and whose weight is tied. The message names the layer.
    """
    holders = defaultdict(set)
    for holder in module.modules():
        for parameter in holder.parameters(recurse=False):
            holders[parameter].add(holder)

    def converted(name: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) not in _SIGMA_OF or (where is not None and not where(name)):
            return None
        if len(holders[layer.weight]) > 1:
            if where is None:
                return None
            raise ValueError(f"{name or 'module'} shares its weight with another layer; wanted one of its own, or not named by where")
        with torch.no_grad():
            if not layer.weight.is_meta and not layer.weight.any():
                raise ValueError(f"{name or 'module'} has a weight of 0, which sigmaReparam cannot move; wanted another, or to be left out by where")
        return _rebuilt(_SIGMA_OF[type(layer)], layer, name, gamma_init=gamma_init, sigma_grad=sigma_grad)

    module, count = _replace(module, converted)
    if count == 0:
        raise ValueError("there is no nn.Linear or nn.Conv2d to convert; wanted at least one that where names")
    for part in module.modules():
        # Their fast path takes the weights past the layers' forward.
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    return module


def fold(module: nn.Module) -> nn.Module:
    """The reverse: nn.Linear and nn.Conv2d with the weight (γ/σ) · W in the place of sigma layers, for export.

    Returns:
        module, changed in place; the new layer where module is itself one. Its output is the same but for rounding.
    """

    def folded(name: str, layer: nn.Module) -> nn.Module | None:
        plain = next((kind for kind, sigma in _SIGMA_OF.items() if isinstance(layer, sigma)), None)
        if plain is None:
            return None
        new = _rebuilt(plain, layer, name)
        new.weight = nn.Parameter(layer.scaled_weight().detach(), requires_grad=layer.weight.requires_grad)
        return new

    return _replace(module, folded)[0]


_SIGMA_OF = {nn.Linear: SigmaLinear, nn.Conv2d: SigmaConv2d}


def _first_direction(W: Tensor) -> Tensor:
    """[in]: the first right singular vector of W [out, in], or near it."""
    if W.is_meta:
        return W.new_empty(W.shape[1])
    if not W.isfinite().all():
        raise ValueError("weight is not finite; wanted finite numbers, of which it has a largest singular value")
    if min(W.shape) <= _SVD_SIZE:
        return torch.linalg.svd(W, full_matrices=False).Vh[0].clone()
    u = torch.randn(W.shape[1], generator=torch.Generator().manual_seed(0), dtype=W.dtype).to(W.device)
    u /= u.norm()
    ops.power_step([W], [u], steps_max=_START_STEPS, tolerance=0.0)
    return u


def _rebuilt(kind: type, layer: nn.Module, name: str, **sigma: str) -> nn.Module:
    """layer as another of nn.Linear, nn.Conv2d, SigmaLinear, SigmaConv2d, with the same parameters."""
    made = {"bias": layer.bias is not None, "device": "meta", **sigma}
    if isinstance(layer, nn.Linear):
        new = kind(layer.in_features, layer.out_features, **made)
    else:
        options = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        new = kind(layer.in_channels, layer.out_channels, **{option: getattr(layer, option) for option in options}, **made)
    new.weight, new.bias = layer.weight, layer.bias
    if sigma:
        try:
            new._start(**sigma)
        except ValueError as error:
            raise ValueError(f"{name or 'module'}: {error}") from None
    return new.train(layer.training)


def _replace(module: nn.Module, change: Callable[[str, nn.Module], nn.Module | None]) -> tuple[nn.Module, int]:
    """Puts change(name, layer), where it is not None, in layer's place, wherever it stands. Returns (module, how many)."""
    changed = {}
    for name, layer in module.named_modules():
        new = change(name, layer)
        if new is not None:
            changed[layer] = new
    for part in list(module.modules()):
        for name, child in list(part._modules.items()):  # named_children leaves out a second name
            if child in changed:
                setattr(part, name, changed[child])
    return changed.get(module, module), len(changed)
