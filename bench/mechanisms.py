"""Every mechanism against its paper's equations written straight in torch: `make bench-mechanisms`.

Forward and backward together, of inputs and weights, in float32, in turns within each round; the two must agree before they are measured.
The last columns say how much memory each holds at once beyond what it was given. The last line is the geometric mean over the rows. With
--exact every mechanism on sequences runs at N=4096 beside exact attention instead: on queries, keys and values torch's, as a layer ours.

    python bench/mechanisms.py [--threads 1] [--rounds 5] [--only Criss] [--exact | --packages]

With --packages public implementations take the place of the equations by hand, each on the same weights; one that is not installed is
passed over, and the command that installs it is named.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import eager
import torch
from contest import Duel, duels, first
from torch import Tensor, nn

import foveate
from foveate.compare.contestants import SDPA, choose
from foveate.compare.inputs import Size

E, HEADS, N = 512, 8, 4096
LAYER = {"embed_dim": E, "num_heads": HEADS}
MAP = (2, 64, 64, 64)  # B, C, H, W

Eager = Callable[[Any, Tensor], Tensor]


def duel(name: str, form: str, by_hand: Eager, shape: tuple[int, ...], **options: Any) -> Duel:
    """A layer with its defaults and these options, evaluated, beside the same by hand on the same weights."""
    layer = getattr(foveate.nn, form)(**options).eval()
    with torch.no_grad():
        for weight in layer.parameters():  # gates that start at zero would hide what they gate
            weight.add_(0.02 * torch.randn_like(weight))
    return Duel(name, partial(by_hand, layer), partial(first, layer), (torch.randn(shape),), (list(layer.parameters()),) * 2)


def bare(name: str, function: str, by_hand: Eager, shapes: tuple[tuple[int, ...], ...], **options: Any) -> Duel:
    """A function without weights beside the same by hand, on inputs between 0 and 1 where it takes shares."""
    draw = torch.rand if function == "tanimoto_similarity" else torch.randn
    return Duel(name, by_hand, partial(getattr(foveate, function), **options), tuple(draw(shape) for shape in shapes), ([], []))


def mechanisms() -> Iterator[Callable[[], Duel]]:
    """Against the equations by hand."""
    sequence, shorter, heads = (1, N, E), (1, 1024, E), (1, HEADS, N, E // HEADS)
    make, give = partial(partial, duel), partial(partial, bare)
    yield give("nystrom_attention, 64 landmarks", "nystrom_attention", eager.nystrom_attention, (heads,) * 3, num_landmarks=64)
    yield make("Nystromformer, 64 landmarks", "Nystromformer", eager.nystromformer, sequence, **LAYER)
    for kind in ("dense", "random", "factorized_random"):
        name = f"Synthesizer, {kind.replace('factorized', 'factorised').replace('_', ' ')}, N=1024"
        yield make(name, "Synthesizer", eager.synthesizer, shorter, max_len=1024, kinds=[kind], **LAYER)
    yield make("Input-independent, N=1024", "InputIndependentAttention", eager.input_independent, shorter, max_len=1024, **LAYER)
    yield make("Memory-compressed, 3 tokens a slot", "MemoryCompressedAttention", eager.memory_compressed, sequence, left_padded=True, **LAYER)
    yield give("block_local_attention, blocks of 256", "block_local_attention", eager.block_local, (heads,) * 3, block=256)
    yield make("Lambda layer, window of 23", "LambdaLayer", eager.lambda_layer, MAP, in_channels=MAP[1], r=23)
    small = (*MAP[:2], 32, 32)
    yield make("Lambda layer, whole map of 32 by 32", "LambdaLayer", eager.lambda_layer, small, in_channels=MAP[1], n=32)
    for variant in ("qkv", "kv"):
        options = {"variant": variant}
        of = partial(eager.kronecker_operator, variant=variant)
        yield give(f"kronecker_attention_operator, {variant}", "kronecker_attention_operator", of, (MAP,), num_heads=1, scale=1.0, **options)
        yield make(f"Kronecker attention, {variant}", "KroneckerAttention", eager.kronecker, MAP, in_channels=MAP[1], **options)
    yield make("Global context block", "GlobalContextBlock", eager.global_context, MAP, in_channels=MAP[1])
    yield make("EMA unit, 64 bases", "EMAU", eager.ema_unit, MAP, in_channels=MAP[1])
    thin = (MAP[0], MAP[1] // 8, *MAP[2:])
    yield give("criss_cross, width 8 of 64", "criss_cross", eager.criss_cross, (thin, thin, MAP))
    yield make("Criss-cross attention, twice", "CrissCrossAttention", eager.criss_cross_attention, MAP, channels=MAP[1])
    widths = {"in_channels": MAP[1], "key_channels": MAP[1] // 2, "value_channels": MAP[1], "out_channels": MAP[1]}
    yield make("Interlaced sparse block, tiles of 8 by 8", "InterlacedSparseBlock", eager.interlaced_block, MAP, **widths)
    for axis, name in ((1, "down"), (2, "across")):
        of = partial(eager.axis_attention, axis=axis)
        yield give(f"axis_attention, {name}", "axis_attention", of, ((MAP[0], *MAP[2:], HEADS, MAP[1] // HEADS),) * 3, axis=axis)
    yield make("Axial attention, summed", "AxialAttention", eager.axial_attention, MAP, dim=MAP[1], num_heads=HEADS, dim_index=1)
    yield make("Light non-local block, ratio 0.25", "LightNonLocalBlock", eager.light_non_local, MAP, in_channels=MAP[1], ratio=0.25)
    sides = {"channels": MAP[1], "height": MAP[2], "width": MAP[3]}
    yield make("Tensor low-rank gate, rank 64", "TensorLowRankGate", eager.tensor_low_rank, MAP, **sides)
    for over, name in (((2, 3), "positions"), ((1,), "channels")):
        of = partial(eager.tanimoto, over=over)
        yield give(f"tanimoto_similarity, over {name}", "tanimoto_similarity", of, (MAP, MAP), over=name)
    yield make("FracTAL", "FractalAttention", eager.fractal_attention, MAP, channels=MAP[1])


def rivals() -> Iterator[Callable[[], Duel]]:
    """Against packages: the module of each, its options, and ours with the options that make it the same."""
    sequence = (1, N, E)
    nystrom = {"num_landmarks": 64, "conv_kernel_size": 33, "inverse_init": "global_both", "segments": "left_padded", "bias": False}
    given = {"dim": E, "heads": HEADS, "num_landmarks": 64}
    yield from rival("nystrom-attention", "NystromAttention", given, "Nystromformer", sequence, **nystrom, **LAYER)
    options = {"num_landmarks": 64, "conv_kernel_size": 65, "inverse_init": "original", "out_projection": False}
    yield from rival("transformers", "NystromformerSelfAttention", {}, "Nystromformer", sequence, **options, **LAYER)
    given = {"dim": E, "heads": HEADS}
    yield from rival(
        "memory-compressed-attention", "MemoryCompressedAttention", given, "MemoryCompressedAttention", sequence, left_padded=True, **LAYER
    )
    channels = {"dim": MAP[1], "heads": HEADS}
    given = {"dim": MAP[1], "dim_k": 16, "r": 23}
    yield from rival("lambda-networks", "LambdaLayer", given, "LambdaLayer", MAP, in_channels=MAP[1], r=23)
    options = {"in_channels": MAP[1], "num_heads": HEADS, "head_dim": 32, "variant": "qkv"}
    yield from rival("kronecker-attention-pytorch", "KroneckerSelfAttention", channels, "KroneckerAttention", MAP, **options)
    options = {"dim": MAP[1], "num_heads": HEADS, "dim_index": 1}
    yield from rival("axial-attention", "AxialAttention", {**channels, "dim_index": 1}, "AxialAttention", MAP, **options)

    yield from rivals_that_select(sequence)


def rivals_that_select(sequence: tuple[int, ...]) -> Iterator[Callable[[], Duel]]:
    """Packages that hash, sort or look up. What they draw is drawn anew in each call: only where nothing is drawn must both agree."""
    given = {"dim": E, "heads": HEADS, "bucket_size": 64, "n_hashes": 4}
    hashing = {"bucket_size": 64, "n_hashes": 4}
    yield from rival("reformer-pytorch", "LSHSelfAttention", given, "LSHSelfAttention", sequence, same=False, **hashing, **LAYER)
    given = {"dim": E, "heads": HEADS, "bucket_size": 64, "max_seq_len": N}
    options = {"bucket_size": 64, "max_buckets": N // 64}
    yield from rival("sinkhorn-transformer", "SinkhornSelfAttention", given, "SinkhornSelfAttention", sequence, same=False, **options, **LAYER)
    given = {"dim": E, "depth": 1, "max_seq_len": N, "heads": HEADS, "window_size": 64, "local_attn_heads": 0}
    options = {"num_clusters": N // 64, "window_size": 64, "shared_qk": False}
    turned = {"pos_emb": torch.zeros(1, N, E // HEADS)}
    inside = "routing_transformer.routing_transformer"
    yield from rival(
        "routing-transformer", "SelfAttention", given, "RoutingSelfAttention", sequence, inside=inside, same=False, call=turned, **options, **LAYER
    )
    given = {"dim": E, "heads": 4, "num_keys": 128, "topk": 32}
    yield from rival("product-key-memory", "PKM", given, "PKM", sequence, **given)


def rival(
    package: str, cls: str, given: dict[str, Any], form: str, shape: tuple[int, ...], *, inside: str = "", same: bool = True,
    call: dict[str, Tensor] | None = None, **options: Any,
) -> Iterator[Callable[[], Duel]]:  # fmt: skip
    """`inside`: where in the package the class lies; `call`: what it is called with besides x."""
    try:
        module = importlib.import_module(inside or package.replace("-", "_"))
    except ImportError:
        print(f"{package} is passed over: pip install {package}", file=sys.stderr)
        return

    def make() -> Duel:
        theirs = (_nystromformer(options) if package == "transformers" else getattr(module, cls)(**given)).eval()
        for part in theirs.modules():
            if hasattr(part, "initted"):  # centroids that have begun
                part.initted.fill_(True)
        ours = getattr(foveate.nn, form)(**options).eval()
        foveate.nn.load_published(ours, theirs.state_dict())
        name = f"{package} {module.__version__}" if hasattr(module, "__version__") else package
        sides = partial(first, partial(theirs, **(call or {}))), partial(first, ours)
        return Duel(name, *sides, (torch.randn(shape),), (list(theirs.parameters()), list(ours.parameters())), same=same)

    yield make


def _nystromformer(options: dict[str, Any]) -> nn.Module:
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    shape = {"hidden_size": E, "num_attention_heads": HEADS, "num_landmarks": options["num_landmarks"], "segment_means_seq_len": N}
    return NystromformerSelfAttention(NystromformerConfig(conv_kernel_size=options["conv_kernel_size"], **shape))  # type: ignore[no-any-return]


def beside_exact() -> Iterator[Callable[[], Duel]]:
    """Each contestant of `foveate compare` beside exact attention: torch's on queries, keys and values, the layer on vectors."""
    heads, vectors = (1, HEADS, N, E // HEADS), (1, N, E)
    for kind, size, shapes in (("qkv", Size(N, HEADS, E // HEADS), (heads,) * 3), ("vectors", Size(N, HEADS, E), (vectors,))):
        chosen = choose([kind], None)[0]
        exact = SDPA if kind == "qkv" else next(each for each in chosen if each.baseline)
        for contestant in chosen:
            if not contestant.baseline:
                yield partial(_beside, contestant, exact, size, shapes)


def _beside(contestant: Any, exact: Any, size: Size, shapes: tuple[tuple[int, ...], ...]) -> Duel:
    ours, theirs = (each.build(size, torch.float32) for each in (contestant, exact))
    weights = [list(each.parameters()) if isinstance(each, nn.Module) else [] for each in (theirs, ours)]
    return Duel(contestant.name, theirs, ours, tuple(torch.randn(shape) for shape in shapes), (weights[0], weights[1]), same=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--exact", action="store_true", help="beside torch's exact attention")
    beside.add_argument("--packages", action="store_true", help="beside public packages that are installed")
    duels(
        parser,
        lambda given: beside_exact() if given.exact else rivals() if given.packages else mechanisms(),
        f"B=1 N={N} E={E} H={HEADS}; maps {list(MAP)}",
    )


if __name__ == "__main__":
    main()
