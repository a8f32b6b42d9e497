"""How to compare, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
Mode = Literal["forward", "training"]


@dataclass(frozen=True)
class Settings:
    """How to compare."""

    lengths: tuple[int, ...] | None = None  # None: the usual ones
    dtype: str = "float32"
    backward: bool = False
    threads: int | None = None  # None: as many as torch chose
    rounds: int = 7
    seed: int = 0
    tolerance: float = 0.1  # relative error up to which an approximation counts as a stand-in
    memory_limit: int | None = None  # bytes a call may take; None: most of what is free

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What is timed."""
        return ("forward", "training") if self.backward else ("forward",)


@dataclass(frozen=True)
class Watcher:
    """Who hears of progress and of what went wrong; silent unless given."""

    advance: Callable[[float], None] = lambda work: None
    warn: Callable[[str], None] = lambda line: None
