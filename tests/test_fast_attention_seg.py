"""What is peculiar to fast attention: vectors of length 0, keys of several frames, branches that are not run."""

import pytest
import torch

import foveate


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_vectors_of_length_zero_count_for_nothing(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (random(1, 1, 6, 4).to(dtype) for _ in range(3))
    q[:, :, 2], k[:, :, 3] = 0, 0
    out = foveate.fast_attention(q, k, v)
    assert (out[:, :, 2] == 0).all()
    others = torch.tensor([0, 1, 2, 4, 5])
    torch.testing.assert_close(out, foveate.fast_attention(q, k[:, :, others], v[:, :, others]), atol=1e-3, rtol=1e-2)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    assert foveate.fast_attention(*leaves).isfinite().all()


def test_weights_are_cosines() -> None:
    torch.manual_seed(0)
    q, k = random(1, 1, 5, 4), random(1, 1, 7, 4)
    weights = foveate.fast_attention(q * 3, k * 0.1, torch.eye(7, dtype=torch.float64).expand(1, 1, 7, 7))
    torch.testing.assert_close(weights, torch.nn.functional.cosine_similarity(q.unsqueeze(3), k.unsqueeze(2), -1))


def test_the_mean_counts_the_keys_that_take_part() -> None:
    torch.manual_seed(0)
    q, k, v = random(2, 1, 5, 4), random(2, 1, 7, 4), random(2, 1, 7, 3)
    mask = torch.arange(7).expand(2, 7) < torch.tensor([[7], [3]])
    got = foveate.fast_attention(q, k, v, mask, normalize_by_n=True)
    torch.testing.assert_close(got[1:], foveate.fast_attention(q[1:], k[1:, :, :3], v[1:, :, :3]) / 3)
    memory = foveate.fast_attention_step(q, k[:, :, :4], v[:, :, :4], normalize_by_n=True)[1]
    whole, _ = foveate.fast_attention_step(q, k[:, :, 4:], v[:, :, 4:], state=memory, normalize_by_n=True)
    torch.testing.assert_close(whole, foveate.fast_attention(q, k, v, normalize_by_n=True))


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_a_frame_sees_the_keys_of_the_last_frames(frames: int) -> None:
    torch.manual_seed(0)
    q, k, v = random(2, 5, 2, 6, 4), random(2, 5, 2, 6, 4), random(2, 5, 2, 6, 3)
    mask = torch.rand(2, 5, 6) < 0.7
    got = foveate.fast_attention_video(q, k, v, mask, frames=frames, normalize_by_n=True)
    for i in range(5):
        seen = slice(max(0, i - frames + 1), i + 1)
        keys, values = (x[:, seen].transpose(1, 2).flatten(2, 3) for x in (k, v))
        want = foveate.fast_attention(q[:, i], keys, values, mask[:, seen].flatten(1), normalize_by_n=True)
        torch.testing.assert_close(got[:, i], want)


def test_the_block_reads_earlier_frames() -> None:
    torch.manual_seed(0)
    block = foveate.nn.FastAttentionBlock(in_chan=6, qk_dim=4, frames=2).double().eval()
    x = random(3, 1, 6, 3, 5)
    state, outs = None, []
    for frame in x:
        out, state = block.step(frame, state=state)
        outs.append(out)

    def tokens(part, frame, slope=1.0):
        norm = part.norm
        made = torch.nn.functional.conv2d(frame, part.conv.weight)
        made = torch.nn.functional.batch_norm(made, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return torch.nn.functional.leaky_relu(made, slope).flatten(2).transpose(1, 2).unsqueeze(1)

    keys, values = (torch.cat([tokens(part, x[i], slope) for i in (1, 2)], 2) for part, slope in ((block.key, 1.0), (block.value, 0.01)))
    read = foveate.fast_attention(tokens(block.query, x[2]), keys, values).squeeze(1).transpose(1, 2).unflatten(-1, (3, 5))
    torch.testing.assert_close(outs[2], tokens(block.out, read, 0.01).squeeze(1).transpose(1, 2).unflatten(-1, (3, 5)) + x[2])


def test_a_branch_that_is_off_is_not_run() -> None:
    torch.manual_seed(0)
    module = foveate.nn.FastAttentionFusion(in_chan=6, out_chan=4, qk_dim=4, up_flag=False)
    smooth, up_feat = module(torch.randn(2, 6, 4, 5))
    assert smooth.shape == (2, 4, 4, 5)
    assert up_feat.shape == (2, 0, 4, 5)
    assert (module.up.norm.running_mean == 0).all()
    assert (module.smooth.norm.running_mean != 0).any()
    with pytest.raises(ValueError, match="up_flag or smf_flag must be on"):
        foveate.nn.FastAttentionFusion(in_chan=6, up_flag=False, smf_flag=False)
