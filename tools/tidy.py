"""Runs clang-tidy on every C++ source: `tidy.py BUILD_FOLDER`.

Most of the time of clang-tidy goes into reading torch's headers, so sources that are compiled alike are read together, a dozen at a
time; where two of them cannot stand together (both call a helper the same) the dozen is halved. What passed is remembered by content.
"""

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOL = Path(sys.executable).parent / "clang-tidy"
TOGETHER = 12
ROOMS = ("foveate", "tests", "bench", "examples")


def flags(command: str) -> tuple[str, ...]:
    """What of a compile command concerns the reading of a source; warnings are GCC's own, and so is a precompiled header's file."""
    words, kept = iter(shlex.split(command)), []
    for word in words:
        if word in ("-isystem", "-I"):
            kept += [word, next(words)]
        elif word == "-include" and next(words).endswith("cmake_pch.hxx"):
            kept += ["-include", str(ROOT / "foveate/registry/precompiled.h")]
        elif re.match(r"-[ID]|-std=|-m", word):
            kept.append(word)
    return tuple(kept)


def sources(build: Path) -> dict[Path, tuple[str, ...]]:
    """Every source of ours with its flags. A kernel is compiled several times; once is enough, and its widest form says most."""
    found: dict[Path, tuple[str, ...]] = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = Path(entry["file"])
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ROOMS:
            found[path] = flags(entry["command"])
    return found


@cache
def headers() -> dict[str, Path]:
    """Our headers by file name, which is how they are included."""
    return {path.name: path for room in ROOMS for path in (ROOT / room).rglob("*.h")}


@cache
def read(path: Path) -> str:
    """The text of a file."""
    return path.read_text()


def reached(path: Path, seen: set[Path]) -> set[Path]:
    """A file and all of our headers that it includes."""
    if path not in seen:
        seen.add(path)
        for name in re.findall(r'#include [<"](?:[\w/]*/)?(\w+\.h)[>"]', read(path)):
            if name in headers():
                reached(headers()[name], seen)
    return seen


def fingerprint(path: Path, how: tuple[str, ...]) -> str:
    """Changes when anything that the findings depend on changes."""
    version = subprocess.run([TOOL, "--version"], capture_output=True, text=True, check=True).stdout
    texts = [read(p) for p in sorted(reached(path, set()))]
    return hashlib.sha256("\0".join([version, read(ROOT / ".clang-tidy"), *how, *texts]).encode()).hexdigest()


def check(batch: list[Path], how: tuple[str, ...], folder: Path) -> list[str]:
    """The findings in some sources, read as one."""
    name = hashlib.sha256("\0".join(map(str, batch)).encode()).hexdigest()[:16]
    together = folder / f"{name}.cpp"
    together.write_text("".join(f'#include "{path}"  // NOLINT\n' for path in batch))
    command = [str(TOOL), "--quiet", f"--config-file={ROOT / '.clang-tidy'}", str(together)]
    done = subprocess.run([*command, "--", "-x", "c++", *how], capture_output=True, text=True, check=False)
    together.unlink()
    if done.returncode == 0:
        return []
    if len(batch) > 1 and "clang-diagnostic-error" in done.stdout:
        half = len(batch) // 2
        return check(batch[:half], how, folder) + check(batch[half:], how, folder)
    return [done.stdout.strip() or done.stderr.strip()]


def main() -> int:
    """Checks what changed; 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    folder = given.build.resolve() / "tidy"
    folder.mkdir(parents=True, exist_ok=True)

    alike: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    stamps = {}
    for path, how in sorted(sources(given.build).items()):
        stamps[path] = folder / fingerprint(path, how)
        if not stamps[path].exists():
            alike[how].append(path)
    # Batches of equal size, enough for every job to have one.
    batches = []
    for how, paths in alike.items():
        count = min(len(paths), max(given.jobs, -(-len(paths) // TOGETHER)))
        batches += [(paths[i::count], how) for i in range(count)]
    print(f"clang-tidy: {sum(map(len, alike.values()))} of {len(stamps)} sources changed", flush=True)

    findings = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for (batch, _), found in zip(batches, pool.map(lambda work: check(work[0], work[1], folder), batches), strict=True):
            findings += found
            if not found:
                for path in batch:
                    stamps[path].touch()
    print("\n".join(findings))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
