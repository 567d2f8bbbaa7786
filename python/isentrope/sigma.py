"""sigmaReparam: SigmaLinear and SigmaConv2d, and what puts them into a model and takes them out again. All of it is public as
isentrope.nn."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isentrope import ops
from isentrope.ops import sigma_linear

__all__ = ["LayerStep", "SigmaConv2d", "SigmaLinear", "convert_to_sigma", "fold", "power_step"]

# Matrices whose smaller side is above this get u by power steps: the SVD of 512 takes some tenths of a second, eight times
# that for twice the size.
_SVD_SIZE = 512
# Steps of such a start: σ of Gaussian and uniform matrices of 600 to 3072 was too low by at most 7e-5 after them, of square ones
# too (after 50: by up to 7e-3).
_START_STEPS = 200


# Forward passes on changed weights without a power_step before it is missed: few enough to be told in a run's first seconds, more
# than what initialisation and loading change.
_MISSED = 10


class _Sigma(nn.Module):
    """What SigmaLinear and SigmaConv2d share: weight [out, ...], taken as the matrix [out, the rest], with parameter γ and buffer u.

    They are no nn.Linear and nn.Conv2d: what looks for those reads or changes `weight` as what the layer computes with (merging
    of adapters, quantisation, new heads for more tokens), and here it is not.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor
    u: Tensor
    sigma_grad: str
    _warned = False  # of all of them together

    def _start(self, gamma_init: str, sigma_grad: str) -> None:
        if gamma_init not in ("one", "sigma"):
            raise ValueError(f"gamma_init is {gamma_init!r}; wanted 'one' or 'sigma'")
        if sigma_grad not in ("through", "detached"):
            raise ValueError(f"sigma_grad is {sigma_grad!r}; wanted 'through' or 'detached'")
        self.gamma_init, self.sigma_grad = gamma_init, sigma_grad
        W = self.weight.detach()
        wide = torch.promote_types(W.dtype, torch.float32)
        # Not a scalar: fully_shard takes none.
        self.gamma = nn.Parameter(torch.ones(1, device=W.device, dtype=wide), requires_grad=self.weight.requires_grad)
        self.register_buffer("u", W.new_empty(W.flatten(1).shape[1], dtype=wide))
        self._version = self._changes = 0
        if not W.is_meta:
            self._aim(as_plain=gamma_init == "sigma")

    @torch.no_grad()
    def _aim(self, as_plain: bool) -> None:
        """u to the weight, and γ so that the layer is the plain one of its weight, or 1."""
        self.u.copy_(_first_direction(_whole(self.weight).flatten(1).to(self.u.dtype)))
        self.gamma.fill_(self.sigma() if as_plain else 1)

    def reset_parameters(self) -> None:
        """Draws weight and bias as the plain layer does, and starts u and γ anew: after to_empty(), which a model made on the meta
        device needs."""
        self._plain.reset_parameters(self)
        self._aim(as_plain=self.gamma_init == "sigma")

    def sigma(self) -> Tensor:
        """σ = ‖W u‖, [], with gradient unless sigma_grad is detached."""
        return _sigma_of(_whole(self.weight), _whole(self.gamma), self.u, self.sigma_grad)

    def scaled_weight(self) -> Tensor:
        """(γ/σ) · W like weight, with gradient; 0 where σ is 0."""
        return _scaled(_whole(self.weight), _whole(self.gamma), self.sigma())

    def _watch(self) -> None:
        """Warns once where weights are trained and power_step is not called, so that σ falls behind."""
        if torch.compiler.is_compiling() or not (self.training and torch.is_grad_enabled()) or self.weight.is_inference():
            return
        if self.weight._version == self._version:
            return
        self._version, self._changes = self.weight._version, self._changes + 1
        if self._changes > _MISSED and not _Sigma._warned:
            _Sigma._warned = True
            warnings.warn(
                f"{type(self).__name__}: its weight has changed {_MISSED} times without isentrope.nn.power_step(model), so its sigma is of "
                "an old weight; call it after each optimizer.step()"
            )

    def _load_from_state_dict(
        self, state_dict: Any, prefix: Any, local_metadata: Any, strict: Any, missing_keys: Any, *others: Any
    ) -> None:
        gamma, u, gain = prefix + "gamma", prefix + "u", prefix + "gain"
        if gain in state_dict:  # the name in isentrope 0.1.0, where it was a scalar
            value = state_dict.pop(gain)
            state_dict[gamma] = value.view(1) if value.dim() == 0 else value
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *others)
        if prefix + "weight" in state_dict and gamma not in state_dict and u not in state_dict:  # of a plain layer
            missing_keys[:] = [key for key in missing_keys if key not in (gamma, u)]
            if self.u.is_meta and not self.weight.is_meta:  # assign=True, which gives the weight alone a device
                self.u = torch.empty_like(self.u, device=self.weight.device)
                self.gamma = nn.Parameter(torch.empty_like(self.gamma, device=self.weight.device), self.gamma.requires_grad)
            if not self.weight.is_meta:
                self._aim(as_plain=True)


class SigmaLinear(_Sigma):
    """A layer like nn.Linear with y = (γ/σ) · x Wᵀ + b, where σ = ‖W u‖ and u is near the first right singular vector of W (sigmaReparam).

    Forward does not change u. Call isentrope.nn.power_step(model) once after each optimiser step, and give `gamma` (γ) no weight
    decay. u starts as the singular vector of the weight that the constructor draws; give other weights by convert_to_sigma, or
    let power_step follow.

    Args:
        in_features, out_features, bias, device, dtype: as of nn.Linear.
        gamma_init: γ at the start: "one", or "sigma", for which the layer starts as the nn.Linear of its weight.
        sigma_grad: "through" or "detached", as of isentrope.sigma_linear.

    Attributes:
        weight [out, in], bias [out], gamma [1] (parameters), u [in] (a buffer, in the state_dict). gamma and u are float32 (float64
        for a float64 weight): cast the model first and convert it then, for .bfloat16() rounds them too. The layer is no
        nn.Linear, since its weight is not what it computes with: that is scaled_weight(). A state_dict of an nn.Linear loads, and
        gives the layer that function.

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
        super().__init__()
        self.__dict__.update(nn.Linear(in_features, out_features, bias, device=device, dtype=dtype).__dict__)
        self._start(gamma_init, sigma_grad)

    _plain, extra_repr = nn.Linear, nn.Linear.extra_repr

    def forward(self, x: Tensor) -> Tensor:
        self._watch()
        return sigma_linear(x, self.weight, self.gamma.view(()), self.u, self.bias, sigma_grad=self.sigma_grad).y


class SigmaConv2d(_Sigma):
    """A layer like nn.Conv2d whose weight is (γ/σ) · W; σ is that of the matrix [out, in / groups · kernel], not of the convolution operator.

    Here the scaled weight is made: it is small beside the activations of a convolution. Else as SigmaLinear.

    Args:
        in_channels, out_channels, kernel_size, and options: as of nn.Conv2d.
        gamma_init, sigma_grad: as of SigmaLinear.
    """

    def __init__(self, *args: Any, gamma_init: str = "one", sigma_grad: str = "through", **options: Any) -> None:
        super().__init__()
        self.__dict__.update(nn.Conv2d(*args, **options).__dict__)
        self._start(gamma_init, sigma_grad)

    _plain, _conv_forward, extra_repr = nn.Conv2d, nn.Conv2d._conv_forward, nn.Conv2d.extra_repr

    def forward(self, x: Tensor) -> Tensor:
        self._watch()
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
        {name of the layer: (sigma [], steps [] int32)}, on its device; {} where module has no such layer. No host synchronisation.
    """
    groups = defaultdict(list)  # one call for the layers of a dtype and device
    for name, layer in module.named_modules():
        if isinstance(layer, _Sigma):
            groups[layer.weight.dtype, layer.weight.device].append((name, layer))
            layer._version, layer._changes = layer.weight._version, 0
    found = {}
    for layers in groups.values():
        step = ops.power_step(
            [_whole(layer.weight.detach()).flatten(1) for _, layer in layers],
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

    A model of transformers in it, or module itself, gets a save_pretrained that writes the folded weights (see fold), which
    from_pretrained then reads as a plain model of the same function. Convert the whole model for that, and choose layers by where.
    Convert before an optimiser or DDP is given the parameters: γ is a new one. What a layer multiplies by is scaled_weight(), no longer weight.

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
            names by itself and whose weight is tied; a layer that is sharded, or whose weight is computed from others (pruned,
            spectral_norm); a layer inside an adapter of peft. The message names the layer.
    """
    holders = defaultdict(set)
    for name, holder in module.named_modules():
        if any(kind.__module__.startswith("peft.tuners.tuners_utils") and kind.__name__ == "BaseTunerLayer" for kind in type(holder).__mro__):
            raise ValueError(f"{name or 'module'} is an adapter of peft, which merges into its layer's weight; wanted it merged or unloaded first")
        for parameter in holder.parameters(recurse=False):
            holders[parameter].add(holder)

    def converted(name: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) not in _SIGMA_OF or (where is not None and not where(name)):
            return None
        _check_own_weight(name, layer, "fully_shard after the conversion")
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
        there = sum(isinstance(layer, _Sigma) for layer in module.modules())
        wanted = "wanted at least one" + ("" if where is None else " that where names")
        raise ValueError(f"there is no nn.Linear or nn.Conv2d to convert{f', and {there} are converted already' if there else ''}; {wanted}")
    for part in module.modules():
        saves = getattr(part, "save_pretrained", None)
        if saves is not None and "state_dict" in inspect.signature(saves).parameters:
            part.save_pretrained = functools.partial(_save_folded, part)
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

    Raises:
        ValueError: a layer that is sharded, or whose weight a parametrization computes. The message names it.
    """

    def folded(name: str, layer: nn.Module) -> nn.Module | None:
        plain = next((kind for kind, sigma in _SIGMA_OF.items() if isinstance(layer, sigma)), None)
        if plain is None:
            return None
        _check_own_weight(name, layer, "its full state_dict loaded into a model that is not, and that one folded")
        new = _rebuilt(plain, layer, name)
        new.weight = nn.Parameter(layer.scaled_weight().detach(), requires_grad=layer.weight.requires_grad)
        return new

    module = _replace(module, folded)[0]
    for part in module.modules():
        if _is_folding(part.__dict__.get("save_pretrained")) and not any(isinstance(layer, _Sigma) for layer in part.modules()):
            del part.save_pretrained
    return module


def _is_folding(saves: Callable | None) -> bool:
    return isinstance(saves, functools.partial) and saves.func is _save_folded


def _save_folded(model: nn.Module, *arguments, **options) -> None:
    """save_pretrained of a model of transformers with sigma layers in it."""
    save = type(model).save_pretrained
    given = inspect.signature(save).bind(model, *arguments, **options)
    state = given.arguments.get("state_dict")
    state = dict(model.state_dict() if state is None else state)
    for name, layer in model.named_modules(remove_duplicate=False):
        keys = [f"{name}.{key}" if name else key for key in ("weight", "gamma", "u")]
        if isinstance(layer, _Sigma) and all(key in state for key in keys):
            weight, gamma, u = (_whole(state.pop(key).detach()) for key in keys)
            state[keys[0]] = _scaled(weight, gamma, _sigma_of(weight, gamma, u))
    given.arguments["state_dict"] = state
    return save(*given.args, **given.kwargs)


def _sigma_of(weight: Tensor, gamma: Tensor, u: Tensor, sigma_grad: str = "detached") -> Tensor:
    W = weight.flatten(1)
    return sigma_linear(W.new_empty(0, W.shape[1]), W, gamma.detach().view(()), u, sigma_grad=sigma_grad).sigma


def _scaled(weight: Tensor, gamma: Tensor, sigma: Tensor) -> Tensor:
    return (gamma / sigma.masked_fill(sigma == 0, torch.inf) * weight.to(sigma.dtype)).to(weight.dtype)


def _whole(parameter: Tensor) -> Tensor:
    """parameter, or all of it where it is sharded (fully_shard)."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


_SIGMA_OF = {nn.Linear: SigmaLinear, nn.Conv2d: SigmaConv2d}


def _first_direction(W: Tensor) -> Tensor:
    """[in]: the first right singular vector of W [out, in], or near it."""
    if W.numel() == 0:
        raise ValueError(f"weight is of shape {list(W.shape)}; wanted at least one row and one column")
    if not W.isfinite().all():
        raise ValueError("weight is not finite; wanted finite numbers, of which it has a largest singular value")
    if min(W.shape) <= _SVD_SIZE:
        return torch.linalg.svd(W, full_matrices=False).Vh[0].clone()
    u = torch.randn(W.shape[1], generator=torch.Generator().manual_seed(0), dtype=W.dtype).to(W.device)
    u /= u.norm()
    ops.power_step([W], [u], steps_max=_START_STEPS, tolerance=0.0)
    return u


# What a module keeps of its hooks (nn.Module.__init__): whoever watches or moves a layer goes on doing so.
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called", "_is_full_backward_hook")


def _check_own_weight(name: str, layer: nn.Module, instead_of_sharded: str) -> None:
    if layer._parameters.get("weight") is None:
        raise ValueError(
            f"{name or 'module'} has a weight that is computed from others (pruned, spectral_norm or another parametrization), which would "
            "be lost; wanted that removed first (prune.remove, remove_spectral_norm, remove_parametrizations)"
        )
    if hasattr(layer.weight, "full_tensor"):
        raise ValueError(f"{name or 'module'} is sharded; wanted {instead_of_sharded}")


def _rebuilt(kind: type, layer: nn.Module, name: str, **sigma: str) -> nn.Module:
    """layer as another of nn.Linear, nn.Conv2d, SigmaLinear, SigmaConv2d, with the same parameters."""
    made = {"bias": layer.bias is not None, "device": "meta", **sigma}
    if isinstance(layer, (nn.Linear, SigmaLinear)):
        new = kind(layer.in_features, layer.out_features, **made)
    else:
        options = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        new = kind(layer.in_channels, layer.out_channels, **{option: getattr(layer, option) for option in options}, **made)
    new.weight, new.bias = layer.weight, layer.bias
    new.__dict__.update({key: value for key, value in layer.__dict__.items() if key.endswith(_HOOKS)})
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
