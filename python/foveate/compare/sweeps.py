"""How the error of an approximation falls with what it is given: rounds of hashing, clusters, keys.

A later mechanism with such a setting adds one row to SWEEPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import foveate
from foveate import nn as layers
from foveate._catalog import catalog
from foveate.compare import measure
from foveate.compare.contestants import exact_output
from foveate.compare.inputs import Sample, Source, choose_lengths
from foveate.compare.results import Swept
from foveate.compare.settings import DTYPES, Settings

LONGEST = 2048  # errors are those of the longest length up to this


@dataclass(frozen=True)
class Sweep:
    """One setting of a form, from cheap to dear."""

    form: str  # class in foveate.nn
    label: str
    setting: str
    values: tuple[int, ...]
    options: Callable[[int], dict[str, Any]]
    parts: bool = False  # values beyond half the length would leave nothing out
    queries_are_keys: bool = False


def _smyrf(rounds: int, cluster: int) -> dict[str, Any]:
    return {"n_hashes": rounds, "q_cluster_size": cluster, "k_cluster_size": cluster}


ROUNDS = (1, 2, 4, 8, 16)
CHUNKS = (32, 64, 128, 256)
CLUSTERS = (25, 50, 100, 200, 400)
SWEEPS = (
    Sweep("SmyrfAttention", "SMYRF (clusters of 64)", "rounds", ROUNDS, lambda n: _smyrf(n, 64)),
    Sweep("SmyrfAttention", "SMYRF (4 rounds)", "keys of a cluster", CHUNKS, lambda n: _smyrf(4, n), parts=True),
    Sweep("ClusteredAttention", "Clustered", "clusters", CLUSTERS, lambda n: {"clusters": n}, parts=True),
    Sweep(
        "ImprovedClusteredAttention",
        "Improved clustered (32 keys)",
        "clusters",
        CLUSTERS,
        lambda n: {"clusters": n, "topk": 32},
        parts=True,
    ),
    Sweep(
        "ImprovedClusteredAttention",
        "Improved clustered (100 clusters)",
        "keys",
        (8, 16, *CHUNKS),
        lambda n: {"clusters": 100, "topk": n},
        parts=True,
    ),
    Sweep(
        "LSHAttention",
        "Reformer (chunks of 64)",
        "rounds",
        ROUNDS,
        lambda n: {"bucket_size": 64, "n_hashes": n},
        queries_are_keys=True,
    ),
    Sweep(
        "LSHAttention",
        "Reformer (4 rounds)",
        "tokens of a chunk",
        CHUNKS,
        lambda n: {"bucket_size": n, "n_hashes": 4},
        parts=True,
        queries_are_keys=True,
    ),
    Sweep("PerformerAttention", "Performer", "features", (64, 256, 1024), lambda n: {"nb_features": n}),
)


def run_sweeps(source: Source, mechanisms: Sequence[str] | None, settings: Settings) -> list[Swept]:
    """Errors on q, k and v of one source, for mechanisms (their slugs; None: all)."""
    lengths, _ = choose_lengths(settings.lengths, source)
    sample = source.at(max((n for n in lengths if n <= LONGEST), default=min(lengths)))
    slugs = {form.class_name: card.slug for card in catalog() for form in card.forms}
    exact: dict[bool, Tensor] = {}
    found = []
    for sweep in SWEEPS:
        if mechanisms is not None and slugs[sweep.form] not in mechanisms:
            continue
        if sweep.queries_are_keys not in exact:
            exact[sweep.queries_are_keys] = exact_shared(sample) if sweep.queries_are_keys else exact_output(sample)
        values = [n for n in sweep.values if not sweep.parts or 2 * n <= sample.size.length]
        errors = [_error(sweep, n, sample, exact[sweep.queries_are_keys], settings) for n in values]
        known = [(n, e) for n, e in zip(values, errors, strict=True) if e is not None]
        if known:
            against = "attention with queries as keys" if sweep.queries_are_keys else "exact attention"
            measured, left = [n for n, _ in known], [e for _, e in known]
            found.append(Swept(sweep.label, slugs[sweep.form], sweep.setting, against, sample.size.length, measured, left))
    return found


def exact_shared(sample: Sample) -> Tensor:
    """What LSH attention approximates, in float64: queries are keys, of unit length, and a token sees itself only where it sees nothing else."""
    q, _, v = (tensor.double() for tensor in sample.tensors)
    out: Tensor = foveate.lsh_attention(q, v, full_attn_thres=sample.size.length + 1).out
    return out


def _error(sweep: Sweep, value: int, sample: Sample, exact: Tensor, settings: Settings) -> float | None:
    """The relative error, None where that value cannot be."""
    q, k, v = sample.to(DTYPES[settings.dtype]).tensors
    torch.manual_seed(settings.seed)
    try:
        attend = getattr(layers, sweep.form)(**sweep.options(value))
        with torch.no_grad():
            result = attend(q, v) if sweep.queries_are_keys else attend(q, k, v)
    except (RuntimeError, ValueError, TypeError, MemoryError):
        return None
    error = measure.error_against(exact, result if isinstance(result, Tensor) else result[0]).relative
    return error if math.isfinite(error) else None
