"""The command line: `foveate compare`, `foveate list`, `foveate show`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from foveate.compare.errors import UserError

app = typer.Typer(
    help="Efficient attention, measured on your own data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Runs the command line. What the user can put right ends in one line on stderr and exit code 2."""
    try:
        app()
    except UserError as problem:
        errors.print(f"foveate: {problem}", markup=False)
        sys.exit(2)


class Dtype(StrEnum):
    """Number types to compare in."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command()
def compare(
    text: Annotated[Path | None, typer.Option(help="A text file: q, k and v of a layer of the MiniLM encoder.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photo: feature maps at several resolutions.")] = None,
    qkv: Annotated[Path | None, typer.Option(help="Your own q, k and v [B,H,N,D]: .safetensors or .npz.")] = None,
    mechanism: Annotated[
        list[str] | None,
        typer.Option("--mechanism", "--mechanisms", "-m", help="Slugs, repeated or with commas. (default: all)"),
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Lengths N, with commas. (default: 256,512,1024,2048,4096)")] = None,
    layer: Annotated[int, typer.Option(help="Layer of MiniLM whose q, k and v are taken, 0 to 5.")] = 3,
    dtype: Annotated[Dtype, typer.Option(help="Number type of the inputs and parameters.")] = Dtype.float32,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. (default: torch's choice)")] = None,
    backward: Annotated[bool, typer.Option("--backward", help="Measure forward and backward together, too.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of measurement; medians are over these.")] = 7,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Relative error up to which an approximation may stand in.")] = 0.1,
    memory_limit: Annotated[int | None, typer.Option(min=1, metavar="MB", help="Skip what needs more. (default: most of what is free)")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", "--small", help="Two short lengths, three rounds.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the two reports.")] = Path("."),
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the numbers. (default: report.json)")] = None,
    report_file: Annotated[Path | None, typer.Option("--report", help="Where to write the page. (default: report.html)")] = None,
) -> None:
    """Measures every mechanism that takes your input beside exact attention: time, memory, error, and where it pays.

    Without a file it compares on a text and a photo that come with Python and scikit-learn.
    """
    from foveate.compare import inputs, table
    from foveate.compare.report import write_html, write_json
    from foveate.compare.run import Settings, Watcher, total_work
    from foveate.compare.run import compare as run_compare

    if quick:
        rounds, lengths = min(rounds, 3), lengths or "128,256"
    wanted = _lengths(lengths)
    settings = Settings(
        lengths=wanted,
        dtype=dtype.value,
        backward=backward,
        threads=threads,
        rounds=rounds,
        seed=seed,
        tolerance=tolerance,
        memory_limit=memory_limit * 10**6 if memory_limit else None,
    )
    mechanisms = [slug.strip() for given in mechanism or () for slug in given.split(",") if slug.strip()] or None
    with _interruptible(), _progress() as progress:
        reading = progress.add_task("reading the input", total=None)
        longest = max(wanted or inputs.LENGTHS)
        sources = [
            *(inputs.text_sources(text, layer, longest) if text else ()),
            *(inputs.file_sources(qkv) if qkv else ()),
            *([inputs.photo_source(image)] if image else ()),
        ]
        if not sources:
            sources = inputs.default_sources(layer, longest)
            if not any(source.kind == "qkv" for source in sources):
                errors.print('foveate: comparing on a photo only; for a text: pip install "foveate[text]"', markup=False)
        progress.remove_task(reading)
        task = progress.add_task("comparing", total=total_work(sources, settings, mechanisms))
        watcher = Watcher(
            advance=lambda done: progress.advance(task, done),
            warn=lambda line: errors.print(f"foveate: {line}", markup=False),
        )
        comparison = run_compare(sources, settings, mechanisms, watcher)
    if not any(result.points for panel in comparison.report.panels for result in panel.results):
        raise UserError("nothing could be measured; the lines above say why")
    table.show(comparison.report, Console())
    json_path, html_path = json_file or out / "report.json", report_file or out / "report.html"
    write_json(comparison.report, json_path)
    write_html(comparison, html_path)
    errors.print(f"\nwrote {json_path} and {html_path}", markup=False)


@app.command("list")
def list_mechanisms(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Run every form here: its gradients, and that causal ones do not look ahead.")] = False,
) -> None:
    """Lists every mechanism of the library, or checks that each works on this machine."""
    from foveate.show import findings_table, mechanisms_json, mechanisms_table

    if check:
        from foveate import catalog
        from foveate import check as checking

        with _interruptible("stopped"), _progress() as progress:
            task = progress.add_task("checking", total=sum(len(card.forms) for card in catalog()))
            findings = checking.check_all(lambda: progress.advance(task))
        faults = [finding for finding in findings if finding.fault]
        if as_json:
            print(json.dumps([asdict(finding) for finding in findings], indent=1))
        else:
            Console().print(findings_table(findings))
        for finding in faults:
            errors.print(f"foveate: {finding.form} ({finding.slug}): {finding.fault}", markup=False)
        raise typer.Exit(1 if faults else 0)
    if as_json:
        print(json.dumps(mechanisms_json(), indent=1))
    else:
        console = Console()
        console.print(mechanisms_table(console.width))


@app.command()
def show(
    slug: Annotated[str, typer.Argument(help="A mechanism, as `foveate list` names it.")],
    out: Annotated[Path | None, typer.Option(help="Write the picture to this .png file.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
) -> None:
    """Shows one mechanism: card, equation, options, and a picture of who reads whom."""
    from foveate.show import show_mechanism

    show_mechanism(slug, out, seed, Console())


def _lengths(given: str | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    try:
        lengths = tuple(int(part) for part in given.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--lengths takes whole numbers with commas, such as 256,512,1024; got '{given}'") from None
    if not lengths or min(lengths) < 1:
        raise UserError(f"--lengths must be positive, got '{given}'")
    return lengths


@contextlib.contextmanager
def _interruptible(then: str = "stopped, nothing was written") -> Iterator[None]:
    """Ctrl-C ends in one line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"foveate: {then}")
        raise typer.Exit(130) from None


def _progress() -> Progress:
    """A progress bar on stderr that vanishes when done; nothing where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


if __name__ == "__main__":
    main()
