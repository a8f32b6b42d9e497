"""What is peculiar to Memformer: slots that do not see each other, forgetting, gradients through segments, replay, the PyPI package."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.training import backward_in_chunks

HEADS: dict[str, Any] = {"embed_dim": 8, "num_heads": 2}
SIZES: dict[str, Any] = {**HEADS, "vocab_size": 11, "encoder_depth": 1, "decoder_depth": 1, "slots": 3, "write_heads": 2}
BART: dict[str, Any] = {**HEADS, "inner_dim": 12, "depth": 2, "slots": 3}


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(foveate.nn, name)(**options).double()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def main_of(result: Any) -> Tensor:
    """The main result of a step."""
    return result[0]  # type: ignore[no-any-return]


def writes() -> list[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Each write as a function of slots [B,S,8] and tokens [B,N,8]."""
    paper, package, bart = made("MemformerMemory", **HEADS, slots=3), made("MemformerWrite", **HEADS), made("MemBartLayer", **HEADS, inner_dim=12)
    return [
        ("paper", lambda m, x: paper(x, m).new_memory),
        ("package", package),
        ("bart", lambda m, x: bart(x, m).new_memory),
    ]


@pytest.mark.parametrize("write", [w for _, w in writes()], ids=[n for n, _ in writes()])
def test_a_slot_sees_tokens_and_itself_but_no_other_slot(write: Callable[[Tensor, Tensor], Tensor]) -> None:
    memory, x = normal(2, 3, 8), normal(2, 5, 8)
    before = write(memory, x)
    changed = memory.clone()
    changed[:, 1] += 1
    after = write(changed, x)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]]) and not torch.allclose(after[:, 1], before[:, 1])
    assert not torch.allclose(write(memory, x + 1), before)


def test_a_slot_that_sees_no_token_is_pulled_to_its_first_state() -> None:
    layer = made("MemformerMemory", **HEADS, slots=3)
    x, memory, nothing = normal(2, 5, 8), normal(2, 3, 8), torch.zeros(2, 5, dtype=torch.bool)
    bias = layer.forgetting.forget_bias
    new = layer(x, memory, nothing).new_memory
    torch.testing.assert_close(new, torch.nn.functional.normalize(memory + bias, dim=-1, eps=0))
    for _ in range(200):
        memory = layer(x, memory, nothing).new_memory
    torch.testing.assert_close(memory, torch.nn.functional.normalize(bias, dim=-1, eps=0).expand(2, -1, -1))
    torch.testing.assert_close(layer(x, reset=torch.tensor([True, True])).new_memory, layer(x, memory).new_memory)


def test_a_low_temperature_decides_between_the_slot_and_one_token() -> None:
    layer = made("MemformerMemory", **HEADS, slots=3, temperature=1e-6)
    x, memory = normal(1, 5, 8), normal(1, 3, 8)
    q, k, k_x, v = (p @ w.weight.T for p, w in zip((memory, memory, x, x), (layer.forgetting.write.query, *[layer.forgetting.write.key] * 2,
                                                                          layer.forgetting.write.value), strict=True))  # fmt: skip
    want = torch.empty_like(memory)
    for i in range(3):
        for h in (slice(0, 4), slice(4, 8)):
            scores = torch.cat([(q[0, i, h] * k[0, i, h]).sum()[None], k_x[0, :, h] @ q[0, i, h]])
            best = int(scores.argmax())
            want[0, i, h] = memory[0, i, h] if best == 0 else v[0, best - 1, h]
    torch.testing.assert_close(layer(x, memory).new_memory, torch.nn.functional.normalize(want + layer.forgetting.forget_bias, dim=-1, eps=0))


@pytest.mark.parametrize(("name", "options"), [("Memformer", SIZES), ("Memformer", {**SIZES, "write": "forget"}), ("MemBartEncoder", BART)])
def test_sequences_may_be_reordered_and_begin_at_any_segment(name: str, options: dict[str, Any]) -> None:
    model = made(name, **options)
    segment = (lambda: torch.randint(11, (3, 4))) if name == "Memformer" else lambda: normal(3, 4, 8)
    first, second = segment(), segment()
    state = model.step(first)[-1]
    out = main_of(model.step(second, state=state))
    order = torch.tensor([2, 0])
    torch.testing.assert_close(main_of(model.step(second[order], state=[x.index_select(0, order) for x in state])), out[order])
    begins = torch.tensor([False, True, False])
    again = main_of(model.step(second, reset=begins, state=state))
    torch.testing.assert_close(again[[0, 2]], out[[0, 2]])
    torch.testing.assert_close(again[1], main_of(model.step(second))[1])
    assert not torch.allclose(again[1], out[1])


def test_padding_of_a_segment_does_not_reach_the_memory() -> None:
    for options in (SIZES, {**SIZES, "write": "forget"}):
        model = made("Memformer", **options)
        ids, mask = torch.randint(11, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
        mask[:, 4:] = False
        *_, padded = model.step(ids, src_mask=mask)
        *_, short = model.step(ids[:, :4])
        torch.testing.assert_close(padded[0], short[0])


def test_a_decoder_goes_on_token_by_token() -> None:
    decoder, x, encoded = made("MemformerDecoder", **HEADS, depth=2), normal(2, 5, 8), normal(2, 4, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, :2] = False
    state, outs = None, []
    for i in range(5):
        out, state = decoder.step(x[:, i : i + 1], encoded, mask[:, : i + 1], state=state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), decoder(x, encoded, mask))
    with pytest.raises(ValueError, match="state must hold 4 tensors, got 1"):
        decoder.step(x, encoded, state=[x])


# --- gradients through segments -----------------------------------------------------------------------------------------------


def task(model: Any) -> Callable[[Any, Any], tuple[Tensor, Any]]:
    """The loss of a segment that comes with its target, or with none."""

    def step(chunk: Any, state: Any) -> tuple[Tensor, Any]:
        src, tgt = chunk
        out, _, state = model.step(src, None if tgt is None else tgt[:, :-1], state=state)
        if tgt is None:
            return out.new_zeros(()), state
        return torch.nn.functional.cross_entropy(out.transpose(1, 2), tgt[:, 1:]), state

    return step


def through_all(step: Any, chunks: list[Any]) -> Tensor:
    """The same by one graph over all segments."""
    state, losses = None, []
    for chunk in chunks:
        loss, state = step(chunk, state)
        losses.append(loss)
    return torch.stack(losses).sum()


def gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("options", [{}, {"write": "forget"}, {"num_updates": 2}])
@pytest.mark.parametrize("last_only", [True, False])
def test_replay_gives_the_gradient_of_the_whole(options: dict[str, Any], last_only: bool) -> None:
    model = made("Memformer", **SIZES, **options)
    sources, targets = torch.randint(11, (4, 2, 5)), torch.randint(11, (4, 2, 6))
    chunks = [(s, None if last_only and i < 3 else t) for i, (s, t) in enumerate(zip(sources, targets, strict=True))]
    want = through_all(task(model), chunks)
    want.backward()
    by_graph = gradients(model)
    got = backward_in_chunks(task(model), chunks)
    torch.testing.assert_close(got, want.detach())
    by_replay = gradients(model)
    assert by_replay.keys() == by_graph.keys() and {"memory_slots", "forgetting.forget_bias"} & by_replay.keys()
    for name, gradient in by_graph.items():
        torch.testing.assert_close(by_replay[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_replay_repeats_the_draws_of_each_segment() -> None:
    encoder = made("MemBartEncoder", **BART)

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        out, (memory,) = encoder.step(torch.nn.functional.dropout(x, 0.4), state=state)
        return torch.nn.functional.dropout(out, 0.4).square().sum(), [torch.nn.functional.dropout(memory, 0.4)]

    chunks = [normal(2, 4, 8) for _ in range(3)]
    torch.manual_seed(5)
    want = through_all(step, chunks)
    want.backward()
    by_graph, goes_on = gradients(encoder), torch.rand(3)
    torch.manual_seed(5)
    torch.testing.assert_close(backward_in_chunks(step, chunks), want.detach())
    assert torch.equal(torch.rand(3), goes_on)  # as if there had been one forward
    for name, gradient in gradients(encoder).items():
        torch.testing.assert_close(gradient, by_graph[name])


def most_kept(run: Callable[[], Any]) -> int:
    """The most numbers that graphs hold at any time of a run."""
    now = most = 0

    class Kept:
        def __init__(self, x: Tensor) -> None:
            nonlocal now, most
            self.x, count = x, x.numel()
            now += count
            most = max(most, now)
            weakref.finalize(self, gone, count)

    def gone(count: int) -> None:
        nonlocal now
        now -= count

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x):
        run()
    return most


def test_the_graphs_that_replay_holds_do_not_grow_with_the_number_of_segments() -> None:
    model = made("Memformer", **SIZES)

    segment = torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 6, dtype=torch.int64)

    def replayed(count: int) -> int:
        return most_kept(lambda: backward_in_chunks(task(model), [segment] * count))

    def whole(count: int) -> int:
        return most_kept(lambda: through_all(task(model), [segment] * count).backward())

    assert replayed(3) == replayed(12)
    assert whole(12) > 3 * whole(3) and whole(3) > 2 * replayed(3)


# --- compiled, refused, published ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [("Memformer", SIZES), ("MemBartEncoder", BART)])
def test_a_step_compiles_whole(name: str, options: dict[str, Any]) -> None:
    model = made(name, **options)
    x = torch.randint(11, (2, 5)) if name == "Memformer" else normal(2, 5, 8)
    *_, state = model.step(x)
    want = model.step(x, state=state)
    got = torch.compile(model.step, fullgraph=True, backend="aot_eager")(x, state=state)
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[-1][0], want[-1][0])


def test_impossible_options_and_inputs_are_refused() -> None:
    for name, options, message in (
        ("MemformerMemory", {**HEADS, "temperature": 0.0}, "temperature must be positive"),
        ("MemformerMemory", {**HEADS, "slots": 0}, "slots must be positive"),
        ("MemformerWrite", {**HEADS, "num_updates": 0}, "num_updates must be positive"),
        ("MemformerEncoder", {**HEADS, "buckets": 2}, "buckets must be 4 or more"),
        ("Memformer", {**SIZES, "write_heads": 3}, "num_heads must divide embed_dim"),
        ("MemBartEncoder", {**BART, "depth": 0}, "depth, slots and max_len must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            made(name, **options)
    with pytest.raises(ValueError, match="tgt has no decoder"):
        made("Memformer", **SIZES, encoder_only=True)(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64))


@pytest.fixture
def package() -> tuple[Any, Any, Any]:
    """The PyPI package's model with weights off their initial ones, ours with the same, and the package."""
    theirs = pytest.importorskip("memformer")
    torch.manual_seed(1)
    options = {"num_tokens": 11, "depth": 2, "heads": 2, "max_seq_len": 5}
    model = theirs.Memformer(
        dim=8, num_memory_slots=3, mem_update_attn_heads=4, num_mem_updates=2,
        **{f"enc_{n}": x for n, x in options.items()}, **{f"dec_{n}": x for n, x in {**options, "num_tokens": 9}.items()},
    ).double()  # fmt: skip
    ours = made("Memformer", **HEADS, vocab_size=11, target_vocab_size=9, encoder_depth=2, decoder_depth=2, slots=3, write_heads=4, num_updates=2,
                swapped_buckets=True)  # fmt: skip
    assert foveate.nn.load_published(ours, model.state_dict()) == "lucidrains/memformer"
    return model, ours, theirs


def test_segments_agree_with_the_package(package: tuple[Any, Any, Any]) -> None:
    model, ours, _ = package
    src, tgt = torch.randint(11, (3, 2, 5)), torch.randint(9, (2, 6))
    mems, state = None, None
    for i, segment in enumerate(src):
        last = tgt if i == 2 else None
        encoded, mems, loss = model(segment, last, mems=mems)
        out, ours_encoded, state = ours.step(segment, None if last is None else last[:, :-1], state=state)
        torch.testing.assert_close(ours_encoded, encoded)
        torch.testing.assert_close(state[0], mems)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(out.transpose(1, 2), tgt[:, 1:]), loss)


def test_replay_agrees_with_the_package(package: tuple[Any, Any, Any]) -> None:
    model, ours, theirs = package
    src, tgt = torch.randint(11, (2, 15)), torch.randint(9, (2, 6))
    theirs.memory_replay_backprop(model, src, tgt)
    segments = src.split(5, 1)
    backward_in_chunks(task(ours), [(s, tgt if i == 2 else None) for i, s in enumerate(segments)])
    want, got = {n: p.grad for n, p in model.named_parameters()}, gradients(ours)
    torch.testing.assert_close(got["memory_slots"], want["memory_slots"])
    torch.testing.assert_close(got["encoder.embedding"], want["encoder.token_emb.weight"])
    torch.testing.assert_close(got["update.gate.state_weight"], want["gru.weight_hh"])
    torch.testing.assert_close(got["decoder.head.weight"], want["decoder.net.to_logits.weight"])
    torch.testing.assert_close(got["encoder.stack.bias_table"], want["encoder.layer_blocks.rel_pos_emb.relative_attention_bias.weight"])
