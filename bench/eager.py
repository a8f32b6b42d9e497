"""Each paper's equations written straight in torch, the way a first reading of it is: what a mechanism is measured against.

Every function takes one of foveate's layers, whose weights it uses, and the layer's input; both give the same result, which the benchmark
checks before it measures.
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


# --- low rank and synthetic --------------------------------------------------------------------------------------------------


def nystromformer(layer: nn.Module, x: Tensor) -> Tensor:
    """The length is a multiple of the number of landmarks."""
    o = layer.options
    q, k, v = (split(linear(x, layer.get_submodule(name)), o["num_heads"]) for name in ("query", "key", "value"))
    means = [y.unflatten(2, (o["num_landmarks"], -1)).mean(3) for y in (q, k)]
    scale = q.shape[-1] ** -0.5
    A = (means[0] @ means[1].transpose(-1, -2) * scale).softmax(-1)
    eye = torch.eye(A.shape[-1])
    Z = A.transpose(-1, -2) / A.sum(-2).amax(-1)[..., None, None]
    for _ in range(o["pinv_iterations"]):
        Y = A @ Z
        Z = 0.25 * Z @ (13 * eye - Y @ (15 * eye - Y @ (7 * eye - Y)))
    left = (q @ means[1].transpose(-1, -2) * scale).softmax(-1)
    return linear(merge(left @ (Z @ attend(means[0], k, v))), layer.get_submodule("out"))


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


# --- feature maps ------------------------------------------------------------------------------------------------------------


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
    statistics = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    return relu(batch_norm(y, *statistics, norm.get_parameter("weight"), norm.get_parameter("bias"), eps=o["bn_eps"]) + x)
