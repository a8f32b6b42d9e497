"""Agreement with the original implementations, forward and every stored gradient: tests/golden/data/<slug>/<case>.safetensors.

`pytest tests/golden --golden-dir DIR` runs the cases of another directory. The run ends with a table per mechanism.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import foveate
from tests.contract import modules


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a golden file."""
    with safe_open(path, "pt") as f:
        return f.metadata() or {}, {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)


def assert_agrees(name: str, got: Tensor | None, want: Tensor, rtol: float, atol: float) -> None:
    """Equal up to the case's tolerances; infinities exactly, NaN never."""
    assert got is not None, f"{name} is missing"
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if not want.is_floating_point():
        assert torch.equal(got.to(want.dtype), want), f"{name} differs"
        return
    assert not want.isnan().any(), f"{name}: the golden holds NaN"
    torch.testing.assert_close(got.detach().to(want.dtype), want, rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}")


def check(path: Path) -> None:
    """Runs one golden case through the library."""
    slug = path.parent.name
    assert slug in modules(), f"{slug} has no adapter: add tests/mechanisms/{slug.replace('-', '_')}.py"
    header, stored = read(path)
    tolerance = {"rtol": float(header.get("rtol", 1e-9)), "atol": float(header.get("atol", 1e-10))}
    options: dict[str, Any] = json.loads(header.get("options", "{}"))
    tensors = {n: x.clone().requires_grad_("grad." + n in stored) for n, x in stored.items() if n.startswith(("input.", "param."))}
    outputs = modules()[slug].golden(options, dict(tensors))
    for name, want in stored.items():
        if name.startswith("output."):
            assert_agrees(name, outputs.get(name), want, **tolerance)
    graded = [name for name in stored if name.startswith("grad.")]
    if not graded:
        return
    loss = sum((outputs["output." + n.removeprefix("cotangent.")] * x).sum() for n, x in stored.items() if n.startswith("cotangent."))
    found = torch.autograd.grad(loss, [tensors[n.removeprefix("grad.")] for n in graded], allow_unused=True)
    for name, gradient in zip(graded, found, strict=True):
        assert_agrees(name, torch.zeros_like(stored[name]) if gradient is None else gradient, stored[name], **tolerance)


def test_agrees_with_the_original(golden_case: Path) -> None:
    check(golden_case)


def test_every_mechanism_has_goldens_and_an_adapter() -> None:
    folder = Path(__file__).parent / "data"
    for card in foveate.catalog():
        assert list((folder / card.slug).glob("*.safetensors")), f"{card.slug} has no golden case"
        assert card.slug in modules(), f"{card.slug} has no tests/mechanisms file"


@pytest.mark.parametrize("scale", [1.01])
def test_a_wrong_result_is_noticed(scale: float) -> None:
    want = torch.ones(3, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_agrees("output.out", want * scale, want, 1e-9, 1e-10)
