"""Maps of published names: they cover every parameter, no entry is idle, and weights come back as they were saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import _checkpoints
from foveate._catalog import card_of, forms
from tests.contract import cases

FOLDER = Path(_checkpoints.__file__).parent / "checkpoints"
MAPPED = [form.name for form in forms().values() if _checkpoints.sources(form)]
CASES = [case for case in cases() if case.card.has_parameters]
LINFORMER = {"embed_dim": 8, "num_heads": 2, "length": 9, "rank": 4}
MEMORY = {"input_dim": 6, "heads": 2, "n_keys": 5, "key_dim": 4, "topk": 3}
MORE: dict[str, list[dict[str, Any]]] = {  # options with other tensors than those of the cases
    "bp_transformer_block": [{"embed_dim": 6, "num_heads": 2, "inner_dim": 8, "memory": True}],
    "mab": [{"query_dim": 3, "key_dim": 4, "dim": 8, "num_heads": 2, "layer_norm": True}],
    "isab": [{"in_dim": 3, "dim": 8, "num_heads": 2, "layer_norm": True}],
    "linformer_attention": [{"length": 9, "rank": 4, "kind": "fixed"}],
    "linformer_multihead_attention": [
        {**LINFORMER, "bias": False, "project": "heads"},
        {**LINFORMER, "bias": False, "project": "heads", "slot_bias": True, "sharing": "none"},
        {**LINFORMER, "bias": False, "project": "heads", "slot_bias": True, "sharing": "kv", "out_inner_dim": 5},
    ],
    "product_key_memory": [
        {**MEMORY, "query_hidden": [5, 4], "shuffle_indices": True},
        {**MEMORY, "query_hidden": [5, 4], "query_batchnorm": False, "shuffle_indices": True},
    ],
    "routing_transformer": [{"vocab_size": 7, "embed_dim": 8, "depth": 1, "num_heads": 2, "local_heads": [1], "num_mem_kv": 1}],
    "sinkhorn_transformer": [
        {"vocab_size": 7, "embed_dim": 8, "depth": 1, "num_heads": 2, "bucket_size": 4, "max_len": 16, "causal": True, "sort_net": "simple"}
    ],
    "synthesizer": [{"embed_dim": 8, "num_heads": 2, "max_len": 9, "kinds": ["vanilla"], "bias": True}],
    "linformer_encoder": [{**LINFORMER, "depth": 2, "slot_bias": True}, {**LINFORMER, "depth": 1, "slot_bias": True, "sharing": "layerwise"}],
}
BACK: dict[str, Any] = {  # from our tensor, or tensors, to theirs
    "": lambda x: x,
    "transpose": lambda x: x.transpose(-1, -2),
    "flatten": lambda x: x[..., None, None],
    "vector": lambda x: x[:, None, None],
    "plane": lambda x: x.unsqueeze(2),
    "taps_first": lambda x: x.movedim((0, 1), (-1, -2)),
    "first_rows": lambda x: torch.cat([x, x]),
    "split": torch.cat,
    "transpose_split": lambda xs: torch.cat(xs).transpose(-1, -2),
    "unstack": torch.stack,
}
MAPS = [(name, source) for name in MAPPED for source in _checkpoints.sources(forms()[name])]


def pairs(name: str) -> list[tuple[Any, Any]]:
    """Two layers of every set of options, with other weights."""
    made = [(case.layer(), case.layer(seed=1)) for case in CASES if case.form == name]
    layer = getattr(foveate.nn, forms()[name].class_name)
    return made + [(layer(**options), layer(**options)) for options in MORE.get(name, [])]


def saved(entries: tuple[_checkpoints.Entry, ...], state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Our tensors as the source would have saved them; None where the source has no name for one."""
    result = {}
    together: dict[tuple[str, str], list[Tensor]] = {}
    for name, x in state.items():
        makers = [e for e in entries if any(_checkpoints._matched(p, name) is not None for p in e.ours)]
        if not makers:
            return None
        published, op = str(_checkpoints.published_name(entries, name)), makers[0].op
        if op in ("split", "transpose_split", "unstack"):
            together.setdefault((published, op), []).append(x)
        elif op in ("concat", "stack"):
            joined = [str(_checkpoints.published_name((e,), name)) for e in makers if e.op == op]
            count = len(x) if op == "stack" else 2
            names = [n.replace("{i}", str(i)) for n in joined for i in range(count if "{i}" in n else 1)]
            result |= zip(names, x.chunk(len(names)) if op == "concat" else x.unbind(), strict=True)
        else:
            result[published] = BACK[op](x)
    if any(x.shape[1:] != xs[0].shape[1:] for xs in together.values() for x in xs):
        return None  # such a source names these apart
    return result | {name: BACK[op](xs) for (name, op), xs in together.items()}


def test_a_map_names_every_form_of_its_paper_that_has_parameters_and_nothing_else() -> None:
    papers = {path.stem for path in FOLDER.glob("*.json")}
    assert set(MAPPED) == {case.form for case in CASES if card_of(case.card).slug in papers}
    named = {(card_of(form).slug, form.class_name) for form in forms().values()}
    for path in FOLDER.glob("*.json"):
        assert {(path.stem, name) for name in json.loads(path.read_text())} <= named


@pytest.mark.parametrize("name", MAPPED)
def test_some_source_names_every_parameter_and_no_entry_is_idle(name: str) -> None:
    known = _checkpoints.sources(forms()[name])
    ours = {parameter for layer, _ in pairs(name) for parameter in layer.state_dict()}
    for parameter in ours:
        assert any(_checkpoints.published_name(entries, parameter) for entries in known.values()), f"no source names {parameter}"
    for source, entries in known.items():
        for entry in entries:
            for pattern in entry.ours:
                assert any(_checkpoints._matched(pattern, parameter) is not None for parameter in ours), f"{source}: {pattern} is no parameter"


@pytest.mark.parametrize(("name", "source"), MAPS)
def test_saved_weights_come_back(name: str, source: str) -> None:
    entries = _checkpoints.sources(forms()[name])[source]
    tried = 0
    for layer, other in pairs(name):
        if not layer.state_dict() or (theirs := saved(entries, layer.state_dict())) is None:
            continue
        assert foveate.nn.load_published(other, theirs, source) == source
        for parameter, x in layer.state_dict().items():
            assert torch.equal(other.state_dict()[parameter], x), parameter
        tried += 1
    assert tried, "no case has only parameters that this source names"


def test_numbers_move_by_what_the_map_says() -> None:
    entries = (_checkpoints.Entry("bn_{i}.*", ("hidden.{i-1}.norm.*",)),)
    found, unknown = _checkpoints.renamed(entries, {"bn_3.weight": torch.ones(1), "fc.weight": torch.ones(1)})
    assert list(found) == ["hidden.2.norm.weight"] and unknown == ["fc.weight"]
    assert _checkpoints.published_name(entries, "hidden.0.norm.bias") == "bn_1.bias"


def multihead(**options: Any) -> Any:
    return foveate.nn.MultiheadAttention(**{"embed_dim": 4, "num_heads": 2, **options})


def torch_state() -> dict[str, Tensor]:
    return torch.nn.MultiheadAttention(4, 2).state_dict()


def test_loaded_weights_give_the_same_attention() -> None:
    theirs, ours, x = torch.nn.MultiheadAttention(4, 2, batch_first=True).double(), multihead().double(), torch.randn(2, 5, 4).double()
    with torch.no_grad():
        theirs.in_proj_bias.normal_()
    assert foveate.nn.load_published(ours, theirs.state_dict()) == "torch"
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_projections_of_another_width_come_apart() -> None:
    theirs, ours = torch.nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True).double(), multihead(context_dim=3).double()
    x, context = torch.randn(2, 5, 4).double(), torch.randn(2, 6, 3).double()
    foveate.nn.load_published(ours, theirs.state_dict())
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_proj.bias": None}, r"missing out_proj.bias \(our out.bias\)"),
        ({"in_proj_weight": None}, r"missing in_proj_weight \(our query.weight\)"),
        ({"extra": torch.ones(1)}, "surplus extra"),
        ({"out_proj.weight": torch.ones(4, 3)}, r"out_proj.weight \(our out.weight\) must have shape \[4, 4\], got \[4, 3\]"),
        ({"q_proj_weight": torch.ones(4, 4)}, "surplus q_proj_weight"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change: dict[str, Tensor | None], message: str) -> None:
    layer = multihead()
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    state = {name: x for name, x in {**torch_state(), **change}.items() if x is not None}
    with pytest.raises(ValueError, match=message):
        foveate.nn.load_published(layer, state)
    assert all(torch.equal(x, before[name]) for name, x in layer.state_dict().items())


def test_options_that_lack_a_tensor_say_so() -> None:
    with pytest.raises(ValueError, match=r"surplus in_proj_bias \(our query.bias, which these options do not have\)"):
        foveate.nn.load_published(multihead(bias=False), torch_state(), "torch")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="source must be one of torch, paper, got keras"):
        foveate.nn.load_published(multihead(), {}, "keras")
    with pytest.raises(ValueError, match="RotaryAttention has no map"):
        foveate.nn.load_published(foveate.nn.RotaryAttention(), {})
    with pytest.raises(TypeError, match=r"must be a layer of foveate\.nn, got Linear"):
        foveate.nn.load_published(torch.nn.Linear(1, 1), {})  # type: ignore[arg-type]
