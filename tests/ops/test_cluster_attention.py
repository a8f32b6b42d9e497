"""cluster_attention against a loop over places: values, rules, gradients, threads; hashing and the sorted line of lsh."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

PRIMITIVE = torch.ops.foveate._cluster_attention
FORMULA = torch.ops.foveate._cluster_attention_formula
DEFAULTS: dict[str, Any] = {
    "k_weight": None, "q_index": None, "k_index": None, "key_mask": None, "query_mask": None, "label": None, "meetings": None, "dropout_keep": None,
    "dropout_seed": None, "causal_keys": 0, "self_score": None, "q_size": 0, "k_size": 0, "before": 0, "after": 0, "circular": False,
    "self_seen": True, "merged": False, "scale": 0.5, "dropout": 0.0,
}  # fmt: skip


def attend(q: Tensor, k: Tensor, v: Tensor, run: Any = PRIMITIVE, **given: Any) -> Any:
    """The primitive, its arguments by name."""
    return run(q, k, v, **{**DEFAULTS, **given})


def in_one_line(index: Tensor, size: int) -> Tensor:
    """Rounds [B,H,R,P] one after another, each filled up to whole clusters."""
    return index if index.dim() == 3 else torch.nn.functional.pad(index, (0, -index.shape[3] % size), value=-1).flatten(2)


def by_loop(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """One place after another; merged, one token after another, with all that its places see."""
    o = {**DEFAULTS, **given}
    B, H, N, _ = q.shape
    M = k.shape[2]
    tq = torch.arange(N).expand(B, H, N) if o["q_index"] is None else in_one_line(o["q_index"], o["q_size"])
    tk = torch.arange(M).expand(B, H, M) if o["k_index"] is None else in_one_line(o["k_index"], o["k_size"])
    q_size, k_size = o["q_size"] or tq.shape[2], o["k_size"] or tk.shape[2]
    clusters = -(-tq.shape[2] // q_size)
    met: dict[tuple[int, int, int], tuple[list[Tensor], list[Tensor]]] = {}
    for b, h, i in itertools.product(range(B), range(H), range(tq.shape[2])):
        t = int(tq[b, h, i])
        scores, values = met.setdefault((b, h, t if o["merged"] else i), ([], []))
        for shift in range(-o["before"], o["after"] + 1):
            c = i // q_size + shift
            if not o["circular"] and not 0 <= c < clusters:
                continue
            c %= clusters
            for j in range(c * k_size, min((c + 1) * k_size, tk.shape[2])):
                u = int(tk[b, h, j])
                if t < 0 or u < 0:
                    continue
                seen = o["key_mask"] is None or bool(o["key_mask"][b, u])
                seen = seen and (o["query_mask"] is None or bool(o["query_mask"][b, t]))
                seen = seen and (u <= t or u >= o["causal_keys"])
                weight = 1 if o["k_weight"] is None else o["k_weight"][b, h, j]
                s = o["scale"] * q[b, h, t] @ (weight * k[b, h, u])
                if o["self_score"] is not None and u == t:
                    s, seen = s.new_tensor(o["self_score"]), seen or o["self_seen"]
                if o["label"] is not None:
                    seen = seen and bool(o["label"][b, h, i] == o["label"][b, h, j])
                if o["meetings"] is not None:
                    here, behind = o["meetings"][:, b, h]
                    count = int((here[:, t] == here[:, u]).sum() + (here[:, t] == behind[:, u]).sum())
                    s = s - torch.tensor(count + 1e-9, dtype=s.dtype).log()
                if seen:
                    scores.append(s)
                    values.append(weight * v[b, h, u])
    rows = N if o["merged"] else tq.shape[2]
    out, lse = q.new_zeros(B, H, rows, v.shape[3]), q.new_full((B, H, rows), -torch.inf)
    for at, (scores, values) in met.items():
        if scores:
            lse[at] = torch.stack(scores).logsumexp(0)
            out[at] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return out, lse


def drawn(N: int = 13, M: int = 13, *, D: int = 3, Dv: int = 5, B: int = 2, H: int = 2) -> dict[str, Any]:
    g = torch.Generator().manual_seed(N)
    sizes = {"q": (B, H, N, D), "k": (B, H, M, D), "v": (B, H, M, Dv)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in sizes.items()}


def line(places: int, tokens: int, seed: int = 1, *, B: int = 2, H: int = 2) -> Tensor:
    """Who stands where: anybody, or nobody."""
    return torch.randint(-1, tokens, (B, H, places), generator=torch.Generator().manual_seed(seed))


def weights(places: int) -> Tensor:
    """Of keys, one of them 0."""
    drawn = torch.randn(2, 2, places, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return drawn.masked_fill(torch.arange(places) == 1, 0)


def masks(N: int, M: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {"key_mask": torch.rand(2, M, generator=g) < 0.7, "query_mask": torch.rand(2, N, generator=g) < 0.7}


# fmt: off
RULES: dict[str, dict[str, Any]] = {
    "in order": {"q_size": 4, "k_size": 4, "before": 1, "after": 1},
    "circular": {"q_size": 4, "k_size": 4, "before": 1, "circular": True, "causal_keys": 13},
    "one cluster": {"causal_keys": 13, "self_score": -3.0},
    "line": {"q_index": line(12, 13), "k_index": line(8, 13, 2), "q_size": 3, "k_size": 2, "causal_keys": 9, **masks(13, 13)},
    "self": {"q_size": 4, "k_size": 4, "before": 1, "self_score": -2.0, "causal_keys": 13, **masks(13, 13)},
    "self unseen": {"q_size": 4, "k_size": 4, "before": 1, "self_score": -2.0, "self_seen": False, **masks(13, 13)},
    "labels": {"q_index": line(12, 13), "k_index": line(12, 13), "label": line(12, 3, 5), "q_size": 4, "k_size": 4, "before": 1, "self_score": -1.0},
    "meetings": {"q_size": 5, "k_size": 5, "before": 1, "circular": True, "meetings": torch.randint(0, 3, (2, 2, 2, 4, 13))},
    "merged": {"q_index": line(24, 13), "k_index": line(16, 13, 2), "q_size": 3, "k_size": 2, "before": 1, "merged": True, "self_score": -1.0},
    "rounds": {"q_index": line(39, 13).unflatten(2, (3, 13)), "k_index": line(24, 13, 2).unflatten(2, (3, 8)), "q_size": 5, "k_size": 3,
               "merged": True, **masks(13, 13)},
    "weighted": {"k_index": line(16, 13, 2), "k_weight": weights(16), "q_size": 4, "k_size": 4, "key_mask": masks(13, 13)["key_mask"]},
    "weighted, around": {"k_weight": weights(13), "q_size": 4, "k_size": 4, "before": 1, "after": 1, "self_score": -2.0, "causal_keys": 13},
    "met twice": {"q_size": 7, "k_size": 7, "before": 2, "after": 1, "circular": True},
}
# fmt: on


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("run", [PRIMITIVE, FORMULA], ids=["primitive", "formula"])
def test_as_the_loop(rule: dict[str, Any], run: Any) -> None:
    for got, want in zip(attend(**drawn(), **rule, run=run), by_loop(**drawn(), **rule), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("size", [1, 64, 70, 0])
def test_at_the_borders_of_tiles(length: int, size: int) -> None:
    a = drawn(length, length)
    how = {"q_size": size, "k_size": size, "before": 1, "circular": True, "causal_keys": length, "self_score": -1.0}
    for got, want in zip(attend(**a, **how), attend(**a, **how, run=FORMULA), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_gradients_are_those_of_the_formula(rule: dict[str, Any]) -> None:
    found = []
    for run in (PRIMITIVE, FORMULA):
        a = {n: x.requires_grad_() for n, x in drawn().items()}
        if "k_weight" in rule:
            a["k_weight"] = rule["k_weight"].clone().requires_grad_()
        out, lse = attend(**{**rule, **a}, run=run)
        loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() + lse.masked_fill(lse == -torch.inf, 0).sin().sum()
        found.append(torch.autograd.grad(loss, list(a.values())))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_dropout_by_seed_is_the_same_in_kernel_and_formula() -> None:
    how: dict[str, Any] = {"q_size": 6, "k_size": 6, "before": 1, "dropout": 0.4, "dropout_seed": torch.tensor(7)}
    found = []
    for run in (PRIMITIVE, FORMULA):
        a = {n: x.requires_grad_() for n, x in drawn().items()}
        out, _ = attend(**a, **how, run=run)
        found.append([out, *torch.autograd.grad(out.sin().sum(), list(a.values()))])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found[0][0], attend(**drawn(), **{**how, "dropout_seed": None})[0])


@pytest.mark.parametrize("rule", ["in order", "merged", "rounds"])
def test_dropout_by_a_draw_is_the_same_in_kernel_and_formula(rule: str) -> None:
    how = RULES[rule] | {"dropout": 0.5}
    index = how.get("q_index", torch.zeros(2, 2, 13))
    slots = (how.get("before", 0) + 1 + how.get("after", 0)) * how["k_size"]
    how["dropout_keep"] = torch.rand(*index.shape, slots, generator=torch.Generator().manual_seed(4)) < 0.5
    found = []
    for run in (PRIMITIVE, FORMULA):
        a = {n: x.requires_grad_() for n, x in drawn().items()}
        out, _ = attend(**a, **how, run=run)
        found.append([out, *torch.autograd.grad(out.sin().sum(), list(a.values()))])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    how["dropout_keep"] = torch.ones_like(how["dropout_keep"])
    torch.testing.assert_close(attend(**drawn(), **how)[0], 2 * attend(**drawn(), **RULES[rule])[0])


@pytest.mark.parametrize("rule", ["self", "meetings", "line", "merged", "rounds", "weighted"])
def test_gradients_of_every_order(rule: str) -> None:
    a = drawn(D=2, Dv=2)
    leaves = tuple(x.requires_grad_() for x in a.values())

    def function(*given: Tensor) -> Tensor:
        out: Tensor = attend(*given, **RULES[rule])[0]
        return out

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_a_place_without_a_query_and_one_without_keys_get_zeros() -> None:
    a = {n: x.requires_grad_() for n, x in drawn().items()}
    nobody = torch.full((2, 2, 4), -1)
    for empty in ({"q_index": nobody}, {"k_index": nobody}):
        out, lse = attend(**a, **empty)
        assert (out == 0).all()
        assert (lse == -torch.inf).all()
        assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), list(a.values())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_in_float(dtype: torch.dtype) -> None:
    a = {n: x.to(dtype) for n, x in drawn(200, 200).items()}
    how = {"q_size": 32, "k_size": 32, "before": 1, "self_score": -5e4, "causal_keys": 200}
    out, lse = attend(**a, **how)
    exact = attend(**{n: x.double() for n, x in a.items()}, **how)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.double(), exact[0], rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps + 1e-5)
    torch.testing.assert_close(lse.double(), exact[1], rtol=1e-5, atol=1e-4)


def test_strides_do_not_matter() -> None:
    a = drawn()
    strange = {n: x.transpose(1, 2).contiguous().transpose(1, 2) for n, x in a.items()}
    strange["v"] = a["v"].mT.contiguous().mT
    for got, want in zip(attend(**strange, **RULES["self"]), attend(**a, **RULES["self"]), strict=True):
        assert torch.equal(got, want)


def test_threads_do_not_matter() -> None:
    a = {n: x.float().requires_grad_() for n, x in drawn(300, 300).items()}
    found = []
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        out = sum(attend(**a, q_size=32, k_size=32, before=1, circular=True, merged=merged)[0] for merged in (False, True))
        found.append([out, *torch.autograd.grad(out.sin().sum(), list(a.values()))])
    torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="equally many clusters, got 4 of queries and 3 of keys"):
        attend(**drawn(), q_size=4, k_size=5)
    with pytest.raises(IndexError, match="k_index must name tokens below 13, or -1, got 13"):
        attend(**drawn(), k_index=torch.full((2, 2, 3), 13))


def test_it_keeps_the_contract_of_operators() -> None:
    for rule in (RULES["line"], RULES["meetings"], RULES["rounds"]):
        a = {n: x.requires_grad_() for n, x in drawn().items()}
        opcheck(PRIMITIVE, tuple(a.values()), {**DEFAULTS, **rule})


# --- hashing ------------------------------------------------------------------------------------------------------------------------------


def buckets_of(x: Tensor, **given: Any) -> Tensor:
    o = {"rotations": None, "seed": None, "mask": None, "factors": [], "rounds": 1, "chunk": 4, "rule": 0, "longest": None, "per_head": False,
         "rehash": True, **given}  # fmt: skip
    found: Tensor = torch.ops.foveate._lsh_buckets(x, **o)
    return found


def test_buckets_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.1], [0.0, 0.0]]).view(1, 1, 4, 2)
    eye = torch.eye(2).view(1, 2, 1, 2)
    assert buckets_of(x, rotations=eye, factors=[4]).flatten().tolist() == [0, 1, 2, 0]  # of equal ones the first
    two = torch.cat([torch.eye(2), torch.eye(2).flip(1)], 1).view(1, 2, 2, 2).contiguous()
    both = buckets_of(x, rotations=two, factors=[2, 2], rounds=2)
    assert both.shape == (1, 1, 2, 4)
    assert int(both[0, 0, 1].min()) >= 4  # rounds have buckets of their own
    hidden = buckets_of(x, rotations=eye, factors=[4], mask=torch.tensor([[True, True, False, True]]))
    assert hidden.flatten().tolist() == [0, 1, 4, 0]


def test_several_buckets_of_one_rotation_are_the_best_in_ascending_order() -> None:
    x = torch.tensor([3.0, 1.0]).view(1, 1, 1, 2)
    found = buckets_of(x, rotations=torch.eye(2).view(1, 2, 1, 2), factors=[4], rounds=2, rehash=False)
    assert found.flatten().tolist() == [1, 4]  # the second best; the best, of round 1


def test_the_number_of_buckets_follows_the_length() -> None:
    x = torch.randn(1, 1, 64, 3, generator=torch.Generator().manual_seed(0))
    seed = torch.tensor(1)
    assert buckets_of(x, seed=seed).max() < 16  # one a chunk
    assert buckets_of(x, seed=seed, rule=1, chunk=2).max() < 64
    assert torch.equal(buckets_of(x, seed=seed), buckets_of(x, seed=seed))


@pytest.mark.parametrize("within", [False, True])
def test_the_line_is_sorted_by_bucket_then_time(within: bool) -> None:
    buckets = torch.randint(0, 3, (2, 1, 2, 10), generator=torch.Generator().manual_seed(0)) + torch.tensor([[0], [3]])
    token, place, label, meetings = torch.ops.foveate._lsh_line(buckets, 4, within)
    assert token.shape == (2, 1, 24)  # 10 tokens fill three chunks of 4, two nobody stands in
    for b, r in itertools.product(range(2), range(2)):
        row = token[b, 0, 12 * r : 12 * r + 12].tolist()
        want = sorted(range(10), key=lambda t: (int(buckets[b, 0, r, t]), t))
        assert row == [*want, -1, -1]
        assert [12 * r + row.index(t) for t in range(10)] == place[b, 0, 10 * r : 10 * r + 10].tolist()
        assert label[b, 0, 12 * r : 12 * r + 12].tolist() == [*(int(buckets[b, 0, r, t]) for t in want), -1, -1]
        chunk = place[b, 0, 10 * r : 10 * r + 10] // 4
        apart = buckets[b, 0, r] * 6 if within else 0
        assert torch.equal(meetings[0, b, 0, r], chunk + apart)
        assert torch.equal(meetings[1, b, 0, r], (chunk + 1) % 6 + apart)


def test_hashing_keeps_the_contract_of_operators() -> None:
    x = torch.randn(2, 2, 10, 3)
    opcheck(torch.ops.foveate._lsh_buckets, (x, None, torch.tensor(3), None, [4], 2, 4, 0, None, False, True))
    opcheck(torch.ops.foveate._lsh_line, (buckets_of(x, seed=torch.tensor(3), rounds=2), 4, False))
