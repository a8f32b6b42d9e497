"""Each paper's equations written straight in torch, the way a first reading of it is: what a mechanism is measured against.

Every function takes one of foveate's layers, whose weights it uses, and the layer's inputs; both give the same result, which the benchmark
checks before it measures. Functions without weights take their inputs alone.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv1d, conv2d, layer_norm, pad, relu


def linear(x: Tensor, to: nn.Module) -> Tensor:
    """x through a projection of a layer."""
    return nn.functional.linear(x, to.get_parameter("weight"), getattr(to, "bias", None))


def split(x: Tensor, heads: int) -> Tensor:
    """[B,N,H D] -> [B,H,N,D]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """[B,H,N,D] -> [B,N,H D]"""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v, the matrix written out."""
    return (q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1) @ v


def evaluated(x: Tensor, norm: nn.Module, eps: float) -> Tensor:
    """Batch normalisation with running statistics."""
    statistics = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    return batch_norm(x, *statistics, norm.get_parameter("weight"), norm.get_parameter("bias"), eps=eps)


# --- low rank and synthetic --------------------------------------------------------------------------------------------------


def nystrom_attention(q: Tensor, k: Tensor, v: Tensor, landmarks: int = 64, iterations: int = 6) -> Tensor:
    """The length is a multiple of the number of landmarks."""
    means = [y.unflatten(2, (landmarks, -1)).mean(3) for y in (q, k)]
    scale = q.shape[-1] ** -0.5
    A = (means[0] @ means[1].transpose(-1, -2) * scale).softmax(-1)
    eye = torch.eye(A.shape[-1])
    Z = A.transpose(-1, -2) / A.sum(-2).amax(-1)[..., None, None]
    for _ in range(iterations):
        Y = A @ Z
        Z = 0.25 * Z @ (13 * eye - Y @ (15 * eye - Y @ (7 * eye - Y)))
    left = (q @ means[1].transpose(-1, -2) * scale).softmax(-1)
    return left @ (Z @ attend(means[0], k, v))


def nystromformer(layer: nn.Module, x: Tensor) -> Tensor:
    o = layer.options
    q, k, v = (split(linear(x, layer.get_submodule(name)), o["num_heads"]) for name in ("query", "key", "value"))
    return linear(merge(nystrom_attention(q, k, v, o["num_landmarks"], o["pinv_iterations"])), layer.get_submodule("out"))


def synthesizer(layer: nn.Module, x: Tensor) -> Tensor:
    """Dense, random or both factorised: whichever weights the layer has."""
    o, N = layer.options, x.shape[1]
    kind = (o["kinds"] or ["dense"])[0]
    v = split(linear(x, layer.get_submodule("value")), o["num_heads"])
    if kind == "random":
        scores = layer.get_parameter("table")[:, :N, :N]
    elif kind == "factorized_random":
        scores = (layer.get_parameter("row_factors") @ layer.get_parameter("column_factors").transpose(-1, -2))[:, :N, :N]
    else:
        hidden = split(relu(linear(x, layer.get_submodule("hidden"))), o["num_heads"])
        scores = hidden @ layer.get_parameter("hidden_keys").transpose(-1, -2)[..., :N] + layer.get_parameter("scores_bias")[:, None, :N]
    return linear(merge(scores.softmax(-1) @ v), layer.get_submodule("out"))


def input_independent(layer: nn.Module, x: Tensor) -> Tensor:
    N = x.shape[1]
    v = split(linear(x, layer.get_submodule("value")), layer.options["num_heads"])
    return merge(layer.get_parameter("table")[:, :N, :N].softmax(-1) @ v)


def memory_compressed(layer: nn.Module, x: Tensor) -> Tensor:
    """Keys and values by a convolution of stride c, in front of them a null slot."""
    o, conv = layer.options, layer.get_submodule("conv")
    q, k, v = (linear(x, layer.get_submodule(f"heads.{name}")) for name in ("query", "key", "value"))
    c, groups = o["compression_factor"], k.shape[-1] // conv.get_parameter("weight").shape[1]
    ahead = -x.shape[1] % c

    def slots(y: Tensor, null: str) -> Tensor:
        made = conv1d(pad(y, (0, 0, ahead, 0)).transpose(1, 2), conv.get_parameter("weight"), conv.get_parameter("bias"), stride=c, groups=groups)
        return torch.cat([layer.get_parameter(null).expand(x.shape[0], 1, -1), made.transpose(1, 2)], 1)

    H = o["num_heads"]
    out = attend(split(q, H), split(slots(k, "null_key"), H), split(slots(v, "null_value"), H), x.shape[-1] ** -0.5)
    return linear(merge(out), layer.get_submodule("heads.out"))


def block_local(q: Tensor, k: Tensor, v: Tensor, block: int = 256) -> Tensor:
    """Blocks of the line, each for itself; the length is a multiple of theirs."""
    return attend(*(y.unflatten(2, (-1, block)) for y in (q, k, v))).flatten(2, 3)


# --- lambdas -----------------------------------------------------------------------------------------------------------------


def lambda_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """Local or of whole maps: whichever weights the layer has."""
    o, (height, width) = layer.options, x.shape[2:]
    q, k, v = (conv2d(x, layer.get_submodule(name).get_parameter("weight")) for name in ("query", "key", "value"))
    q, v = (evaluated(y, layer.get_submodule(f"{name}_norm"), o["bn_eps"]) for name, y in (("query", q), ("value", v)))
    q = q.flatten(2).unflatten(1, (o["num_heads"], -1))  # [B,h,K,N]
    k, v = (y.flatten(2).unflatten(1, (o["dim_u"], -1)) for y in (k, v))  # [B,U,K,N], [B,U,V,N]
    content = torch.einsum("bukm,buvm->bkv", k.softmax(-1), v)
    if o["r"]:
        maps = v.transpose(1, 2).flatten(0, 1).unflatten(2, (height, width))  # [B V,U,H,W]
        weight, bias = (layer.get_submodule("conv").get_parameter(name) for name in ("weight", "bias"))
        position = conv2d(maps, weight, bias, padding=o["r"] // 2).flatten(2).unflatten(0, (x.shape[0], -1))  # [B,V,K,N]
        by_position = torch.einsum("bhkn,bvkn->bhvn", q, position)
    else:
        ys, xs = (y.flatten() for y in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
        down, across = (at[None, :] - at[:, None] + o["n"] - 1 for at in (ys, xs))
        position = torch.einsum("nmku,buvm->bnkv", layer.get_parameter("embedding")[down, across], v)
        by_position = torch.einsum("bhkn,bnkv->bhvn", q, position)
    return (torch.einsum("bhkn,bkv->bhvn", q, content) + by_position).flatten(1, 2).unflatten(2, (height, width))


# --- feature maps ------------------------------------------------------------------------------------------------------------


def kronecker_operator(x: Tensor, variant: str) -> Tensor:
    """Without projections, one head, scores as they are."""
    (height, width), axes = x.shape[2:], torch.cat([x.mean(3), x.mean(2)], 2).transpose(1, 2)  # [B,H+W,C]
    if variant == "kv":
        return attend(x.flatten(2).transpose(1, 2), axes, axes, 1).transpose(1, 2).unflatten(2, (height, width))
    y = attend(axes, axes, axes, 1).transpose(1, 2)
    return y[:, :, :height, None] + y[:, :, None, height:]


def kronecker(layer: nn.Module, x: Tensor) -> Tensor:
    """Rows and columns in place of positions; x [B,C,H,W]."""
    o, (height, width) = layer.options, x.shape[2:]
    axes = torch.cat([x.mean(3), x.mean(2)], 2).transpose(1, 2)  # [B,H+W,C]
    given = axes if o["variant"] == "qkv" else x.flatten(2).transpose(1, 2)
    at = {name: layer.get_submodule(name).get_parameter("weight").flatten(1) for name in ("query", "key", "value", "out")}
    q, k, v = (split(y @ at[name].T, o["num_heads"]) for name, y in (("query", given), ("key", axes), ("value", axes)))
    y = (merge(attend(q, k, v, o["scale"])) @ at["out"].T + layer.get_submodule("out").get_parameter("bias")).transpose(1, 2)
    if o["variant"] == "kv":
        return y.unflatten(2, (height, width))
    return y[:, :, :height, None] + y[:, :, None, height:]


def global_context(layer: nn.Module, x: Tensor) -> Tensor:
    score = layer.get_submodule("score")
    positions = x.flatten(2)  # [B,C,N]
    weights = (score.get_parameter("weight") @ positions + score.get_parameter("bias")[:, None]).softmax(-1)
    context = (positions @ weights.transpose(1, 2)).squeeze(2)  # [B,C]
    norm = layer.get_submodule("add.norm")
    hidden = linear(context, layer.get_submodule("add.reduce"))
    hidden = relu(layer_norm(hidden, hidden.shape[-1:], norm.get_parameter("weight"), norm.get_parameter("bias"), layer.options["ln_eps"]))
    return x + linear(hidden, layer.get_submodule("add.restore"))[:, :, None, None]


def ema_unit(layer: nn.Module, x: Tensor) -> Tensor:
    """Three rounds of expectation and maximisation, without gradients as published."""
    o, conv_in, norm = layer.options, layer.get_submodule("conv_in"), layer.get_submodule("norm")
    with torch.no_grad():
        f = conv2d(x, conv_in.get_parameter("weight"), conv_in.get_parameter("bias")).flatten(2)  # [B,C,N]
        mu = layer.get_buffer("bases").expand(x.shape[0], -1, -1)
        for _ in range(o["iterations"]):
            z = (f.transpose(1, 2) @ mu).softmax(-1)
            mu = f @ (z / (o["norm_eps"] + z.sum(1, keepdim=True)))
            mu = mu / (o["norm_eps"] + mu.norm(dim=1, keepdim=True))
        rebuilt = relu(mu @ z.transpose(1, 2)).view(x.shape)
    y = conv2d(rebuilt, layer.get_submodule("conv_out").get_parameter("weight"))
    return relu(evaluated(y, norm, o["bn_eps"]) + x)


def criss_cross(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The scores of the column, without the position itself, beside those of the row, as the published module has them."""
    down = torch.einsum("bcyx,bczx->byxz", q, k)  # [B,H,W,H]
    down = down.masked_fill(torch.eye(q.shape[2], dtype=torch.bool)[:, None, :], -torch.inf)
    across = torch.einsum("bcyx,bcyz->byxz", q, k)  # [B,H,W,W]
    weights = torch.cat([down, across], 3).softmax(3)
    down, across = weights.split([q.shape[2], q.shape[3]], 3)
    return torch.einsum("byxz,bczx->bcyx", down, v) + torch.einsum("byxz,bcyz->bcyx", across, v)


def criss_cross_attention(layer: nn.Module, x: Tensor) -> Tensor:
    for _ in range(layer.options["recurrence"]):
        maps = (layer.get_submodule(name) for name in ("query", "key", "value"))
        x = layer.get_parameter("gamma") * criss_cross(*(conv2d(x, m.get_parameter("weight"), m.get_parameter("bias")) for m in maps)) + x
    return x


def interlaced_block(layer: nn.Module, x: Tensor) -> Tensor:
    """Sides are multiples of the tiles: the map is reordered, each group attends to itself, the map is ordered back."""
    o = layer.options
    (B, C, H, W), dh, dw = x.shape, o["dh"], o["dw"]
    a, b = H // dh, W // dw
    x = x.view(B, C, a, dh, b, dw).permute(0, 3, 5, 1, 2, 4).reshape(-1, C, a, b)
    x = self_attention(layer.get_submodule("long_range"), x, o["bn_eps"])
    C = x.shape[1]
    x = x.view(B, dh, dw, C, a, b).permute(0, 4, 5, 3, 1, 2).reshape(-1, C, dh, dw)
    x = self_attention(layer.get_submodule("short_range"), x, o["bn_eps"])
    C = x.shape[1]
    return x.view(B, a, b, C, dh, dw).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


def self_attention(layer: nn.Module, x: Tensor, eps: float) -> Tensor:
    """Non-local attention of a map [B,C,H,W] with two normalised maps before queries and keys, and one behind the values."""

    def normalised(name: str, y: Tensor) -> Tensor:
        part, conv = layer.get_submodule(name), layer.get_submodule(f"{name}.conv")
        return relu(evaluated(conv2d(y, conv.get_parameter("weight"), getattr(conv, "bias", None)), part.get_submodule("norm"), eps))

    q, k = (normalised(f"{name}2", normalised(f"{name}1", x)).flatten(2).transpose(1, 2) for name in ("query", "key"))
    v = conv2d(x, layer.get_parameter("value.weight")).flatten(2).transpose(1, 2)
    return normalised("out", attend(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:]))


def axis_attention(q: Tensor, k: Tensor, v: Tensor, axis: int) -> Tensor:
    """Along an axis of maps [B,H,W,heads,D]: it comes last but one, the rest is a batch."""
    return attend(*(y.movedim(axis, -2) for y in (q, k, v))).movedim(-2, axis)


def axial_attention(layer: nn.Module, x: Tensor) -> Tensor:
    """x [B,C,H,W]: for each axis the map is reordered to lines, which attend each to itself; the sum of both."""
    H = layer.options["num_heads"]

    def lines(x: Tensor, heads: nn.Module) -> Tensor:  # [...,L,C]
        y = x.flatten(0, -3)
        q, k, v = (split(linear(y, heads.get_submodule(name)), H) for name in ("query", "key", "value"))
        return linear(merge(attend(q, k, v)), heads.get_submodule("out")).view(x.shape)

    columns = lines(x.permute(0, 3, 2, 1).contiguous(), layer.get_submodule("axes.0")).permute(0, 3, 2, 1)
    return columns + lines(x.permute(0, 2, 3, 1).contiguous(), layer.get_submodule("axes.1")).permute(0, 3, 1, 2)


def light_non_local(layer: nn.Module, x: Tensor) -> Tensor:
    """Associated as the published block does: whichever order costs less."""
    o, (C, H, W) = layer.options, x.shape[1:]
    c, s = int(o["ratio"] * C), o["stride"]
    g = x[:, :, ::s, ::s]
    theta, phi, g = x[:, :c].flatten(2), g[:, :c].flatten(2), g.flatten(2)
    N, M = theta.shape[2], g.shape[2]
    if N * M * (C + c) < (N + M) * c * C:
        f = torch.einsum("bcm,bnm->bcn", g, torch.einsum("bcn,bcm->bnm", theta, phi))
    else:
        f = torch.einsum("bdn,bdc->bcn", theta, torch.einsum("bdm,bcm->bdc", phi, g))
    f = (f / (H * W)).view(x.shape)
    f = conv2d(f, layer.get_submodule("depthwise").get_parameter("weight"), padding=1, groups=C)
    return x + evaluated(f, layer.get_submodule("norm"), o["bn_eps"])


def tensor_low_rank(layer: nn.Module, x: Tensor) -> Tensor:
    """A map of rank one after another is made and added, as the published module does."""
    at = {name: layer.get_parameter(name) for name in ("channel", "row", "column", "lam")}
    weights = at["lam"].softmax(0)
    means = {"channel": x.mean((2, 3)), "row": x.mean((1, 3)), "column": x.mean((1, 2))}
    gate = torch.zeros(())
    for i in range(layer.options["rank"]):
        c, h, w = ((means[name] @ at[name][i].T).sigmoid() for name in ("channel", "row", "column"))
        gate = gate + weights[i] * (c[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :])
    return gate * x


def tanimoto(p: Tensor, l: Tensor, over: tuple[int, ...], depth: int = 5, smooth: float = 1e-5) -> Tensor:
    """The fractal similarity, with its complement."""

    def similarity(p: Tensor, l: Tensor) -> Tensor:
        pl, pp, ll = ((a * b).sum(over, keepdim=True) for a, b in ((p, l), (p, p), (l, l)))
        terms = [1 / (2**d * (pp + ll) - (2 ** (d + 1) - 1) * pl + smooth) for d in range(depth)]
        return (pl + smooth) * sum(terms[1:], terms[0]) / depth

    return 0.5 * (similarity(p, l) + similarity(1 - p, 1 - l))


def fractal_attention(layer: nn.Module, x: Tensor) -> Tensor:
    o = layer.options

    def gate(name: str) -> Tensor:
        part = layer.get_submodule(name)
        return evaluated(conv2d(x, part.get_parameter("conv.weight"), padding=o["kernel_size"] // 2), part.get_submodule("norm"), 1e-5).sigmoid()

    q, k, v = (gate(name) for name in ("q", "k", "v"))
    of_channels, of_positions = (tanimoto(q, k, over, o["depth"], o["smooth"]) for over in ((2, 3), (1,)))
    return evaluated(0.5 * (v * of_channels + v * of_positions), layer.get_submodule("out"), 1e-5)
