"""The command line, end to end."""

import json
import signal
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from foveate import cli
from foveate.compare import measure


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    draw = numpy.random.default_rng(0)
    numpy.savez(tmp_path / "mine.npz", **{name: draw.standard_normal((1, 4, 64, 16)).astype("float32") for name in "qkv"})
    return tmp_path / "mine.npz"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["foveate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_compare_shows_a_table_and_writes_both_reports(
    tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("compare", "--qkv", tensors, "--lengths", "32,64", "--rounds", 2, "--threads", 1, "--backward", "-m", "vanilla", "--out", tmp_path)
    assert run(monkeypatch, *asked) == 0
    told = capsys.readouterr()
    assert "your tensors, N = 64" in told.out
    assert told.err.strip().splitlines()[-1].startswith("wrote ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == "foveate.compare/1"
    assert report["machine"]["threads"] == 1
    panel = report["panels"][0]
    exact = next(result for result in panel["results"] if result["form"].startswith("torch."))
    assert [point["length"] for point in exact["points"]] == [32, 64]
    assert all(point["training"]["median_ms"] > 0 for point in exact["points"])
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def test_default_input_is_a_text_and_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "compare", "--lengths", 64, "--rounds", 1, "--threads", 1, "--out", tmp_path) == 0
    kinds = {panel["kind"]: panel["subject"] for panel in json.loads((tmp_path / "report.json").read_text())["panels"]}
    assert kinds["qkv"] == "the Python language reference"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "--text", "absent.txt"), "no such file: absent.txt"),
        (("compare", "--qkv", "absent.npz"), "no such file: absent.npz"),
        (("compare", "--image", "absent.png"), "cannot read the picture absent.png"),
        (("compare", "--qkv", "{tensors}", "-m", "vanila"), "did you mean 'vanilla'?"),
        (("compare", "--qkv", "{tensors}", "--lengths", "1,x"), "--lengths takes whole numbers"),
        (("compare", "--qkv", "{tensors}", "--lengths", "128"), "has 64 positions"),
        (("compare", "--qkv", "{tensors}", "--lengths", "64", "-m", "vanilla", "--memory-limit", "1", "--out", "/dev/null/x"), "cannot write"),
        (("show", "vanila"), "did you mean 'vanilla'?"),
        (("show", "vanilla", "--out", "picture.gif"), "--out writes a .png file"),
    ],
)
def test_what_the_user_can_put_right_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, tensors: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tensors.parent)
    assert run(monkeypatch, *(argument.format(tensors=tensors) for argument in arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("foveate: ")
    assert message in line


def test_ctrl_c_leaves_no_file_behind(tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(measure, "interleaved_times", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert run(monkeypatch, "compare", "--qkv", tensors, "--lengths", 64, "-m", "vanilla", "--out", tmp_path / "out") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "foveate: stopped, nothing was written\n"
    assert not (tmp_path / "out").exists()


def test_list_names_every_mechanism(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from foveate import catalog

    assert run(monkeypatch, "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["slug"] for each in listed] == [card.slug for card in catalog()]
    assert run(monkeypatch, "list") == 0
    assert "vanilla" in capsys.readouterr().out


def test_show_prints_the_card_the_options_and_the_map(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "show", "vanilla") == 0
    out = capsys.readouterr().out
    assert "arXiv 1706.03762" in out
    assert "causal" in out
    assert sum(len(line) == 64 and set(line) <= set(" ░▒▓█") for line in out.splitlines()) == 32


def test_show_writes_the_map_as_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "show", "vanilla", "--out", tmp_path / "map.png") == 0
    assert Image.open(tmp_path / "map.png").size == (640, 640)
