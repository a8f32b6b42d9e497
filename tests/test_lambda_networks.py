"""What is peculiar to lambda layers."""

import pytest
import torch
from torch import Tensor

import foveate


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("H", "W"), [(5, 8), (1, 6), (40, 30)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_window_is_a_sum_over_neighbours(H: int, W: int, memory_format: torch.memory_format) -> None:
    layer = foveate.nn.LambdaLayer(in_channels=8, dim_k=3, r=3, num_heads=2, dim_u=2).double().eval()
    x = random(2, 8, H, W).to(memory_format=memory_format).requires_grad_()
    state = layer.state_dict()
    q, v = (torch.nn.functional.conv2d(x, state[f"{n}.weight"]) for n in ("query", "value"))
    k = torch.nn.functional.conv2d(x, state["key.weight"])
    eps = 1 + 1e-5  # fresh running statistics
    q, v = (q / eps**0.5).view(2, 2, 3, H * W), (v / eps**0.5).view(2, 2, 4, H, W)
    near = torch.nn.functional.unfold(v.flatten(1, 2), 3, padding=1).view(2, 2, 4, 9, H * W)  # [B,U,V,taps,N]
    position = torch.einsum("kua,buvan->bkvn", state["conv.weight"].flatten(2), near) + state["conv.bias"].view(1, -1, 1, 1)
    content = torch.einsum("bukn,buvn->bkv", k.view(2, 2, 3, -1).softmax(-1), v.flatten(3))
    want = torch.einsum("bhkn,bkvn->bhvn", q, position + content.unsqueeze(-1)).reshape(2, 8, H, W)
    got = layer(x)
    torch.testing.assert_close(got, want)
    cotangent = random(2, 8, H, W, seed=1)
    torch.testing.assert_close(torch.autograd.grad(got, x, cotangent), torch.autograd.grad(want, x, cotangent))


def test_a_context_normalised_by_itself_does_not_leak_and_one_normalised_over_all_does() -> None:
    q, k, v = random(1, 2, 6, 3), random(1, 6, 3, 1, seed=1), random(1, 6, 4, 1, seed=2)
    other = k.clone()
    other[:, -1] += 3
    for norm, leaks in (("global", True), ("context", False)):
        one, two = (foveate.lambda_attention(q, keys, v, causal=True, key_norm=norm)[:, :, :-1] for keys in (k, other))
        assert torch.equal(one, two) is not leaks


def test_hidden_positions_of_a_map_change_nothing() -> None:
    layer = foveate.nn.LambdaLayer(in_channels=6, dim_k=3, r=3, num_heads=2).double().eval()
    x, mask = random(1, 6, 4, 5), torch.ones(1, 4, 5, dtype=torch.bool)
    mask[0, 2, 3] = False
    other = x.clone()
    other[:, :, 2, 3] += 1
    moved = (layer(x, mask) != layer(other, mask)).any(1)
    assert torch.equal(moved, ~mask)  # only its own query


def test_options_that_do_not_fit_are_refused() -> None:
    layer = foveate.nn.LambdaLayer
    with pytest.raises(ValueError, match="lambda_layer: n or r must be given, and not both"):
        layer(in_channels=8)
    with pytest.raises(ValueError, match="lambda_layer: r must be odd, got 4"):
        layer(in_channels=8, r=4)
    with pytest.raises(ValueError, match=r"lambda_layer: x must be \[B,C,n,n\] with n = 4"):
        layer(in_channels=8, n=4)(torch.randn(1, 8, 4, 5))
