"""Who takes part: one row per contestant. A later mechanism adds one row to ROWS.

A row names a form by its class, the input it takes and its options for a given size. A mechanism may have several
rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import nn as layers
from foveate._catalog import Card, FormCard, catalog
from foveate.compare.errors import UserError, nearest
from foveate.compare.inputs import Kind, Sample, Size

Relation = Literal["exact", "approximate", "different"]
Options = Callable[[Size], dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One contestant of the table below."""

    form: str  # class in foveate.nn
    label: str
    kind: Kind
    relation: Relation  # to exact attention; one that computes something different has no error
    options: Options = lambda size: {}
    baseline: bool = False
    extra: Callable[[Size], tuple[Tensor, ...]] = lambda size: ()  # inputs after the sample's own
    made: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: ()  # inputs after these, made from the sample's first


def _heads(size: Size) -> dict[str, Any]:
    return {"num_heads": size.heads, "head_dim": size.width}


def _layer(size: Size) -> dict[str, Any]:
    return {"embed_dim": size.width, "num_heads": size.heads}


def _set(size: Size) -> dict[str, Any]:
    return {"dim": size.width, "num_heads": size.heads}


def _slim(size: Size) -> dict[str, Any]:
    return {"hidden_dim": size.width, "n_heads": size.heads, "ffn_dim": size.width}


def _star(size: Size) -> dict[str, Any]:
    return {"embed_dim": size.width, "num_layers": 1, "num_heads": size.heads, "head_dim": size.width // size.heads}


def _efficient_block(size: Size) -> dict[str, Any]:
    half = size.width // 2  # as wide as the non-local block's inner width
    return {"in_channels": size.width, "key_channels": half, "value_channels": half, "head_count": 1}


def _axial(size: Size) -> dict[str, Any]:
    return {"dim": size.width, "num_heads": 1, "head_dim": size.width // 2, "dim_index": 1}


def _interlaced(size: Size) -> dict[str, Any]:
    half = size.width // 2
    return {"in_channels": size.width, "key_channels": half, "value_channels": half, "out_channels": size.width}


def _kronecker(size: Size) -> dict[str, Any]:
    return {"in_channels": size.width, "num_heads": 1, "head_dim": size.width // 2}


def _bounded(size: Size) -> dict[str, Any]:
    return _layer(size) | {"max_len": size.length}


def _hashing(size: Size) -> dict[str, Any]:
    """Chunks that divide the length, which need not be a power of two."""
    chunk = next((c for c in range(_near(size, 64), 1, -1) if size.length % (2 * c) == 0), 1)
    return _layer(size) | {"bucket_size": chunk, "n_hashes": 4}


def _routing(size: Size) -> dict[str, Any]:
    window = _near(size, 64)
    return _layer(size) | {"window_size": window, "num_clusters": max(1, size.length // window)}


def _near(size: Size, most: int) -> int:
    """What a name says, but no more than an eighth of a short sequence: a window that sees everything would show nothing."""
    return min(most, max(4, size.length // 8))


def _improved(size: Size) -> dict[str, Any]:
    return {"clusters": _near(size, 100), "topk": _near(size, 32)}


def _sinkhorn(size: Size) -> dict[str, Any]:
    return _heads(size) | {"bucket_size": _near(size, 64)}


def _local(size: Size) -> dict[str, Any]:
    return {"block_length": _near(size, 64), "filter_width": _near(size, 64)}


def _etc_layer(size: Size) -> dict[str, Any]:
    return _layer(size) | {"local_radius": _near(size, 64)}


def _spans(x: Tensor, most: int) -> Tensor:
    """As many spans of x [B,N,E], one global token for each: their means [B,G,E], as one for each sentence would be."""
    return F.adaptive_avg_pool1d(x.mT, min(most, max(1, x.shape[1] // 8))).mT


ROWS: tuple[Row, ...] = (
    Row("Attention", "Exact attention (foveate)", "qkv", "exact"),
    Row("ShawAttention", "Shaw relative positions", "qkv", "different", lambda size: {"head_dim": size.width}),
    Row("T5Attention", "T5 relative bias", "qkv", "different", lambda size: {"num_heads": size.heads, "scale": size.width**-0.5}),
    Row("AlibiAttention", "ALiBi", "qkv", "different"),
    Row("RotaryAttention", "Rotary positions", "qkv", "different"),
    Row("XLNetAttention", "XLNet relative positions", "qkv", "different", _heads, extra=lambda size: _distances(size, 2)),
    Row("TransformerXLAttention", "Transformer-XL (causal)", "qkv", "different", _heads, extra=lambda size: _distances(size, 1)),
    Row("EfficientAttention", "Efficient Attention", "qkv", "approximate", lambda size: {"temperature": size.width**0.25}),
    Row("LinearTransformerAttention", "Linear Transformer", "qkv", "approximate"),
    Row("FastAttention", "Fast Attention (cosine, mean)", "qkv", "different", lambda size: {"normalize_by_n": True}),
    Row("RandomFeatureAttention", "RFA (64 sines and cosines)", "qkv", "approximate"),
    Row("RandomFeatureAttention", "RFA (64 arc-cosine features)", "qkv", "approximate", lambda size: {"feature_map": "arccos"}),
    Row("FastWeightAttention", "DPFP (sum rule, nu 2)", "qkv", "approximate", lambda size: {"update": "sum", "attention_norm": "query"}),
    Row("FavorAttention", "FAVOR (ReLU)", "qkv", "different"),
    Row("FavorAttention", "FAVOR (trigonometric, 256 directions)", "qkv", "approximate", lambda size: {"features": "sincos"}),
    Row("PerformerAttention", "Performer (256 features)", "qkv", "approximate"),
    Row(
        "PerformerAttention",
        "Performer (hyperbolic, 2 x 128 features)",
        "qkv",
        "approximate",
        lambda size: {"features": "hyperbolic", "nb_features": 128},
    ),
    Row("LinformerAttention", "Linformer (learned, rank 128)", "qkv", "approximate", lambda size: _linformer(size, "linear")),
    Row("LinformerAttention", "Linformer (mean pooling, rank 128)", "qkv", "approximate", lambda size: _linformer(size, "mean")),
    Row("NystromAttention", "Nystromformer (64 landmarks)", "qkv", "approximate", lambda size: {"num_heads": size.heads}),
    Row("BlockLocalAttention", "Block-local (blocks of 64)", "qkv", "approximate", lambda size: {"block": _near(size, 64)}),
    Row("SparseTransformerAttention", "Sparse Transformer (strided)", "qkv", "approximate", lambda size: _sparse(size, "strided")),
    Row("SparseTransformerAttention", "Sparse Transformer (fixed)", "qkv", "approximate", lambda size: _sparse(size, "fixed")),
    Row(
        "LongformerAttention",
        "Longformer (window 128, 16 global)",
        "qkv",
        "approximate",
        lambda size: _global(size, "window", "global_tokens"),
    ),
    Row("BigBirdAttention", "BigBird (blocks of 64)", "qkv", "approximate", lambda size: {"block": _near(size, 64), "seed": 0}),
    Row("BigBirdAttention", "BigBird-ETC (64 global)", "qkv", "approximate", lambda size: _etc(size, 64)),
    Row("BlockwiseAttention", "Blockwise (2 blocks)", "qkv", "approximate", lambda size: _blockwise(size, 2)),
    Row("BlockwiseAttention", "Blockwise (3 blocks)", "qkv", "approximate", lambda size: _blockwise(size, 3)),
    Row("ImageTransformerAttention", "Image Transformer (blocks of 64, 64 each side)", "qkv", "approximate", _local),
    Row("JukeboxAttention", "Jukebox (row)", "qkv", "approximate", lambda size: _jukebox(size, "block")),
    Row("JukeboxAttention", "Jukebox (column)", "qkv", "approximate", lambda size: _jukebox(size, "transpose_block")),
    Row("JukeboxAttention", "Jukebox (previous row)", "qkv", "approximate", lambda size: _jukebox(size, "prev_block")),
    Row("GMATAttention", "GMAT (chunks of 128, memory 16)", "qkv", "approximate", lambda size: _global(size, "chunk", "memory")),
    Row("RetinaAttention", "Multi-scale retina (causal)", "qkv", "different", lambda size: {"scales": [1, 4, 16], "windows": [16, 16]}),
    Row("DietAttention", "Diet (cascade, layer 4, causal)", "qkv", "different", lambda size: {"layer": 4}),
    Row("DietAttention", "Diet (dilated with memory, layer 4, causal)", "qkv", "different", lambda size: {"layer": 4, "pattern": "dilated_mem"}),
    Row("SmyrfAttention", "SMYRF (4 rounds of 64)", "qkv", "approximate", lambda size: _smyrf(size, 4, 64)),
    Row("SmyrfAttention", "SMYRF (8 rounds of 128)", "qkv", "approximate", lambda size: _smyrf(size, 8, 128)),
    Row("ProbSparseAttention", "Informer (ProbSparse, factor 5)", "qkv", "approximate"),
    Row("ClusteredAttention", "Clustered (100 clusters)", "qkv", "approximate", lambda size: {"clusters": _near(size, 100)}),
    Row("ImprovedClusteredAttention", "Improved clustered (100 clusters, 32 keys)", "qkv", "approximate", _improved),
    Row("ScramAttention", "SCRAM (4 iterations)", "qkv", "approximate", lambda size: {"search_levels": math.ceil(math.log2(size.length))}),
    Row("SinkhornAttention", "Sinkhorn (buckets of 64, 2 sorted)", "qkv", "approximate", lambda size: _sinkhorn(size) | {"n_top_buckets": 2}),
    Row("SinkhornAttention", "Sinkhorn (mixture of buckets of 64)", "qkv", "different", lambda size: _sinkhorn(size) | {"non_permutative": False}),
    Row("SinkhornAttention", "SortCut (2 buckets of 64)", "qkv", "approximate", lambda size: _sinkhorn(size) | {"n_sortcut": 2}),
    Row("MultiheadAttention", "Multi-head attention", "vectors", "exact", _layer, baseline=True),
    Row("LinformerMultiheadAttention", "Linformer layer (rank 128)", "vectors", "different", lambda size: _layer(size) | _linformer(size, "linear")),
    Row("LongformerSelfAttention", "Longformer layer (window 128)", "vectors", "different", lambda size: _layer(size) | {"window": 128}),
    Row("BigBirdSelfAttention", "BigBird layer (blocks of 64)", "vectors", "different", _layer),
    Row("LinearTransformer", "Linear Transformer layer", "vectors", "different", lambda size: {"d_model": size.width, "n_heads": size.heads}),
    Row("RFA", "RFA layer", "vectors", "different", _layer),
    Row("FastWeightLayer", "Fast-weight layer (causal)", "vectors", "different", lambda size: {"d_model": size.width, "n_head": size.heads}),
    Row("FavorMultiheadAttention", "FAVOR layer (ReLU)", "vectors", "different", _layer),
    Row("PerformerMultiheadAttention", "Performer layer (256 features)", "vectors", "different", _layer),
    Row("SlimPerformerLayer", "SLiM Performer layer (causal)", "vectors", "different", _slim),
    Row("BlockwiseMultiheadAttention", "Blockwise layer (2 blocks)", "vectors", "different", lambda size: _layer(size) | _blockwise(size, 2)),
    Row("ImageTransformerLayer", "Image Transformer layer (blocks of 64)", "vectors", "different", lambda size: _layer(size) | _local(size)),
    Row("LSHSelfAttention", "Reformer layer (4 rounds, chunks of 64)", "vectors", "different", _hashing),
    Row("RoutingSelfAttention", "Routing Transformer layer (windows of 64)", "vectors", "different", _routing),
    Row("Nystromformer", "Nystromformer layer (64 landmarks)", "vectors", "different", _layer),
    Row("Synthesizer", "Synthesizer layer (dense)", "vectors", "different", _bounded),
    Row("Synthesizer", "Synthesizer layer (random)", "vectors", "different", lambda size: _bounded(size) | {"kinds": ["random"]}),
    Row("InputIndependentAttention", "Input-independent layer", "vectors", "different", _bounded),
    Row("MemoryCompressedAttention", "Memory-compressed layer (3 tokens a slot)", "vectors", "different", _layer),
    Row("SAB", "Set attention block (SAB)", "vectors", "different", lambda size: _set(size) | {"in_dim": size.width}),
    Row("ISAB", "Induced set attention block (ISAB)", "vectors", "different", lambda size: _set(size) | {"in_dim": size.width}),
    Row("BPTransformerBlock", "BP-Transformer block", "vectors", "different", lambda size: _layer(size) | {"inner_dim": size.width}),
    Row("StarTransformer", "Star-Transformer (one cycle)", "vectors", "different", _star),
    Row(
        "GlobalLocalAttention",
        "ETC layer (radius 64, 16 global)",
        "vectors",
        "different",
        _etc_layer,
        made=lambda x: (_spans(x, 16),),
    ),
    Row("TalkConvolution", "TaLK convolution (15 tokens each side)", "vectors", "different", lambda size: _talk(size, 15)),
    Row("ProductKeyMemory", "Product-key memory (128^2 slots)", "vectors", "different", lambda size: _memory(size, 128)),
    Row("JukeboxMultiheadAttention", "Jukebox layer (row)", "vectors", "different", lambda size: _layer(size) | _jukebox(size, "block")),
    Row(
        "SinkhornSelfAttention",
        "Sinkhorn layer (buckets of 64)",
        "vectors",
        "different",
        lambda size: _layer(size) | {"bucket_size": _near(size, 64)},
    ),
    Row("NonLocalBlock", "Non-local block", "map", "exact", lambda size: {"in_channels": size.width, "sub_sample": False}, baseline=True),
    Row("NonLocalBlock", "Non-local block (pooled keys)", "map", "different", lambda size: {"in_channels": size.width}),
    Row("EfficientAttentionBlock", "Efficient Attention block", "map", "different", _efficient_block),
    Row("FastAttentionBlock", "Fast Attention block", "map", "different", lambda size: {"in_chan": size.width}),
    Row("KroneckerAttention", "Kronecker attention (qkv)", "map", "different", _kronecker),
    Row("KroneckerAttention", "Kronecker attention (kv)", "map", "different", lambda size: _kronecker(size) | {"variant": "kv"}),
    Row("GlobalContextBlock", "Global context block", "map", "different", lambda size: {"in_channels": size.width}),
    Row("EMAU", "EMA unit (64 bases)", "map", "different", lambda size: {"in_channels": size.width}),
    Row("PermutohedralAttention", "Permutohedral attention (2 lattices, 4 features)", "map", "different", lambda size: _lattice(size, 4)),
    Row("CBAM", "CBAM", "map", "different", lambda size: {"gate_channels": size.width}),
    Row("BAM", "BAM", "map", "different", lambda size: {"gate_channels": size.width}),
    Row("CrissCrossAttention", "Criss-cross attention (twice)", "map", "different", lambda size: {"channels": size.width}),
    Row("AxialAttention", "Axial attention (rows + columns)", "map", "different", _axial),
    Row("InterlacedSparseBlock", "Interlaced sparse block (tiles of 8 by 8)", "map", "different", _interlaced),
    Row("LambdaLayer", "Lambda layer (window of 7)", "map", "different", lambda size: {"in_channels": size.width, "r": 7}),
    Row("LightNonLocalBlock", "LightNL block (1/4 compared)", "map", "different", lambda size: {"in_channels": size.width, "ratio": 0.25}),
    Row("FractalAttention", "FracTAL attention", "map", "different", lambda size: {"channels": size.width}),
)


# Why a form has no row, where it is not for its input.
REASONS = {
    "RCCA": "is a head around criss-cross attention",
    "CrissCross": "takes queries, keys and values of a map",
    "AxisAttention": "takes queries, keys and values of a map",
    "AxialImageTransformer": "is a whole model",
    "AxialTransformer": "is a whole model",
    "AxialSampler": "is a whole model",
    "AxialTransformer3d": "is a whole model",
    "AxialSampler3d": "is a whole model",
    "InterlacedSelfAttention": "is exact attention between transforms of its own",
    "InterlacedSparseModule": "is the interlaced sparse block for several tile sizes",
    "LambdaAttention": "shares keys and values between heads",
    "TanimotoSimilarity": "compares two maps",
    "FractalResidualUnit": "is FracTAL attention beside a residual branch",
    "FractalFusion": "joins two maps",
    "TensorLowRankGate": "has weights of the size of the map",
    "KroneckerAttentionOperator": "is KroneckerAttention without weights",
    "SimplifiedNonLocalBlock": "is the global context block's step on the way",
    "BPTransformer": "is a whole model",
    "ImprovedClusteredCausalAttention": "is improved clustered attention without the rest of the keys",
    "SinkhornTransformer": "is a whole model",
    "SinkhornCausalAttention": "is Sinkhorn attention to earlier buckets",
    "EdgeAttention": "takes a list of edges",
    "SparseAdaptiveConnection": "names edges step by step, as a reward has trained it to",
    "PMA": "pools a sequence into a few vectors",
    "ImageTransformerGridAttention": "takes queries, keys and values of an image",
    "MemoryCompression": "shortens a memory",
    "CompressiveTransformerLayer": "is Transformer-XL's layer where there is no memory yet",
    "CompressiveAttention": "is causal attention where there is no memory yet",
    "CompressiveTransformer": "is a whole model",
    "MemformerMemory": "reads a memory alone, which is its first state where there is no segment before",
    "MemformerWrite": "writes a memory from a sequence",
    "MemformerEncoder": "is self-attention and a read of a memory from segments before",
    "MemformerDecoder": "takes what an encoder made",
    "Memformer": "is a whole model",
    "MemBartLayer": "attends to a memory from segments before",
    "MemBartEncoder": "is a whole model",
    "InformerEncoder": "is a whole model",
    "InformerStack": "is a whole model",
    "InformerDecoderLayer": "takes a second sequence",
    "Informer": "is a whole model",
    "LSHAttention": "takes queries that are keys, too",
    "LSHIncrementalAttention": "takes queries that are keys, too",
    "ReformerLSHSelfAttention": "is the LSH layer without the output projection",
    "ReformerLocalSelfAttention": "is attention in chunks without the output projection",
    "Reformer": "is a whole model",
    "RoutingAttention": "takes centroids",
    "RoutingCentroids": "gives centroids",
    "RoutingTransformer": "is a whole model",
    "RotaryEmbedding": "is a part of RotaryAttention",
    "NonLocalAttention": "is exact attention with a scale of its own",
    "LongformerBlockAttention": "is Longformer by blocks",
    "FastAttentionVideo": "takes the frames of a video",
    "FastAttentionFusion": "is the Fast Attention block between other levels",
    "BigBirdBlockAttention": "is BigBird with the first blocks global",
    "JukeboxTransformer": "is a whole model",
    "GlobalLocalTransformerLayers": "is a whole model",
    "JukeboxBlock": "is the layer with a feed-forward network",
    "SparseTransformerBlock": "is the attention with projections and a feed-forward network",
    "SparseTransformerStack": "is a whole model",
    "BlockSparseAttention": "is any layout of blocks",
    "TransformerXLLayer": "is the attention with projections and a feed-forward network",
    "MAB": "takes a second set",
    "LatentISAB": "is ISAB with a cache of latents",
    "GMATEncoder": "is a whole model",
    "GMATCompression": "is a whole model",
    "LinformerEncoder": "is a whole model",
    "SetTransformer": "is a whole model",
    "TransformerXL": "is a whole model",
    "SlimPerformer": "is a whole model",
    "DietEncoder": "is a whole model",
    "DietLanguageModel": "is a whole model",
    "MultiScaleTopDown": "is a whole model",
    "MultiScaleBottomUp": "is a whole model",
    "MultiScaleRetina": "is a whole model",
    "WindowSum": "is TalkConvolution with given windows",
    "TalkConvolutionLayer": "is the convolution with projections and a feed-forward network",
    "ProductKeyLookup": "takes queries, keys and values of a memory",
    "PKM": "is the memory with another normalisation of queries",
    "LatticeFilter": "takes points that are queries and keys at once",
    "PermutohedralSimplex": "shows the lattice",
}


def _distances(size: Size, lengths: int) -> tuple[Tensor]:
    """Projected positions [H,lengths N,D], as a layer's projection of sinusoids would give."""
    return (torch.randn(size.heads, lengths * size.length, size.width),)


def _linformer(size: Size, kind: str) -> dict[str, Any]:
    return {"length": size.length, "rank": min(128, size.length), "kind": kind}


def _sparse(size: Size, pattern: str) -> dict[str, Any]:
    """The stride is about the root of the length, as in the paper."""
    return {"pattern": pattern, "stride": 2 ** round(math.log2(size.length) / 2)}


def _etc(size: Size, most: int) -> dict[str, Any]:
    """The first tokens stand for the extra ones."""
    return {"construction": "etc", "block": _near(size, 64), "num_extra_globals": _near(size, most), "seed": 0}


def _blockwise(size: Size, blocks: int) -> dict[str, Any]:
    """One head in six for each shift, as in the paper, if there are as many."""
    shifted = max(1, size.heads // 6) if size.heads >= blocks else 0
    return {"num_blocks": blocks, "heads_per_permutation": [size.heads - shifted * (blocks - 1), *[shifted] * (blocks - 1)]}


def _global(size: Size, near: str, globals_: str) -> dict[str, Any]:
    """128 tokens near, 16 that all see."""
    return {near: _near(size, 128), globals_: _near(size, 16)}


def _jukebox(size: Size, pattern: str) -> dict[str, Any]:
    """As many rows as columns, about."""
    return {"pattern": pattern, "block_length": 2 ** round(math.log2(size.length) / 2)}


def _talk(size: Size, reach: int) -> dict[str, Any]:
    return {"hid_dim": size.width, "num_heads": size.heads, "max_left": reach}


def _memory(size: Size, keys: int) -> dict[str, Any]:
    return {"input_dim": size.width, "heads": size.heads, "n_keys": keys, "key_dim": 64}


def _lattice(size: Size, features: int) -> dict[str, Any]:
    half = size.width // 2  # two lattices give as many channels as came
    return {"in_features": size.width, "filter_features": features, "out_features": half, "dimension": 2, "normalize": "row"}


def _smyrf(size: Size, rounds: int, cluster: int) -> dict[str, Any]:
    cluster = min(cluster, size.length)
    return {"n_hashes": rounds, "q_cluster_size": cluster, "k_cluster_size": cluster}


@dataclass(frozen=True)
class Contestant:
    """A row together with its card. `build` gives the call to measure at one size."""

    name: str
    kind: Kind
    relation: Relation
    baseline: bool
    options: Options
    make: Callable[[Mapping[str, Any]], Callable[..., Any]]
    card: Card | None  # None: torch's own
    form: str
    extra: Callable[[Size], tuple[Tensor, ...]] = lambda size: ()
    made: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: ()

    def build(self, size: Size, dtype: torch.dtype) -> nn.Module:
        """A call of the sample's tensors that returns the output."""
        built = self.make(self.options(size))
        if isinstance(built, nn.Module):
            built = built.to(dtype).eval()  # nothing is dropped; one photo has no batch statistics
        return _Call(built, tuple(tensor.to(dtype) for tensor in self.extra(size)), self.made)


class _Call(nn.Module):
    """A call with its extra inputs in place, whose output is the first of several."""

    def __init__(self, call: Callable[..., Any], extra: tuple[Tensor, ...], made: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.call = call
        self.extra = extra
        self.made = made

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.call(*inputs, *self.extra, *self.made(inputs[0]))
        return result if isinstance(result, Tensor) else result[0]


SDPA = Contestant(
    name="Exact attention (torch SDPA)",
    kind="qkv",
    relation="exact",
    baseline=True,
    options=lambda size: {},
    make=lambda options: F.scaled_dot_product_attention,
    card=None,
    form="torch.nn.functional.scaled_dot_product_attention",
)


def choose(kinds: Iterable[Kind], slugs: Sequence[str] | None) -> tuple[list[Contestant], list[tuple[str, str]]]:
    """Contestants for these kinds of input, with the baseline of each kind; and forms left out, with the reason."""
    cards = catalog()
    wanted = [card for card in cards if slugs is None or card.slug in slugs]
    known = [card.slug for card in cards]
    for slug in slugs or ():
        if slug not in known:
            raise UserError(f"no mechanism called '{slug}'{nearest(slug, known)}; `foveate list` names them all")
    labels = [row.label for row in ROWS]
    every = sorted((each for card in cards for each in contestants_of(card)), key=lambda each: labels.index(each.name))
    chosen: list[Contestant] = []
    for kind in dict.fromkeys(kinds):
        of_kind = [each for each in every if each.kind == kind]
        asked = [each for each in of_kind if each.card in wanted]
        baseline = [SDPA] if kind == "qkv" else [each for each in of_kind if each.baseline]
        if asked:
            chosen += baseline + [each for each in asked if not each.baseline]
    if not chosen:
        raise UserError(f"none of {', '.join(slugs or known)} takes this input: {_takers(wanted)}")
    rowless = [form.class_name for card in wanted for form in card.forms if not any(row.form == form.class_name for row in ROWS)]
    return chosen, [(name, REASONS.get(name, "needs an input of its own")) for name in rowless]


def find_card(slug: str) -> Card:
    """The card of a mechanism."""
    cards = {card.slug: card for card in catalog()}
    if slug not in cards:
        raise UserError(f"no mechanism called '{slug}'{nearest(slug, cards)}; `foveate list` names them all")
    return cards[slug]


def contestants_of(card: Card) -> list[Contestant]:
    """The contestants of one mechanism."""
    return rows_of(card, ROWS)


def rows_of(card: Card, rows: Iterable[Row]) -> list[Contestant]:
    """The same, of another table."""
    return [_contestant(row, card, form) for form in card.forms for row in rows if row.form == form.class_name]


def _contestant(row: Row, card: Card, form: FormCard) -> Contestant:
    # All are compared seeing both ways, as a text encoder does.
    both_ways = {"causal": False} if any(option.name == "causal" for option in form.options) else {}

    def make(options: Mapping[str, Any]) -> nn.Module:
        module: nn.Module = getattr(layers, form.class_name)(**options)
        return module

    return Contestant(
        name=row.label,
        kind=row.kind,
        relation=row.relation,
        baseline=row.baseline,
        options=lambda size: {**both_ways, **row.options(size)},
        make=make,
        card=card,
        form=f"foveate.nn.{form.class_name}",
        extra=row.extra,
        made=row.made,
    )


def _takers(cards: Sequence[Card]) -> str:
    flags = {"qkv": "--text or --qkv", "vectors": "--text or --qkv", "map": "--image"}
    kinds = {flags[contestant.kind] for card in cards for contestant in contestants_of(card)}
    return f"try {' or '.join(sorted(kinds))}" if kinds else "each needs an input of its own"


def exact_output(sample: Sample) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in float64."""
    q, k, v = (tensor.double() for tensor in sample.tensors)
    return F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(q.shape[-1]))
