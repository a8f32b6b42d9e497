"""sinkhorn_attention: buckets read where they lie, against the formula that copies them: values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

PRIMITIVE = torch.ops.foveate._sinkhorn_attention
FORMULA = torch.ops.foveate._sinkhorn_attention_formula
DEFAULTS: dict[str, Any] = {
    "sort_weight": None, "gumbel": None, "key_mask": None, "dropout_seed": None, "bucket_size": 4, "kv_bucket_size": 4, "top_buckets": 1,
    "sortcut": 0, "iterations": 7, "temperature": 0.75, "values_from_keys": False, "dropout": 0.0,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "best": {},
    "best three": {"top_buckets": 3},
    "more than there are": {"top_buckets": 9},
    "cut": {"sortcut": 2},
    "masked": {"top_buckets": 2, "key_mask": torch.rand(2, 14, generator=torch.Generator().manual_seed(2)) < 0.6},
    "other buckets of keys": {"kv_bucket_size": 3},
    "sorted by weights": {"sort_weight": torch.randn(1, 3, 10, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_as_the_formula(way: dict[str, Any]) -> None:
    found: list[list[Tensor]] = []
    for run in (PRIMITIVE, FORMULA):
        g = torch.Generator().manual_seed(1)
        leaves = [torch.randn(2, 3, 14, 5, generator=g, dtype=torch.float64).requires_grad_() for _ in range(3)]
        given = DEFAULTS | way
        if given["sort_weight"] is not None:
            given["sort_weight"] = given["sort_weight"].clone().requires_grad_()
            leaves.append(given["sort_weight"])
        out, S, lse = run(*leaves[:3], **given)
        loss = out.sin().sum() + S.square().sum() + lse.masked_fill(lse == -torch.inf, 0).cos().sum()
        found.append([out, S, lse, *torch.autograd.grad(loss, leaves)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
