"""Weights of Hugging Face's transformers: their modules and ours, the same state_dict, the same outputs and gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import foveate
from foveate._checkpoints import renamed, sources

pytest.importorskip("transformers")

from transformers import BigBirdConfig, LEDConfig, LongformerConfig, NystromformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel, BigBirdSelfAttention
from transformers.models.led.modeling_led import LEDEncoderAttention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

B, E, HEADS = 3, 16, 2
SIZE = {"num_heads": HEADS, "embed_dim": E, "dtype": torch.float64}
SHAPE = {"num_attention_heads": HEADS, "hidden_size": E, "attention_probs_dropout_prob": 0}


@pytest.fixture(autouse=True)
def softmax_in_the_type_of_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs has it in float32 where it says so, which would hide differences."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))


def moved(module: torch.nn.Module) -> Any:
    """In float64, with weights large enough for attention to be sharp."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def lengths(n: int, real: tuple[int, ...]) -> Tensor:
    return torch.arange(n) < torch.tensor(real)[:, None]


def assert_same(theirs: Any, ours: Any, n: int, real: Tensor) -> None:
    """Outputs at real tokens, and the gradient of the input."""
    x = torch.randn(B, n, E, dtype=torch.float64)
    results = []
    for run in (theirs, ours):
        leaf = x.clone().requires_grad_()
        out = run(leaf) * real[..., None]
        (out.square().sum() + out.sum()).backward()
        results.append((out.detach(), leaf.grad))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def assert_same_gradients(theirs: torch.nn.Module, ours: Any, source: str) -> None:
    wanted, _ = renamed(sources(ours.form)[source], {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    for name, want in wanted.items():  # those of local queries at global tokens and the like are zero in theirs, absent in ours
        torch.testing.assert_close(found.get(name, torch.zeros_like(want)), want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("led", [False, True])
@pytest.mark.parametrize("room", [None, 3])
@pytest.mark.parametrize("globals_", [(), ((0, 0), (0, 7), (0, 30), (1, 2))])
def test_longformer(globals_: tuple[tuple[int, int], ...], room: int | None, led: bool) -> None:
    n, window = 32, 4
    if led:
        config: Any = LEDConfig(d_model=E, encoder_attention_heads=HEADS, attention_window=[2 * window], attention_probs_dropout_prob=0)
        theirs = moved(LEDEncoderAttention(config, layer_id=0))
    else:
        config = LongformerConfig(attention_window=[2 * window], **SHAPE)
        theirs = moved(LongformerSelfAttention(config, layer_id=0))
    ours = foveate.nn.LongformerSelfAttention(window=window, max_globals=room, output_projection=led, **SIZE)
    source = foveate.nn.load_published(ours, theirs.state_dict())
    assert source == ("transformers, LED" if led else "transformers")
    mask = lengths(n, (32, 19, 8)).long()  # 0: padding, 1: local, 2: global
    for place in globals_:
        mask[place] = 2

    def run(x: Tensor) -> Tensor:
        extended = (mask - 1) * 10000.0
        masked, chosen = extended < 0, extended > 0
        out: Tensor = theirs(x, attention_mask=extended, is_index_masked=masked, is_index_global_attn=chosen, is_global_attn=bool(chosen.any()))[0]
        return out

    assert_same(run, lambda x: ours(x, key_mask=mask > 0, global_mask=mask == 2 if globals_ else None), n, mask > 0)
    assert_same_gradients(theirs, ours, source)


@pytest.mark.parametrize("training", [False, True])
def test_bigbird(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    n, block, r = 52, 4, 3
    config = BigBirdConfig(block_size=block, num_random_blocks=r, max_position_embeddings=64, **SHAPE)
    theirs = moved(BigBirdBlockSparseAttention(config, seed=1)).train(training)
    ours = foveate.nn.BigBirdSelfAttention(block=block, num_random_blocks=r, draw="zero", **SIZE)
    assert foveate.nn.load_published(ours, theirs.state_dict()) == "transformers"
    real = lengths(n, (52, 31, 6))
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(real.double(), block)
    tables: list[Tensor] = []
    draw = theirs._bigbird_block_rand_mask_with_head

    def watched(*arguments: Any, **named: Any) -> Any:
        drawn = draw(*arguments, **named)
        tables.append(torch.tensor(np.stack(drawn), dtype=torch.int64))
        return drawn

    monkeypatch.setattr(theirs, "_bigbird_block_rand_mask_with_head", watched)
    given = {"key_mask": real}

    def run(x: Tensor) -> Tensor:
        out: Tensor = theirs(x, band, rows, columns, blocked, blocked)[0]
        if training:
            given["random_blocks"] = tables[-1]
        return out

    assert_same(run, lambda x: ours(x, **given), n, real)
    assert_same_gradients(theirs, ours, "transformers")
    assert bool(tables[0].any()) == training


def test_bigbird_in_full_where_the_sequence_is_short() -> None:
    n = 17
    config = BigBirdConfig(
        hidden_size=E, num_attention_heads=HEADS, block_size=4, num_random_blocks=1, attention_probs_dropout_prob=0, use_bias=False
    )
    theirs = moved(BigBirdSelfAttention(config))
    ours = foveate.nn.BigBirdSelfAttention(block=4, num_random_blocks=1, full_up_to=(5 + 2) * 4, use_bias=False, **SIZE)
    assert foveate.nn.load_published(ours, theirs.state_dict()) == "transformers"
    real = lengths(n, (17, 9, 1))
    hidden = (~real).double()[:, None, None] * -1e9
    assert_same(lambda x: theirs(x, attention_mask=hidden)[0], lambda x: ours(x, key_mask=real), n, real)
    assert_same_gradients(theirs, ours, "transformers")


@pytest.mark.parametrize("landmarks", [4, 12, 24])
@pytest.mark.parametrize("taps", [1, 5])
def test_nystromformer(landmarks: int, taps: int) -> None:
    """Their inverse starts from the largest sum of the whole batch; from as many landmarks as tokens on, attention is exact."""
    n = 24
    config = NystromformerConfig(num_landmarks=landmarks, segment_means_seq_len=n, conv_kernel_size=taps, **SHAPE)
    theirs = moved(NystromformerSelfAttention(config))
    ours = foveate.nn.Nystromformer(
        num_landmarks=landmarks, conv_kernel_size=taps, masking="keys", inverse_init="original", out_projection=False, **SIZE
    )
    assert foveate.nn.load_published(ours, theirs.state_dict(), "huggingface/transformers") == "huggingface/transformers"
    real = lengths(n, (24, 15, 7))
    hidden = (~real).double()[:, None, None] * -1e9
    assert_same(lambda x: theirs(x, attention_mask=hidden)[0], lambda x: ours(x, key_mask=real), n, real)
    assert_same_gradients(theirs, ours, "huggingface/transformers")
