"""The layers: a `torch.nn.Module` for every form that has parameters or options worth keeping.

    layer = foveate.nn.MultiheadAttention(embed_dim=256, num_heads=8, causal=True)
    y = layer(x)                           # [B,N,E]
    y, state = layer.step(x[:, :1])        # streaming, where the form streams

Parameters carry natural dotted names in `state_dict`, initialised as the paper says. `help(foveate.nn.MultiheadAttention)` tells
options with defaults, inputs and outputs with shapes.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from foveate import _checkpoints
from foveate._catalog import FormCard, catalog, forms
from foveate._functions import argument, describe, describe_call, result_type

_STEP = "Some more tokens and the state that the last call left, None to start; gives results for them, and the next state."


class Group(torch.nn.Module):
    """Parameters that belong together, such as the weight and bias of a projection."""

    def extra_repr(self) -> str:
        """The shapes of its parameters."""
        return ", ".join(f"{name}={list(value.shape)}" for name, value in [*self._parameters.items(), *self._buffers.items()] if value is not None)


class Layer(torch.nn.Module):
    """A form with its options and parameters. The classes of this module derive from it; it is not made by itself."""

    form: ClassVar[FormCard]
    _result: ClassVar[Callable[..., Any] | None]
    _step_result: ClassVar[Callable[..., Any] | None]

    def __init__(self, *, device: Any = None, dtype: torch.dtype | None = None, **options: Any) -> None:
        super().__init__()
        self.options = self._complete(options)
        # Where each tensor of the operator comes from: the modules on the way, its name, whether it is a buffer; absent ones have no way.
        self._slots: list[tuple[tuple[str, ...], str, bool]] = []
        if self.form.has_parameters:
            self._create()
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    @classmethod
    def _complete(cls, options: dict[str, Any]) -> dict[str, Any]:
        known = {field.name: field for field in cls.form.options}
        for name in options:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no option '{name}'; its options are {', '.join(known) or 'none'}")
        for name, field in known.items():
            if name not in options and not field.has_default:
                raise TypeError(f"{cls.__name__} needs the option '{name}': {field.doc}")
        return {name: options.get(name, field.default) for name, field in known.items()}

    def _initial(self) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
        tensors, description = getattr(torch.ops.foveate, f"_{self.form.name}_init")(**self.options)
        return tensors, json.loads(description)

    def _create(self) -> None:
        tensors, slots = self._initial()
        remaining = iter(tensors)
        for slot in slots:
            *groups, leaf = slot["name"].split(".")
            place: torch.nn.Module = self
            for group in groups:
                if group not in place._modules:
                    place.add_module(group, Group())
                place = place.get_submodule(group)
            if not slot["present"]:
                place.register_parameter(leaf, None)
            elif slot["buffer"]:
                place.register_buffer(leaf, next(remaining))
            else:
                place.register_parameter(leaf, torch.nn.Parameter(next(remaining)))
            self._slots.append((tuple(groups), leaf, slot["buffer"]))

    def reset_parameters(self) -> None:
        """Draws new initial values, as the paper says, in place."""
        if not self.form.has_parameters:
            return
        self._renew(lambda groups: True)

    def redraw(self) -> None:
        """Draws anew what was drawn at random, such as the projection of random features, from the global generator and in place; what is
        trained stays. Such draws are the buffers below `drawn`."""
        if not any("drawn" in groups for groups, _, _ in self._slots):
            raise TypeError(f"{type(self).__name__} keeps no random draw")
        self._renew(lambda groups: "drawn" in groups)

    def _renew(self, chosen: Callable[[tuple[str, ...]], bool]) -> None:
        """Draws initial values, and takes those below the chosen groups."""
        tensors, slots = self._initial()
        remaining = iter(tensors)
        with torch.no_grad():
            for (groups, leaf, _), slot in zip(self._slots, slots, strict=True):
                fresh = next(remaining) if slot["present"] else None
                if fresh is not None and chosen(groups):
                    getattr(self._group(groups), leaf).copy_(fresh)

    def _group(self, groups: tuple[str, ...]) -> torch.nn.Module:
        place: torch.nn.Module = self
        for group in groups:
            place = place._modules[group]  # type: ignore[assignment]
        return place

    def _arguments(self) -> dict[str, Any]:
        values = [(groups, leaf, is_buffer, getattr(self._group(groups), leaf)) for groups, leaf, is_buffer in self._slots]
        if self.form.listed:
            lists: dict[str, Any] = {"parameters": [v for *_, b, v in values if not b], "buffers": [v for *_, b, v in values if b]}
            return {**lists, **self.options}
        return {**{"_".join((*groups, leaf)): value for groups, leaf, _, value in values}, **self.options}

    def _call(self, *inputs: Any) -> Any:
        arguments = self._arguments()
        if self.form.training:
            arguments["training"] = self.training
        outputs = getattr(torch.ops.foveate, self.form.name).default(*inputs, **arguments)
        return outputs if self._result is None else self._result(*outputs)

    def _call_step(self, *inputs: Any) -> Any:
        if not self.form.streams:
            raise TypeError(f"{type(self).__name__} does not stream: its outputs depend on later inputs")
        arguments = self._arguments()
        if self.form.step_training:
            arguments["training"] = self.training
        outputs = getattr(torch.ops.foveate, f"{self.form.name}_step").default(*inputs, **arguments)
        return outputs if self._step_result is None else self._step_result(*outputs)

    def extra_repr(self) -> str:
        """Its options."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)


def load_published(module: Layer, state_dict: Mapping[str, torch.Tensor], source: str | None = None) -> str:
    """Loads weights that a published implementation saved into a layer of the same form, and gives the source whose names they have.

    Sources are the implementations that `foveate/checkpoints` knows, such as "torch" for `torch.nn.MultiheadAttention`; without one, the
    first whose names and shapes fit is taken. Nothing is loaded unless every tensor has its place and every place its tensor.

    >>> theirs = torch.nn.MultiheadAttention(8, 2)
    >>> foveate.nn.load_published(foveate.nn.MultiheadAttention(embed_dim=8, num_heads=2), theirs.state_dict())
    'torch'

    Raises ValueError naming every tensor that is missing, left over or of another shape; TypeError where `module` is no layer of foveate.
    """
    if not isinstance(module, Layer):
        raise TypeError(f"load_published: module must be a layer of foveate.nn, got {type(module).__name__}")
    known, name = _checkpoints.sources(module.form), type(module).__name__
    if not known:
        raise ValueError(f"load_published: {name} has no map of published names")
    if source not in (None, *known):
        raise ValueError(f"load_published: {name}: source must be one of {', '.join(known)}, got {source}")
    attempts = {}
    for tried in known if source is None else [source]:
        found, wrong = _checkpoints.problems(known[tried], state_dict, module.state_dict())
        if not wrong:
            module.load_state_dict(found)
            return tried
        attempts[tried] = wrong
    nearest = min(attempts, key=lambda tried: len(attempts[tried]))
    raise ValueError(f"load_published: {name} from {nearest}: {'; '.join(attempts[nearest])}")


def _method(name: str, form: FormCard, target: str, doc: str, last: str = "") -> Callable[..., Any]:
    """`def forward(self, x, context=None)`: written out, since exporting and `help` read the signature."""
    inputs = [field.name for field in form.inputs] + ([last] if last else [])
    arguments = [field.name + ("=None" if field.optional else "") for field in form.inputs] + ([f"{last}=None"] if last else [])
    scope: dict[str, Any] = {}
    exec(f"def {name}({', '.join(['self', *arguments])}): return self.{target}({', '.join(inputs)})", scope)
    scope[name].__doc__ = doc
    return scope[name]  # type: ignore[no-any-return]


def _layer(class_name: str, form: FormCard, doc: str) -> type[Layer]:
    namespace = {
        "__doc__": doc,
        "__module__": __name__,
        "__signature__": inspect.Signature(
            [argument(field) for field in form.options]
            + [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ("device", "dtype")]
        ),
        "form": form,
        "forward": _method(
            "forward", form, "_call", describe_call(form, f"{form.summary[0].upper()}{form.summary[1:]}, with this layer's parameters.")
        ),
        "step": _method(
            "step", form, "_call_step", describe_call(form, _STEP) if form.streams else "Not for this form: it does not stream.", "state"
        ),
        "_result": result_type(form),
        "_step_result": result_type(form, ["state"]),
    }
    for result in (namespace["_result"], namespace["_step_result"]):
        if result is not None:
            result.__module__ = __name__
    return type(class_name, (Layer,), namespace)


for _card in catalog():
    for _form in _card.forms:
        globals()[_form.class_name] = _layer(_form.class_name, _form, describe(_card, _form, with_parameters=False))

__all__ = ["Group", "Layer", "load_published", *(form.class_name for form in forms().values())]
