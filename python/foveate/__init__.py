"""Efficient attention: every mechanism of the field, exact to its paper, as functions, layers and primitives on libtorch.

`foveate.catalog()` lists the mechanisms, `foveate.nn` holds their layers, `foveate.<form>(...)` are the same forms as functions of
their parameters; `foveate.attention`, `sparse_attention`, `linear_attention` and `merge_attention` are the primitives below them,
`foveate.patterns` says who attends to whom. From C++: `find_package(foveate)`, with `foveate.cmake_prefix_path` on the prefix path.
"""

from pathlib import Path
from typing import Any

from foveate import _library

__version__ = _library.version()

from foveate import nn, patterns, training
from foveate._cache import KVCache
from foveate._catalog import Card, Field, FormCard, catalog
from foveate._functions import functions as _functions
from foveate.ops import attention, linear_attention, merge_attention, product_key_usage, random_projection, sparse_attention

cmake_prefix_path: str = str(Path(__file__).parent / "share" / "cmake")
"""Directory to put on CMAKE_PREFIX_PATH for `find_package(foveate)`."""

_primitives = {"attention", "linear_attention", "merge_attention", "sparse_attention"}
_forms = {name: function for name, function in _functions().items() if name not in _primitives}
globals().update(_forms)

__all__ = [
    "Card",
    "Field",
    "FormCard",
    "KVCache",
    "attention",
    "catalog",
    "cmake_prefix_path",
    "linear_attention",
    "merge_attention",
    "nn",
    "patterns",
    "product_key_usage",
    "random_projection",
    "sparse_attention",
    "training",
    *_forms,
]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"foveate has no '{name}'; foveate.catalog() lists the forms, for example foveate.linformer_attention")
