"""What a user of the Python package meets: import, help, catalogue, stubs, the README."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import foveate
from foveate._catalog import forms

ROOT = Path(__file__).parents[2]


def test_importing_brings_no_tool_of_the_command_line() -> None:
    code = "import sys, foveate; print(*{'rich', 'typer', 'plotly', 'sklearn', 'tokenizers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_the_module_is_the_command_line() -> None:
    out = subprocess.run([sys.executable, "-m", "foveate", "list"], capture_output=True, text=True, check=True)
    assert "nystromformer" in out.stdout


@pytest.mark.parametrize("name", sorted(forms()))
def test_help_tells_every_option_input_and_default(name: str) -> None:
    form = forms()[name]
    layer = getattr(foveate.nn, form.class_name)
    text = inspect.getdoc(layer) or ""
    for field in (*form.options, *form.inputs):
        assert re.search(rf"^    {re.escape(field.name)}\b.*: .+", text, re.MULTILINE), f"{field.name} is missing from help({form.class_name})"
        if field.has_default and field.default is not None:
            assert f"Default {field.default!r}." in text
    assert list(inspect.signature(layer).parameters) == [f.name for f in form.options] + ["device", "dtype"]


@pytest.mark.parametrize("module", [foveate.ops, foveate.patterns, foveate._catalog], ids=lambda module: module.__name__)
def test_examples_in_docstrings_run(module: ModuleType) -> None:
    failures, count = doctest.testmod(module, extraglobs={"torch": torch, "foveate": foveate}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failures == 0 and count > 0


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_the_table_of_the_readme_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from generate import refreshed
    finally:
        sys.path.pop(0)
    text = (ROOT / "README.md").read_text()
    assert text == refreshed(text), "run: python tools/generate.py"


def test_stubs_are_as_the_reference_says() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import stubs
    finally:
        sys.path.pop(0)
    assert stubs.reference() == (ROOT / "tests" / "stubs.pyi.ref").read_text(), "if that is meant, run: python tools/stubs.py --reference"


def test_stubs_are_valid_python_and_name_every_form(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "stubs.py"), str(tmp_path)], check=True)
    functions, layers = (ast.parse((tmp_path / name).read_text()).body for name in ("__init__.pyi", "nn.pyi"))
    assert {n.name for n in layers if isinstance(n, ast.ClassDef)} >= {form.class_name for form in forms().values()}
    assert {n.name for n in functions if isinstance(n, ast.FunctionDef)} >= set(forms()) - {"attention"}
    assert "load_published" in {n.name for n in layers if isinstance(n, ast.FunctionDef)}


def test_every_mechanism_has_a_page_that_takes_its_reference() -> None:
    for card in foveate.catalog():
        page = ROOT / "docs" / "mechanisms" / f"{card.slug}.md"
        assert page.exists(), f"{card.slug} has no page"
        assert "<!-- reference -->" in page.read_text()
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(block, {"torch": torch, "foveate": foveate})


def test_a_wrong_torch_is_refused_with_advice(tmp_path: Path) -> None:
    code = "import torch, pathlib, foveate._library as l\ntorch.__version__ = '1.0.0'\ntry: l.version()\nexcept ImportError as e: print(e)"
    out = subprocess.run([sys.executable, "-c", f"import sys; sys.modules.pop('foveate', None)\n{code}"], capture_output=True, text=True, check=False)
    assert re.search(r"built for torch 2\.13.*found torch 1\.0\.0.*install torch==2\.13", out.stdout), out.stdout + out.stderr


def test_an_unknown_name_says_where_to_look() -> None:
    with pytest.raises(AttributeError, match=r"catalog"):
        foveate.unknown_attention
