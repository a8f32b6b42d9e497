"""What is peculiar to Transformer-XL: memory across segments, its gradient, its length, padding, learned positions."""

import pytest
import torch
from torch import Tensor

import foveate

OPTIONS = {"vocab_size": 11, "num_layers": 2, "embed_dim": 6, "num_heads": 2, "head_dim": 4, "inner_dim": 8}


def model(**options: object) -> foveate.nn.Layer:
    torch.manual_seed(0)
    made = foveate.nn.TransformerXL(**{**OPTIONS, **options}, dtype=torch.float64)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(10)
    return made


def tokens(n: int, b: int = 2) -> Tensor:
    return torch.randint(11, (b, n), generator=torch.Generator().manual_seed(n))


def test_empty_memory_is_no_memory() -> None:
    layer = foveate.nn.TransformerXLLayer(embed_dim=6, num_heads=2, head_dim=4, inner_dim=8)
    x = torch.randn(2, 5, 6)
    assert torch.equal(layer(x, torch.empty(2, 0, 6)), layer(x))


def test_memory_off_makes_segments_independent() -> None:
    xl, ids = model(mem_len=0), tokens(8)
    _, state = xl.step(ids[:, :5])
    out, state = xl.step(ids[:, 5:], state=state)
    torch.testing.assert_close(out, xl(ids[:, 5:]))
    assert [tuple(m.shape) for m in state] == [(2, 0)] + 3 * [(2, 0, 6)]


def test_memory_passes_values_but_no_gradient() -> None:
    xl, ids = model(mem_len=8), tokens(8)
    _, state = xl.step(ids[:, :5])
    assert not any(m.requires_grad for m in state)
    out, _ = xl.step(ids[:, 5:], state=state)
    torch.testing.assert_close(out, xl(ids)[:, 5:])


@pytest.mark.parametrize(
    ("swapped", "lengths"),
    [(True, [5, 8, 8]), (False, [3, 6, 8])],  # executed: n + max(0, m - ext); documented: m + max(0, n - ext)
)
def test_ext_len_cuts_the_latest_tokens(swapped: bool, lengths: list[int]) -> None:
    xl, ids, state = model(mem_len=8, ext_len=2, swapped_lengths=swapped), tokens(15), None
    want = torch.empty(2, 0, 6, dtype=torch.float64)
    for length, segment in zip(lengths, ids.split(5, 1), strict=True):
        m, want = want.shape[1], torch.cat([want, xl.embedding[segment] * 6**0.5], 1)
        end = 5 + max(0, m - 2) if swapped else m + max(0, 5 - 2)
        want = want[:, max(0, end - 8) : end]
        _, state = xl.step(segment, state=state)
        assert {memory.shape[1] for memory in state} == {length}
        torch.testing.assert_close(state[1], want)


def test_a_batch_padded_on_the_left_is_as_its_rows_alone() -> None:
    xl, ids = model(mem_len=20), tokens(9)
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[1, :3] = False
    _, state = xl.step(ids[:, :5], keep[:, :5])
    out, state = xl.step(ids[:, 5:], keep[:, 5:], state=state)
    torch.testing.assert_close(out[1:], xl(ids[1:, 3:])[:, 2:])
    torch.testing.assert_close(out[:1], xl(ids[:1])[:, 5:])
    assert torch.equal(state[0], keep)


@pytest.mark.parametrize("clamp_len", [None, 2])
def test_learned_positions_against_a_plain_loop(clamp_len: int | None) -> None:
    torch.manual_seed(0)
    layer = foveate.nn.TransformerXLLayer(
        embed_dim=6, num_heads=2, head_dim=4, inner_dim=8, position="learned", table_length=4, clamp_len=clamp_len, pre_norm=True, dtype=torch.float64
    )
    x, memory = torch.randn(1, 3, 6, dtype=torch.float64), torch.randn(1, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p) / 2)
    block, u = layer.block, layer.bias.content
    h = torch.nn.functional.layer_norm(torch.cat([memory, x], 1), (6,), block.attention_norm.weight, block.attention_norm.bias)
    q, k, v = (h @ block.qkv.weight.T).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    farthest = min(3, clamp_len - 1 if clamp_len else 3)
    attended = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    for i in range(3):
        row = [3 - min(i + 4 - j, farthest) for j in range(i + 5)]  # the last row is distance 0
        keys = block.distance_keys[row].transpose(0, 1)
        scores = ((q[:, :, i + 4, None] + u[:, None]) * k[:, :, : i + 5] + q[:, :, i + 4, None] * keys).sum(-1) + block.distance_bias[row].T
        attended[:, :, i] = ((scores / 2).softmax(-1)[..., None] * v[:, :, : i + 5]).sum(2)
    y = x + attended.transpose(1, 2).flatten(2) @ block.out.weight.T
    z = torch.nn.functional.layer_norm(y, (6,), block.feed_forward_norm.weight, block.feed_forward_norm.bias)
    up, down = block.feed_forward.up, block.feed_forward.down
    torch.testing.assert_close(layer(x, memory), y + (z @ up.weight.T + up.bias).relu() @ down.weight.T + down.bias)


def attention_of(layer: foveate.nn.Layer, context: Tensor, segment: int) -> Tensor:
    """Causal attention without positions, from the last tokens of a context [1,M,6]."""
    q, k, v = (context @ layer.block.qkv.weight.T).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).flatten(2)[:, -segment:] @ layer.block.out.weight.T


def rest_of(layer: foveate.nn.Layer, y: Tensor) -> Tensor:
    """What follows the first residual sum: norms and network."""
    block = layer.block
    up, down, norms = block.feed_forward.up, block.feed_forward.down, (block.attention_norm, block.feed_forward_norm)
    z = torch.nn.functional.layer_norm(y, (6,), norms[0].weight, norms[0].bias)
    return torch.nn.functional.layer_norm(z + (z @ up.weight.T + up.bias).relu() @ down.weight.T + down.bias, (6,), norms[1].weight, norms[1].bias)


def test_absolute_learned_positions_join_segment_and_memory_from_the_end() -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 6, "num_heads": 2, "head_dim": 3, "inner_dim": 8}
    layer = foveate.nn.TransformerXLLayer(**sizes, position="absolute_learned", table_length=5, dtype=torch.float64)
    x, memory = torch.randn(1, 3, 6, dtype=torch.float64), torch.randn(1, 4, 6, dtype=torch.float64)
    table = layer.block.distance_keys.flatten(1)
    context = torch.cat([memory, x], 1) + table[[0, 0, 0, 1, 2, 3, 4]]  # the last row is distance 0; the first serves all beyond
    torch.testing.assert_close(layer(x, memory), rest_of(layer, context[:, -3:] + attention_of(layer, context, 3)))


def test_absolute_sinusoids_join_the_embeddings_once() -> None:
    xl, ids = model(num_layers=1, position="absolute", mem_len=9), tokens(8, b=1)
    layer = foveate.nn.TransformerXLLayer(embed_dim=6, num_heads=2, head_dim=4, inner_dim=8, position="absolute", dtype=torch.float64)
    layer.load_state_dict({name.replace("layers.0", "block"): x for name, x in xl.state_dict().items() if name != "embedding"})
    angle = torch.arange(7, -1, -1)[:, None] * 10000.0 ** (-torch.arange(3).double() / 3)
    context = xl.embedding[ids] * 6**0.5 + torch.cat([angle.sin(), angle.cos()], -1)
    _, state = xl.step(ids[:, :5])
    torch.testing.assert_close(state[1], xl.embedding[ids[:, :5]] * 6**0.5)
    out, _ = xl.step(ids[:, 5:], state=state)
    torch.testing.assert_close(out, rest_of(layer, context[:, -3:] + attention_of(layer, context, 3)))
    assert not [name for name in xl.state_dict() if "bias" in name.split(".")[0]]


def test_dropout_is_of_training_and_comes_from_the_generator() -> None:
    xl, plain, ids = model(dropout=0.3, attention_dropout=0.2), model(), tokens(6)
    torch.testing.assert_close(xl.eval()(ids), plain(ids))
    xl.train()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        out, state = xl.step(ids)
        torch.manual_seed(seed)
        assert torch.equal(out, xl(ids))  # the same draws, one segment
        draws.append(out)
    assert torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], draws[2])
    assert (draws[0] == 0).double().mean() == pytest.approx(0.3, abs=0.2)  # of the results
    assert (state[1] == 0).any() and not (state[1] == 0).all()  # of the embeddings


def test_the_draws_of_a_layer_drop_where_the_paper_says() -> None:
    sizes = {"embed_dim": 6, "num_heads": 2, "head_dim": 4, "inner_dim": 8, "dtype": torch.float64}
    layer = foveate.nn.TransformerXLLayer(**sizes, dropout=0.5).eval()
    x = torch.randn(1, 3, 6, dtype=torch.float64)
    nothing = torch.zeros(1, 3, 6, dtype=torch.bool)
    norms = layer.block.attention_norm, layer.block.feed_forward_norm
    z = torch.nn.functional.layer_norm(x, (6,), norms[0].weight, norms[0].bias)
    want = torch.nn.functional.layer_norm(z, (6,), norms[1].weight, norms[1].bias)
    torch.testing.assert_close(layer(x, output_keep=nothing, network_keep=nothing), want)
    with_half = foveate.nn.TransformerXLLayer(**sizes, attention_dropout=0.5).eval()
    with_half.load_state_dict(layer.state_dict())
    everything = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    with torch.no_grad():
        layer.block.out.weight.mul_(2)
    torch.testing.assert_close(with_half(x, attention_keep=everything), layer(x))  # weights kept are doubled


def test_a_tensor_that_the_options_need_is_asked_for() -> None:
    layer = foveate.nn.TransformerXLLayer(embed_dim=6, num_heads=2, head_dim=4, inner_dim=8)
    layer.bias.position = None
    with pytest.raises(ValueError, match=r"bias\.position is missing"):
        layer(torch.randn(1, 3, 6))


def test_biases_are_tied_unless_told() -> None:
    names = {n for n in model().state_dict() if n.startswith("biases")}
    assert names == {"biases.0.content", "biases.0.position"}
    assert len([n for n in model(untie_bias=True).state_dict() if n.startswith("biases")]) == 4


def test_far_positions_use_the_first_row() -> None:
    attend = foveate.nn.TransformerXLAttention(num_heads=2, head_dim=4, dtype=torch.float64)
    q, k, r = (torch.randn(*shape, 4, dtype=torch.float64) for shape in ((1, 2, 3), (1, 2, 9), (2, 5)))
    whole = torch.cat([r[:, :1].expand(-1, 4, -1), r], 1)
    torch.testing.assert_close(attend(q, k, k, r), attend(q, k, k, whole))


def test_a_step_compiles_whole() -> None:
    xl, ids = model(mem_len=4, same_length=True), tokens(8)
    _, state = xl.step(ids[:, :5])
    compiled = torch.compile(xl.step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids[:, 5:], None, state)[0], xl.step(ids[:, 5:], None, state)[0])


def test_impossible_states_and_options_are_refused() -> None:
    xl = model()
    with pytest.raises(ValueError, match="state must hold"):
        xl.step(tokens(3), state=[torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 3, 6, dtype=torch.float64)])
    for options, message in (
        ({"embed_dim": 5}, "embed_dim must be positive and even"),
        ({"same_length": True, "mem_len": 0}, "mem_len must be positive with same_length"),
        ({"clamp_len": 0}, "clamp_len must be positive"),
        ({"ext_len": -1}, "ext_len must not be negative"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"position": "absolute_learned"}, r"embed_dim must be num_heads \* head_dim"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**options)
