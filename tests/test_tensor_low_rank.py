"""What is peculiar to the low-rank gate."""

import torch

import foveate


def test_a_gate_without_weights_lets_an_eighth_through() -> None:
    gate = foveate.nn.TensorLowRankGate(channels=3, height=4, width=5, rank=1)
    for p in (gate.channel, gate.row, gate.column):
        torch.nn.init.zeros_(p)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(gate(x), x / 8)


def test_gates_lie_between_nothing_and_the_sum_of_the_weights() -> None:
    gate, x = foveate.nn.TensorLowRankGate(channels=3, height=4, width=5, rank=6, weights="raw"), torch.rand(2, 3, 4, 5) + 0.1
    share = gate(x) / x
    assert (share > 0).all() and (share < 6).all()
    whole = foveate.nn.TensorLowRankGate(channels=3, height=4, width=5, rank=6, weights="raw", output="concat_relu")
    whole.load_state_dict(gate.state_dict())
    torch.testing.assert_close(whole(x), torch.cat([x, gate(x).relu()], 1))


def test_either_memory_format_gives_the_same() -> None:
    gate, x = foveate.nn.TensorLowRankGate(channels=4, height=5, width=3, rank=2), torch.randn(1, 4, 5, 3)
    torch.testing.assert_close(gate(x.to(memory_format=torch.channels_last)), gate(x))
