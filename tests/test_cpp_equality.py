"""The C++ layer of every form does what the Python layer does: the same names, initial values, outputs, states, running statistics.

The program tests/cpp/equality answers for the C++ side; FOVEATE_EQUALITY names it where it does not lie in build/*/tests/cpp.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.contract import Case, cases

ROOT = Path(__file__).parent.parent
QUESTIONS = [(case, training) for case in cases() for training in ((False, True) if case.card.training else (False,))]


def program() -> Path | None:
    """The newest build of the program."""
    given = os.environ.get("FOVEATE_EQUALITY")
    found = [Path(given)] if given else sorted(ROOT.glob("build/*/tests/cpp/equality/foveate_equality"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def spelled(value: Any) -> str:
    """An option as text."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def ask(stem: str, case: Case, training: bool) -> None:
    """Writes a question."""
    layer = case.layer()
    metadata = {"form": case.form, **{f"option.{n}": spelled(v) for n, v in layer.options.items()}}
    metadata |= {"training": "True"} if training else {}
    metadata |= {"step": "True"} if case.causal and case.card.streams else {}
    save_file({f"input.{n}": x.contiguous() for n, x in case.inputs().items()}, stem + ".question.safetensors", metadata)
    save_file(layer.state_dict(), stem + ".state.safetensors")


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of answers to all questions, from one run of the program."""
    executable = program()
    if executable is None:
        pytest.skip("the C++ tests are not built (cmake -DFOVEATE_BUILD_TESTS=ON)")
    folder = tmp_path_factory.mktemp("equality")
    for i, (case, training) in enumerate(QUESTIONS):
        ask(str(folder / str(i)), case, training)
    done = subprocess.run([executable, folder], capture_output=True, text=True, check=False)
    (folder / "log").write_text(done.stderr)
    assert done.returncode == 0, done.stderr
    return folder


def named(prefix: str, outputs: Any, names: list[str]) -> dict[str, Tensor]:
    """Results by the names that the C++ side gives them."""
    listed = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    found: dict[str, Tensor] = {}
    for name, value in zip(names, listed, strict=False):
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif value is not None:
            found |= {f"{prefix}{name}.{i}": x for i, x in enumerate(value)}
    return found


def state_by_field(case: Case, state: list[Tensor]) -> list[Any]:
    """The tensors of a state, one for each of its fields; a list takes what is left."""
    remaining = iter(state)
    return [list(remaining) if field.type == "Tensor[]" else next(remaining) for field in case.card.state]


@pytest.mark.parametrize("number", range(len(QUESTIONS)), ids=[case.id + ("-training" if training else "") for case, training in QUESTIONS])
def test_cpp_equals_python(answers: Path, number: int) -> None:
    case, training = QUESTIONS[number]
    path = answers / f"{number}.answer.safetensors"
    assert path.exists(), (answers / "log").read_text()
    with safe_open(path, "pt") as f:
        got = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)

    layer = case.layer().train(training)
    torch.manual_seed(0)
    fresh = type(layer)(**case.options)
    want = {f"initial.{n}": x for n, x in fresh.state_dict().items()}
    outputs = [field.name for field in case.card.outputs]
    torch.manual_seed(0)
    want |= named("output.", layer(**case.inputs()), outputs)
    if case.causal and case.card.streams:
        torch.manual_seed(0)
        *results, state = layer.step(**case.inputs())
        want |= named("step.", results, outputs)
        want |= named("state.", state_by_field(case, state), [field.name for field in case.card.state])
    assert set(got) == set(want)
    for name, x in want.items():
        torch.testing.assert_close(got[name], x.detach(), rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")

    saved = load_file(answers / f"{number}.saved.safetensors")
    state_dict = layer.state_dict()
    assert set(saved) == set(state_dict)
    for name, x in state_dict.items():
        torch.testing.assert_close(saved[name], x, rtol=1e-12, atol=1e-12)
