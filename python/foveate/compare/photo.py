"""A photo as feature maps, the same on every machine: a fixed filter bank in place of a trained network.

64 channels: three opponent colours (light, red-green, blue-yellow) blurred at four scales (12); gradient energy of
light in eight orientations at four scales (32); the same of the two colour axes at the second scale (16); contrast of
light at four scales (4). Each is averaged down to the grid asked for and standardised to mean 0, deviation 1 over it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.compare.errors import UserError

SCALES = (1.0, 2.0, 4.0, 8.0)  # deviations of the Gaussian, in pixels
ORIENTATIONS = 8
CHANNELS = 64


def read_photo(path: Path) -> Tensor:
    """The picture as [3,H,W], red, green and blue from 0 to 1."""
    import numpy
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = numpy.asarray(picture.convert("RGB"), dtype=numpy.float32) / 255
    except OSError as problem:
        raise UserError(f"cannot read the picture {path}: {str(problem).splitlines()[0]}") from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def filter_bank(photo: Tensor) -> Tensor:
    """Responses [64,H,W] of the photo [3,H,W] at full resolution."""
    red, green, blue = photo
    colours = torch.stack([photo.mean(0), red - green, blue - (red + green) / 2])  # [3,H,W]
    blurred = [_blur(colours, scale) for scale in SCALES]
    maps = [torch.cat(blurred)]
    maps += [_oriented_energy(at[:1]) for at in blurred]
    maps += [_oriented_energy(blurred[1][1:])]
    light = colours[:1]
    maps += [(_blur(light**2, scale) - at[:1] ** 2).clamp(min=0).sqrt() for scale, at in zip(SCALES, blurred, strict=True)]
    return torch.cat(maps)


def grid_of(length: int) -> tuple[int, int]:
    """Height and width, from one to two heights, of the grid with the most cells that are no more than `length`."""
    heights = range(math.isqrt(length), max(1, math.ceil(math.sqrt(length / 2))) - 1, -1)
    height = max(heights, key=lambda h: h * (length // h))
    return height, length // height


def feature_map(responses: Tensor, grid: tuple[int, int]) -> Tensor:
    """Responses [C,H,W] averaged to [1,C,*grid], each channel with mean 0 and deviation 1."""
    x = F.adaptive_avg_pool2d(responses[None], grid)
    deviation, mean = torch.std_mean(x, dim=(2, 3), keepdim=True, correction=0)
    return (x - mean) / deviation.clamp(min=1e-6)


def _blur(maps: Tensor, scale: float) -> Tensor:
    radius = min(math.ceil(3 * scale), *(side - 1 for side in maps.shape[1:]))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / scale) ** 2)
    taps = (taps / taps.sum()).expand(maps.shape[0], 1, 1, -1)  # [C,1,1,2r+1]
    padded = F.pad(maps[None], (radius, radius, radius, radius), mode="reflect")
    across = F.conv2d(padded, taps, groups=maps.shape[0])
    return F.conv2d(across, taps.transpose(2, 3), groups=maps.shape[0])[0]


def _oriented_energy(maps: Tensor) -> Tensor:
    """Size of the gradient along each of eight directions: [C,H,W] to [8 C,H,W]."""
    padded = F.pad(maps[None], (1, 1, 1, 1), mode="replicate")[0]
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    angles = torch.arange(ORIENTATIONS) * math.pi / ORIENTATIONS
    along = across[None] * torch.cos(angles)[:, None, None, None] + down[None] * torch.sin(angles)[:, None, None, None]
    return along.abs().flatten(0, 1)
