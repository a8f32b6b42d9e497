"""Loads the shared library into torch, or says what to do."""

import os
from pathlib import Path

_FOLDER = Path(__file__).parent / "lib"


def version() -> str:
    """Loads the library once and returns its version, "0.1.0"."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"foveate needs PyTorch {_built_with()}: pip install torch=={_built_with()}") from error
    built, found = _built_with(), torch.__version__
    if built.split(".")[:2] != found.split(".")[:2]:
        raise ImportError(
            f"foveate was built for torch {built} and found torch {found}: install torch=={built}, "
            "or build foveate again with the torch you have (pip install --no-build-isolation .)"
        )
    library = Path(os.environ.get("FOVEATE_LIBRARY", _FOLDER / "libfoveate.so"))
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(f"foveate could not load {library} ({error}): build it with `make build`") from error
    return str(torch.ops.foveate.version())


def _built_with() -> str:
    recorded = _FOLDER / "torch_version.txt"
    return recorded.read_text().strip() if recorded.exists() else "2.13.0"
