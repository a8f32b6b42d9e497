"""Minimal memory: the same numbers as full memory, gradients included, with one chunk's graph at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.compare.measure import peak_extra_bytes
from tests.contract import forms


def test_forms_that_offer_it_stream() -> None:
    offering = {form.name for form in forms().values() if any("minimal" in (option.choices or ()) for option in form.options)}
    assert {"performer_attention", "performer_multihead_attention", "favor_attention", "slim_performer"} <= offering
    assert all(forms()[name].streams for name in offering)


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return list(torch.autograd.grad(out, leaves, torch.randn(out.shape, generator=generator, dtype=out.dtype)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("N", "M"), [(13, 13), (4, 13), (13, 4), (1, 1), (0, 5), (5, 0)])
@pytest.mark.parametrize("options", [{}, {"denominator": "add", "denominator_eps": 1e-2}, {"stabilizer": "none", "renormalize": False}])
def test_parts_add_up_to_the_whole(causal: bool, N: int, M: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    q, k, v, W = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, N, 4), (2, 2, M, 4), (2, 2, M, 3), (6, 4)))
    mask = torch.rand(2, M) < 0.7
    outs = [foveate.performer_attention(q, k, v, key_mask=mask, projection=W, causal=causal, memory=memory, chunk=3, **options)
            for memory in ("full", "minimal")]  # fmt: skip
    torch.testing.assert_close(outs[1], outs[0])
    torch.testing.assert_close(*(gradients(out, [q, k, v, W]) for out in outs), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [None, 5, 11])
def test_layers_go_by_parts_with_their_projections(causal: bool, length: int | None) -> None:
    torch.manual_seed(0)
    layers = [foveate.nn.FavorMultiheadAttention(embed_dim=8, num_heads=2, causal=causal, memory=m, chunk=4).double() for m in ("full", "minimal")]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    context = None if length is None else torch.randn(2, length, 8, dtype=torch.float64)
    outs = [layer(x, context=context) for layer in layers]
    torch.testing.assert_close(outs[1], outs[0])
    found = [gradients(out, [x, *layer.parameters()]) for out, layer in zip(outs, layers, strict=True)]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_a_frozen_input_wants_no_gradient() -> None:
    q, k, v = torch.randn(3, 1, 1, 9, 4)
    v.requires_grad_()
    W = foveate.random_projection(6, 4)
    full, minimal = (foveate.performer_attention(q, k, v, projection=W, causal=True, memory=m, chunk=4) for m in ("full", "minimal"))
    torch.testing.assert_close(gradients(minimal, [v]), gradients(full, [v]))


def test_it_takes_the_memory_of_a_chunk() -> None:
    q, k, v = (torch.randn(1, 2, 8192, 16, requires_grad=True) for _ in range(3))
    W = foveate.random_projection(128, 16)

    def extra(memory: str) -> int:
        def step() -> object:
            out = foveate.performer_attention(q, k, v, projection=W, causal=True, memory=memory, chunk=256)
            return gradients(out, [q, k, v])

        return peak_extra_bytes(step) - 5 * q.numel() * 4  # beyond the result, its gradient and those of the inputs

    assert extra("full") > 8 * extra("minimal")


def test_what_looks_at_all_keys_at_once_is_refused() -> None:
    x = torch.randn(1, 1, 3, 4)
    with pytest.raises(ValueError, match="memory minimal needs a form that streams"):
        foveate.performer_attention(x, x, x, memory="minimal", stabilizer="sequence")
    with pytest.raises(ValueError, match="chunk must be positive"):
        foveate.favor_attention(x, x, x, memory="minimal", chunk=0)


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_can_be_differentiated_again(causal: bool) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(1, 1, 4, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    W = foveate.random_projection(3, 2, dtype=torch.float64)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return foveate.performer_attention(q, k, v, projection=W, causal=causal, memory="minimal", chunk=3)

    assert torch.autograd.gradgradcheck(function, leaves)


def test_half_precision_sums_gradients_of_parameters_in_single() -> None:
    torch.manual_seed(0)
    layer = foveate.nn.PerformerMultiheadAttention(embed_dim=8, num_heads=2, nb_features=8, causal=True, memory="minimal", chunk=2)
    x, w = torch.randn(2, 200, 8), torch.randn(200, 8)
    want = torch.autograd.grad((layer(x) * w).sum(), layer.value.weight)[0]
    layer.to(torch.bfloat16)
    got = torch.autograd.grad((layer(x.bfloat16()) * w.bfloat16()).sum(), layer.value.weight)[0]
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.02 * want.norm()
