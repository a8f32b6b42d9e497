"""Attention maps: the weights with which each query reads each key, and their picture.

Every attention is affine in v, out = weights v + rest (Shaw's positions have a rest), and so gives its map away: for v = the
identity less for v = 0, column m of the output is the weight of key m. The identity goes in in blocks as wide as a head, so
that mechanisms that want Dv = D are served too.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

ZERO = 128  # palette index of weight 0; lower ones are negative weights
# Night blue over violet and orange to pale yellow for weights from 0 up; night blue to turquoise for negative ones.
_STOPS_UP = ((16, 18, 40), (74, 32, 110), (158, 48, 105), (227, 97, 64), (249, 172, 60), (252, 246, 190))
_STOPS_DOWN = ((16, 18, 40), (14, 94, 120), (60, 205, 200))


def attention_map(call: Callable[..., Tensor], q: Tensor, k: Tensor, seed: int) -> Tensor:
    """Weights [H,N,M] of the first batch entry of a qkv call."""
    heads, m, width = k.shape[1:]
    identity = torch.eye(m, dtype=k.dtype)

    def output(block: Tensor) -> Tensor:
        """For values [M,D]: [H,N,D]."""
        torch.manual_seed(seed)  # the same draws for every block
        return call(q[:1], k[:1], block.expand(1, heads, m, width).contiguous())[0]

    columns = []
    with torch.no_grad():
        rest = output(torch.zeros(m, width, dtype=k.dtype))
        for start in range(0, m, width):
            block = torch.zeros(m, width, dtype=k.dtype)
            block[:, : min(width, m - start)] = identity[:, start : start + width]
            columns.append(output(block) - rest)
    return torch.cat(columns, dim=-1)[..., :m]


def influence_map(call: Callable[..., Tensor], x: Tensor, seed: int) -> Tensor:
    """How much each output [row] of a layer of x [1,N,E] changes with each input [column]: [N,N], for inputs moved a little in some directions."""
    length, width = x.shape[1:]
    directions = torch.randn(4, width, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)

    def output(given: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return call(given)[0]

    step = 1e-5
    with torch.no_grad():
        whole = output(x)
        columns = []
        for place in range(length):
            moves = [output(torch.index_add(x, 1, torch.tensor([place]), step * d.expand(1, 1, -1))) - whole for d in directions]
            columns.append(torch.stack(moves).square().sum((0, 2)).sqrt() / step)
    return torch.stack(columns, dim=-1)


def reading_map(call: Callable[..., Tensor], x: Tensor, pixel: tuple[int, int], seed: int) -> Tensor:
    """How much the output at one pixel (row, column) of a layer of a map x [1,C,H,W] changes with the input at each: [H,W], in some
    directions of the output. What the pixel passes on of itself is left out."""
    row, column = pixel
    torch.manual_seed(seed)
    leaf = x.detach().clone().requires_grad_()
    out = call(leaf)[0, :, row, column]  # [C]
    directions = torch.randn(4, out.shape[0], generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    pulled = [torch.autograd.grad(out, leaf, d, retain_graph=True)[0][0] for d in directions]
    weights = torch.stack(pulled).square().sum((0, 1)).sqrt()
    weights[row, column] = 0
    return weights


def opened(layer: nn.Module) -> nn.Module:
    """The layer with every parameter that starts at zero, such as the gate of a residual branch, set to something: closed gates hide what
    is behind them."""
    with torch.no_grad():
        for parameter in layer.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, 1.0 if parameter.dim() < 2 else 0.0, 0.0 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
    return layer


def shades(weights: Tensor, brightest: float) -> Tensor:
    """Palette indices, uint8, of weights [N,M]; square roots, so that faint weights stay visible."""
    strength = (weights.float().abs() / max(brightest, 1e-12)).clamp(max=1).sqrt()
    signed = torch.where(weights < 0, -strength, strength)
    return (ZERO + 127 * signed).round().to(torch.uint8)


def brightest_of(weights: Tensor) -> float:
    """The weight shown brightest: all but the top half percent of what is above the mean lie below it."""
    strong = weights.float().abs().flatten()
    strong = strong[strong >= strong.mean()]
    return torch.quantile(strong[:: max(1, strong.numel() // 100_000)], 0.995).item()


def palette() -> list[tuple[int, int, int]]:
    """256 colours; index ZERO is weight 0."""
    down = [_between(_STOPS_DOWN, (ZERO - index) / ZERO) for index in range(ZERO)]
    up = [_between(_STOPS_UP, (index - ZERO) / (255 - ZERO)) for index in range(ZERO, 256)]
    return down + up


def png(indices: Tensor, enlarge: int = 1) -> bytes:
    """The picture of palette indices [N,M] as a PNG file."""
    from PIL import Image

    picture = Image.fromarray(indices.numpy(), mode="P")
    picture.putpalette([level for colour in palette() for level in colour])
    picture = picture.resize((indices.shape[1] * enlarge, indices.shape[0] * enlarge), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def jpeg_uri(photo: Tensor, width: int) -> str:
    """A photo [3,H,W], values from 0 to 1, in grey and no wider than this, as an address that an HTML page can hold."""
    from PIL import Image

    pixels = (255 * photo.permute(1, 2, 0)).round().clamp(0, 255).to(torch.uint8)
    picture = Image.fromarray(pixels.numpy()).convert("L")
    picture.thumbnail((width, 4 * width))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def data_uri(indices: Tensor, enlarge: int = 1) -> str:
    """The PNG as an address that an HTML page can hold."""
    return "data:image/png;base64," + base64.b64encode(png(indices, enlarge)).decode()


def _between(stops: tuple[tuple[int, int, int], ...], share: float) -> tuple[int, int, int]:
    position = share * (len(stops) - 1)
    index = min(int(position), len(stops) - 2)
    part = position - index
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(stops[index], stops[index + 1], strict=True))
    return red, green, blue
