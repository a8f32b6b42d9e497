"""What is peculiar to the Compressive Transformer: who trains what, segments, sequences that begin, the PyPI package."""

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate

SIZES: dict[str, Any] = {"vocab_size": 11, "embed_dim": 8, "depth": 3, "num_heads": 2, "seq_len": 4, "ratio": 2}


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    made = foveate.nn.CompressiveTransformer(**{**SIZES, **options}).double().eval()
    with torch.no_grad():
        made.positions.normal_()
    return made


def steps(layer: Any, ids: Tensor, **inputs: Any) -> tuple[Tensor, list[Tensor]]:
    state, outs = None, []
    for segment in ids.split(4, 1):
        logits, _, *state = layer.step(segment, state=state, **inputs)
        state = state[0]
        outs.append(logits)
    return torch.cat(outs, 1), state


@pytest.mark.parametrize("options", [{}, {"memory_layers": [2], "gru_gated": False}, {"zero_memory": True}, {"compression": "most_used"}])
def test_segment_by_segment_equals_the_whole_and_the_future_is_not_seen(options: dict[str, Any]) -> None:
    layer, ids = model(**options), torch.randint(11, (2, 18))
    whole = layer(ids).logits
    torch.testing.assert_close(steps(layer, ids)[0], whole, rtol=1e-12, atol=1e-12)
    for cut in (3, 4, 9, 17):
        changed = ids.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % 11
        other = layer(changed).logits
        assert torch.equal(other[:, :cut], whole[:, :cut]) and not torch.equal(other[:, cut:], whole[:, cut:])


def test_memories_have_their_lengths_and_rows_of_the_batch_may_be_reordered() -> None:
    layer, ids = model(mem_len=6, cmem_len=3), torch.randint(11, (3, 24))
    _, state = steps(layer, ids)
    assert [x.shape[1] for x in state] == [6, 3] + 3 * [6, 3]
    order, more = torch.tensor([2, 0]), torch.randint(11, (3, 4))
    moved = layer.step(more[order], state=[x.index_select(0, order) for x in state]).logits
    torch.testing.assert_close(moved, layer.step(more, state=state).logits[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"compression": "mean", "enhanced_recurrence": False}])
def test_a_sequence_that_begins_does_not_see_what_was_before(options: dict[str, Any]) -> None:
    layer = model(**options)
    first, second, then = torch.randint(11, (3, 2, 12))
    states = [steps(layer, ids)[1] for ids in (first, second)]
    outs = []
    for state in states:
        logits, _, state = layer.step(then[:, :4], reset=torch.tensor([True, False]), state=state)
        logits2, _, _ = layer.step(then[:, 4:8], state=state)
        outs.append(torch.cat([logits, logits2], 1))
    torch.testing.assert_close(outs[0][0], outs[1][0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(outs[0][1], outs[1][1])


@pytest.mark.parametrize("loss", ["attention", "autoencoding"])
def test_the_loss_trains_the_compression_alone_and_the_task_trains_the_rest(loss: str) -> None:
    layer = foveate.nn.CompressiveTransformerLayer(embed_dim=8, num_heads=2, head_dim=4, inner_dim=8, mem_len=4, ratio=2, loss=loss).double()
    x, memory = torch.randn(2, 2, 4, 8, dtype=torch.float64)
    out = layer(x, memory)
    trained = {n for n, p in layer.named_parameters() if torch.autograd.grad(out.loss, p, retain_graph=True, allow_unused=True)[0] is not None}
    assert trained == {n for n, _ in layer.named_parameters() if n.startswith(("compressor", "decoder"))}
    used = {n for n, p in layer.named_parameters() if torch.autograd.grad(out.out.sum(), p, retain_graph=True, allow_unused=True)[0] is not None}
    assert used == {n for n, _ in layer.named_parameters()} - trained


def test_most_used_keeps_what_attention_reads_most_earlier_ones_first() -> None:
    rows = torch.arange(6.0).reshape(1, 6, 1)
    compress = foveate.nn.MemoryCompression(embed_dim=1, ratio=2, compression="most_used")
    kept = compress(rows, torch.tensor([[0.1, 0.5, 0.2, 0.5, 0.2, 0.1]]))
    assert kept.flatten().tolist() == [1, 2, 3]


def test_distances_have_rows_of_their_own_from_the_start() -> None:
    ours, shifting, ids = model(), model(as_package=True), torch.randint(11, (2, 20))
    state = None
    for i, segment in enumerate(ids.split(4, 1)):
        out, other = ours.step(segment, state=state), shifting.step(segment, state=state)
        assert torch.allclose(out.logits, other.logits) == (i >= 2)  # both memories are full
        state = out.state


def test_losses_are_averaged_or_summed_and_drop_attention_weights_in_training() -> None:
    one, other, ids = model().train(), model(sum_losses=True).train(), torch.randint(11, (2, 8))
    torch.testing.assert_close(3 * one(ids).loss, other(ids).loss)
    dropping = model(reconstruction_dropout=0.5)
    assert dropping(ids).loss == 0
    torch.manual_seed(2)
    first = dropping.train()(ids)
    torch.manual_seed(2)
    assert torch.equal(dropping(ids).loss, first.loss) and not torch.allclose(first.loss, one(ids).loss)
    torch.testing.assert_close(first.logits, one(ids).logits)  # it is of the loss alone


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mogrify": True},
        {"gru_gated": False, "ff_glu": True, "memory_layers": [2, 3], "enhanced_recurrence": False},
        {"emb_dim": 4, "mem_len": 6, "cmem_len": 4},
    ],
)
def test_segments_agree_with_the_package(options: dict[str, Any]) -> None:
    package = pytest.importorskip("compressive_transformer_pytorch")
    torch.manual_seed(1)
    renamed = {"gru_gated": "gru_gated_residual", "mogrify": "mogrify_gru"}
    theirs = package.CompressiveTransformer(
        num_tokens=11, dim=8, seq_len=4, depth=3, heads=2, cmem_ratio=2, **{renamed.get(n, n): x for n, x in options.items()}
    ).double()
    with torch.no_grad():
        theirs.pos_emb.normal_()
    ours = model(as_package=True, **options).train()
    assert foveate.nn.load_published(ours, theirs.state_dict()) == "lucidrains/compressive-transformer-pytorch"
    memories, state = None, None
    for segment in torch.randint(11, (2, 26)).split(4, 1):  # the last is short
        logits, memories, loss = theirs(segment, memories=memories)
        out = ours.step(segment, state=state)
        state = out.state
        torch.testing.assert_close(out.logits, logits)
        torch.testing.assert_close(out.loss, loss.squeeze())
        torch.testing.assert_close(torch.stack(state[2::2]), memories.mem)
        torch.testing.assert_close(torch.stack(state[3::2]), memories.compressed_mem)


def test_keys_and_values_train_on_after_the_first_compression() -> None:
    layer = model().train()
    for _ in range(2):
        layer.zero_grad()
        out = layer(torch.randint(11, (2, 12)))
        (out.logits.square().sum() + out.loss).backward()
        assert all(block.key.weight.grad.any() and block.value.weight.grad.any() for block in layer.layers.children())
