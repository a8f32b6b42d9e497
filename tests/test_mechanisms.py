"""What every form of every mechanism promises, one parametrised test for each promise, over the cases of tests/mechanisms."""

import copy
import io
import itertools
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import foveate
from foveate._catalog import forms
from foveate.check import flat, growing, perturbed
from tests.contract import Case, cases, first

CASES = cases()
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
MASKED = [case for case in CASES if case.mask]
CAUSAL = [case for case in CASES if case.causal]
STREAMING = [case for case in CAUSAL if case.card.streams]
STRETCHING = [case for case in CASES if case.length]


def assert_same(got: Any, want: Any, **tolerance: Any) -> None:
    """The same tensors, in order."""
    for a, b in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def stretched(case: Case, length: int) -> dict[str, int]:
    """The case's sizes with every length set to this."""
    return {letter: length for letter in case.length if letter in case.sizes}


def test_every_form_has_a_case() -> None:
    assert {case.form for case in CASES} == set(forms())


opcheck_kinds = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@EVERY_CASE
def test_opcheck(case: Case) -> None:
    inputs = case.inputs()
    floating = [x for x in inputs.values() if x.is_floating_point()]
    for x in floating:
        x.requires_grad_()
    layer = case.layer()
    arguments = layer._arguments()
    first = next(other for other in CASES if other.form == case.form)
    checks = opcheck_kinds if case is first else opcheck_kinds[:3]  # the last traces the operator and its gradient: seconds a case
    opcheck(getattr(torch.ops.foveate, case.form).default, (), {**inputs, **arguments}, test_utils=checks)


@EVERY_CASE
def test_compiled_whole_equals_eager(case: Case) -> None:
    torch._dynamo.reset()
    inputs, layer = case.inputs(), case.layer()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_same(compiled(**inputs), layer(**inputs))


def one_case_a_family() -> list[Case]:
    """The first case of each family that has parameters."""
    by_family: dict[str, Case] = {}
    for card in foveate.catalog():
        for case in CASES:
            if case.card in card.forms and (case.card.has_parameters or card.family not in by_family):
                by_family.setdefault(card.family, case)
    return list(by_family.values())


@pytest.mark.parametrize("case", one_case_a_family(), ids=lambda case: case.id)
def test_compiled_by_inductor_equals_eager(case: Case) -> None:
    torch._dynamo.reset()
    inputs, layer = case.inputs(), case.layer()
    compiled = torch.compile(layer, fullgraph=True)
    assert_same(compiled(**inputs), layer(**inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", STRETCHING, ids=lambda case: case.id)
def test_exported_with_a_dynamic_length(case: Case) -> None:
    layer, inputs = case.layer(), case.inputs()
    lengths = {letter: case.sizes[letter] for letter in case.length if letter in case.sizes}
    longer = case.inputs({letter: length + 3 for letter, length in lengths.items()})
    # Letters of one size in the case are one length: N = M of self-attention.
    dims = {size: torch.export.Dim(f"length_{size}", min=case.exported_from, max=4096) for size in lengths.values()}
    shapes: dict[str, dict[int, Any] | None] = {field.name: None for field in case.card.inputs}
    for name, x in inputs.items():
        axes = [i for i, (a, b) in enumerate(zip(x.shape, longer[name].shape, strict=True)) if a != b]
        shapes[name] = {i: dims[x.shape[i]] for i in axes}
    given = tuple(inputs.get(field.name) for field in case.card.inputs)
    program = torch.export.export(layer, given, dynamic_shapes=shapes)
    assert_same(program.module()(*(longer.get(field.name) for field in case.card.inputs)), layer(**longer))


@EVERY_CASE
def test_runs_on_fake_cuda_tensors(case: Case) -> None:
    inputs, layer = case.inputs(dtype=torch.float32), case.layer(dtype=torch.float32)
    real = layer(**inputs)
    with FakeTensorMode():
        arguments = {n: on("cuda", a) for n, a in {**inputs, **layer._arguments()}.items()}
        outputs = getattr(torch.ops.foveate, case.form).default(**arguments)
    for fake, want in zip(flat(outputs), flat(real), strict=True):
        assert fake.device.type == "cuda" and fake.shape == want.shape and fake.dtype == want.dtype


@EVERY_CASE
def test_mixed_devices_are_refused(case: Case) -> None:
    inputs, layer = case.inputs(dtype=torch.float32), case.layer(dtype=torch.float32)
    given = {**inputs, **layer._arguments()}
    tensors = [x for a in given.values() for x in (a if isinstance(a, list) else [a]) if isinstance(x, Tensor)]
    if len(tensors) < 2:
        return  # one tensor cannot disagree with itself
    with FakeTensorMode(), pytest.raises((ValueError, RuntimeError), match=r"(?i)must be on cuda|same device|found.*devices"):
        arguments = {n: on("cuda" if n == case.card.inputs[0].name else "cpu", a) for n, a in given.items()}
        getattr(torch.ops.foveate, case.form).default(**arguments)


def on(device: str, argument: Any) -> Any:
    """An argument with its tensors replaced by fakes on a device."""
    if isinstance(argument, list):
        return [on(device, item) for item in argument]
    return torch.empty(argument.shape, dtype=argument.dtype, device=device) if isinstance(argument, Tensor) else argument


def small(case: Case) -> tuple[list[Tensor], Any]:
    """Differentiable tensors of a small case, and the form as a function of them."""
    inputs, layer = case.inputs(case.gradcheck), case.layer()
    names = [n for n, x in inputs.items() if x.is_floating_point()]
    parameters = dict(layer.named_parameters())
    if sum(p.numel() for p in parameters.values()) > 400:  # numerical differentiation costs a forward per entry: keep the smallest ones
        kept = sorted(parameters, key=lambda n: parameters[n].numel())
        total = itertools.accumulate(parameters[n].numel() for n in kept)
        parameters = {n: parameters[n] for n, t in zip(kept, total, strict=True) if t <= 400}
    leaves = [inputs[n].clone().requires_grad_() for n in names] + [p.detach().clone().requires_grad_() for p in parameters.values()]

    def function(*values: Tensor) -> list[Tensor]:
        given = {**inputs, **dict(zip(names, values, strict=False))}
        own = dict(zip(parameters, values[len(names) :], strict=True))
        outputs = flat(torch.func.functional_call(layer, own, (), given))
        return [o for o in outputs if o.is_floating_point() and o.requires_grad]

    return leaves, function


UNCUT = [case for case in CASES if not case.cut]


@pytest.mark.parametrize("case", UNCUT, ids=[case.id for case in UNCUT])
def test_gradcheck(case: Case) -> None:
    leaves, function = small(case)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=len(leaves) > 8, nondet_tol=1e-12)


@EVERY_CASE
def test_func_grad_and_vmap(case: Case) -> None:
    inputs, layer = case.inputs(), case.layer()
    name = next((n for n, x in inputs.items() if x.is_floating_point()), None)
    if name is None:  # token ids: the gradient of a parameter instead
        name, start = next((n, p.detach()) for n, p in layer.named_parameters())
    else:
        start = inputs[name]

    def loss(x: Tensor) -> Tensor:
        if name in inputs:
            return first(layer(**{**inputs, name: x})).square().sum()
        return first(torch.func.functional_call(layer, {name: x}, (), inputs)).square().sum()

    stacked = torch.stack([start, start.flip(0) * 0.9])
    gradients = torch.vmap(torch.func.grad(loss))(stacked)
    for x, gradient in zip(stacked, gradients, strict=True):
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf), leaf)[0], rtol=1e-8, atol=1e-9)


@EVERY_CASE
def test_copies_pickles_and_states_keep_the_function(case: Case) -> None:
    inputs, layer = case.inputs(), case.layer()
    want = layer(**inputs)
    assert_same(copy.deepcopy(layer)(**inputs), want, rtol=0, atol=0)
    assert_same(pickle.loads(pickle.dumps(layer))(**inputs), want, rtol=0, atol=0)
    other = case.layer(seed=1)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    assert_same(other(**inputs), want, rtol=0, atol=0)
    assert re.search(rf"^{type(layer).__name__}\(", repr(layer))


@EVERY_CASE
def test_half_precision_is_close_to_double(case: Case) -> None:
    layer = case.layer(dtype=torch.bfloat16)
    inputs = case.inputs(dtype=torch.bfloat16)
    got = first(layer(**inputs))
    assert got.dtype == torch.bfloat16 and got.isfinite().all()
    exact = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
    want = first(copy.deepcopy(layer).double()(**exact))
    error = (got.double() - want).norm() / want.norm().clamp(min=1e-6)
    assert error < 0.06, f"relative error {error:.3f}"


@pytest.mark.parametrize("case", STRETCHING, ids=lambda case: case.id)
def test_the_shortest_input_works(case: Case) -> None:
    outputs = flat(case.layer()(**case.inputs(stretched(case, case.smallest))))
    assert all(o.isfinite().all() for o in outputs[:1] if o.is_floating_point())


@EVERY_CASE
def test_an_empty_batch_gives_an_empty_batch(case: Case) -> None:
    if "B" not in case.sizes:
        return  # what is asked of a whole batch at once
    out = first(case.layer()(**case.inputs({"B": 0})))
    assert out.shape[0] == 0


@EVERY_CASE
def test_layout_of_inputs_does_not_matter(case: Case) -> None:
    inputs, layer = case.inputs(), case.layer()
    want = layer(**inputs)
    spread = {n: spread_out(x) for n, x in inputs.items()}
    assert_same(layer(**spread), want, rtol=1e-12, atol=1e-12)
    one = {n: x[:1].expand(x.shape) if x.dim() else x for n, x in inputs.items()}
    solid = {n: x.contiguous() for n, x in one.items()}
    assert_same(layer(**one), layer(**solid), rtol=1e-12, atol=1e-12)


def spread_out(x: Tensor) -> Tensor:
    """The same numbers with every other element of a larger tensor, dimensions stored in reverse order."""
    if x.dim() == 0:
        return x
    order = list(range(x.dim()))[::-1]
    room = x.new_zeros([*(x.shape[i] for i in order[:-1]), 2 * x.shape[order[-1]]])
    view = room[..., ::2].permute(*[order.index(i) for i in range(x.dim())])
    view.copy_(x)
    return view


@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.id)
def test_a_query_that_sees_nothing_gets_zeros_and_no_gradient(case: Case) -> None:
    inputs, layer = case.inputs(), case.layer()
    inputs[case.mask] = torch.zeros_like(inputs[case.mask])
    names = [n for n, x in inputs.items() if x.is_floating_point()]
    for n in names:
        inputs[n].requires_grad_()
    out = first(layer(**inputs))
    assert out.isfinite().all()
    if case.hidden_is_zero:
        assert (out == 0).all()
    for gradient in torch.autograd.grad(out.square().sum() + out.sum(), [inputs[n] for n in names], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()
        assert not case.hidden_is_zero or gradient is None or (gradient == 0).all()


@pytest.mark.parametrize("case", CAUSAL, ids=lambda case: case.id)
def test_the_future_leaves_the_past_as_it_was(case: Case) -> None:
    inputs, layer = case.inputs(), case.layer()
    sequences = growing(case.card, inputs)
    length = inputs[next(iter(sequences))].shape[sequences[next(iter(sequences))]]
    before = first(layer(**inputs))
    axis = length_axis(before, length)
    for cut in range(1, length):
        changed = {n: perturbed(x, sequences[n], cut) if n in sequences else x for n, x in inputs.items()}
        after = first(layer(**changed))
        assert torch.equal(before.narrow(axis, 0, cut), after.narrow(axis, 0, cut)), f"position {cut} changes earlier outputs"
        if before.is_floating_point() and length - cut > 0:
            assert not torch.equal(before.narrow(axis, cut, length - cut), after.narrow(axis, cut, length - cut))


def length_axis(out: Tensor, length: int) -> int:
    """The axis of a result that follows the length: [B,H,N,D] or [B,N,E]."""
    axis = 2 if out.dim() == 4 else 1
    assert out.shape[axis] == length
    return axis


@pytest.mark.parametrize("case", STREAMING, ids=lambda case: case.id)
@pytest.mark.parametrize("chunks", ["tokens", "random"])
def test_streaming_equals_the_whole(case: Case, chunks: str) -> None:
    inputs, layer = case.inputs(), case.layer()
    sequences = growing(case.card, inputs)
    length = inputs[next(iter(sequences))].shape[sequences[next(iter(sequences))]]
    want = first(layer(**inputs))
    generator = torch.Generator().manual_seed(length)
    sizes: list[int] = []
    while sum(sizes) < length:
        size = 1 if chunks == "tokens" else int(torch.randint(1, 5, (), generator=generator))
        sizes.append(min(size, length - sum(sizes)))
    state, outputs = None, []
    starts = [0, *itertools.accumulate(sizes)]
    for start, size in zip(starts, sizes, strict=False):
        piece = {n: x.narrow(sequences[n], start, size) if n in sequences else x for n, x in inputs.items()}
        *out, state = layer.step(**piece, state=state)
        outputs.append(out[0])
    torch.testing.assert_close(torch.cat(outputs, length_axis(want, length)), want, rtol=1e-9, atol=1e-10)


@EVERY_CASE
def test_wrong_shapes_and_types_are_refused_by_name(case: Case) -> None:
    inputs, layer = case.inputs(), case.layer()
    operator = getattr(torch.ops.foveate, case.form).default
    arguments = layer._arguments()
    for field in case.card.inputs:
        if field.name not in inputs:
            continue
        x = inputs[field.name]
        if field.shape not in ("?", "..."):
            with pytest.raises((ValueError, TypeError, RuntimeError), match=rf"\b{field.name}\b"):
                operator(**{**inputs, field.name: x.unsqueeze(0).unsqueeze(0).unsqueeze(0).unsqueeze(0)}, **arguments)
        wrong = x.to(torch.int64) if x.is_floating_point() else x.to(torch.float64) if x.dtype == torch.bool else x.to(torch.float32)
        with pytest.raises((TypeError, ValueError), match=rf"\b{field.name}\b"):
            operator(**{**inputs, field.name: wrong}, **arguments)
    floats = [n for n, x in inputs.items() if x.is_floating_point()]
    if len(floats) > 1:
        with pytest.raises((TypeError, ValueError), match=rf"\b{floats[-1]}\b"):
            operator(**{**inputs, floats[-1]: inputs[floats[-1]].float()}, **arguments)


@pytest.mark.parametrize("form", sorted(forms()), ids=str)
def test_wrong_options_are_refused_by_name(form: str) -> None:
    card = forms()[form]
    case = next(case for case in CASES if case.form == form)
    layer = getattr(foveate.nn, card.class_name)
    with pytest.raises(TypeError, match="no option 'sharpness'"):
        layer(**case.options, sharpness=1)
    for field in card.options:
        if field.choices:
            with pytest.raises(ValueError, match=rf"{field.name} must be one of .*{re.escape(field.choices[0])}.*got 'nonsense'"):
                case_with = {**case.options, field.name: ["nonsense"] if field.type.startswith("str[]") else "nonsense"}
                getattr(torch.ops.foveate, form).default(**case.inputs(), **{**case.layer()._arguments(), **case_with})
        if field.role == "required":
            with pytest.raises(TypeError, match=rf"needs the option '{field.name}'"):
                layer(**{n: v for n, v in case.options.items() if n != field.name})


@pytest.mark.parametrize("form", sorted(forms()), ids=str)
def test_the_example_of_the_documentation_runs(form: str) -> None:
    card = forms()[form]
    assert card.example, f"{form} has no example"
    assert card.summary and all(f.text for f in (*card.inputs, *card.options, *card.parameters)), f"{form}: a field without a meaning"
    torch.manual_seed(0)
    exec(card.example, {"torch": torch, "foveate": foveate})


@EVERY_CASE
def test_the_same_seed_gives_the_same_layer(case: Case) -> None:
    torch.manual_seed(3)
    one = getattr(foveate.nn, case.card.class_name)(**case.options)
    torch.manual_seed(3)
    two = getattr(foveate.nn, case.card.class_name)(**case.options)
    torch.manual_seed(4)
    two.reset_parameters()
    torch.manual_seed(3)
    two.reset_parameters()
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
