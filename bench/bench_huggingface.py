"""Forward and backward of self-attention modules: Hugging Face's transformers beside foveate, with the same weights and inputs.

    python bench/bench_huggingface.py --length 4096 --rounds 5

Both run in turns, so that whatever else the machine does falls on both; see contest.py for what the columns say.
"""

import argparse
from collections.abc import Iterator

import torch
from contest import Duel, duels
from transformers import BigBirdConfig, LongformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

import foveate

E, HEADS = 768, 12
SHAPE = {"hidden_size": E, "num_attention_heads": HEADS, "attention_probs_dropout_prob": 0.0}
SIZE = {"embed_dim": E, "num_heads": HEADS}


def longformer(n: int, batch: int, globals_: int, **options: int) -> Duel:
    """The base model's window of 256 on each side, with so many global tokens in front."""
    theirs = LongformerSelfAttention(LongformerConfig(attention_window=[512], **SHAPE), layer_id=0).eval()
    ours = foveate.nn.LongformerSelfAttention(window=256, **options, **SIZE)
    ours.load_state_dict(theirs.state_dict())
    chosen = torch.arange(n).expand(batch, n) < globals_
    extended = chosen.float() * 10000
    theirs_given = {"attention_mask": extended, "is_index_masked": extended < 0, "is_index_global_attn": chosen, "is_global_attn": globals_ > 0}
    mask = chosen if globals_ and "global_tokens" not in options else None
    how = "".join(f", {name}={value}" for name, value in options.items())
    return Duel(
        f"Longformer, {globals_} global{how}",
        lambda x: theirs(x, **theirs_given)[0],
        lambda x: ours(x, global_mask=mask),
        (torch.randn(batch, n, E),),
        (list(theirs.parameters()), list(ours.parameters())),
    )


def bigbird(n: int, batch: int) -> Duel:
    """The released model's blocks of 64, 3 of them random; its table outside training."""
    theirs = BigBirdBlockSparseAttention(BigBirdConfig(block_size=64, num_random_blocks=3, **SHAPE), seed=0).eval()
    ours = foveate.nn.BigBirdSelfAttention(block=64, num_random_blocks=3, draw="zero", **SIZE)
    ours.load_state_dict(theirs.state_dict())
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(batch, n), 64)
    return Duel(
        "BigBird, blocks of 64",
        lambda x: theirs(x, band, rows, columns, blocked, blocked)[0],
        ours,
        (torch.randn(batch, n, E),),
        (list(theirs.parameters()), list(ours.parameters())),
    )


def pairs(n: int, batch: int) -> Iterator[Duel]:
    yield longformer(n, batch, 0)
    yield longformer(n, batch, 1, max_globals=1)
    yield longformer(n, batch, 1, global_tokens=1)
    yield longformer(n, batch, 64, max_globals=64)
    yield longformer(n, batch, 64, global_tokens=64)
    yield longformer(n, batch, 64)
    yield bigbird(n, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens, a multiple of 512")
    parser.add_argument("--batch", type=int, default=1)
    duels(parser, lambda given: iter([lambda made=made: made for made in pairs(given.length, given.batch)]), f"E={E} H={HEADS}")


if __name__ == "__main__":
    main()
