"""The answer in plain words."""

from tests.compare.made import panel, result


def test_answer_names_the_fastest_that_is_close_enough_and_where_it_starts_to_pay() -> None:
    made = panel(result("Close", (2, 0.5, 0.25), 0.04), result("Quick", (0.1, 0.1, 0.1), 0.6))
    assert made.answer == [
        "For your text at N = 1024, Close is 4.0 times faster than exact attention with an error of 4 %. Below N = 362 exact attention wins.",
        "If the model can be trained with it, Quick is the fastest: 10 times faster than exact attention, "
        "though dropped in untrained it is off by 60 %. It is faster at every length measured, from N = 256 on.",
    ]


def test_tolerance_decides_who_is_close_enough() -> None:
    quick = result("Quick", (0.1, 0.1, 0.1), 0.6)
    assert panel(quick, tolerance=0.7).answer[0].startswith("For your text at N = 1024, Quick is 10 times faster")
    assert panel(quick).answer == [
        "For your text at N = 1024, nothing faster than exact attention stays within 10 % of its result. "
        "The closest, Quick, is 10 times faster with an error of 60 %."
    ]


def test_answer_says_so_where_exact_attention_wins() -> None:
    assert panel(result("Slow", (3, 2, 1.5), 0.01)).answer == [
        "For your text at N = 1024, exact attention is as fast as anything that stands in for it."
    ]


def test_training_is_told_when_it_was_measured() -> None:
    assert "with an error of 4 % (2.0 times in training)." in panel(result("Close", (2, 0.5, 0.25), 0.04, training=0.5)).answer[0]
    assert "(but 3.0 times slower in training)" in panel(result("Close", (2, 0.5, 0.25), 0.04, training=3.0)).answer[0]


def test_a_faster_exact_attention_is_no_approximation() -> None:
    answer = panel(result("Ours", (0.8, 0.8, 0.5), 1e-7, relation="exact")).answer
    assert answer[0] == "For your text at N = 1024, nobody was there to stand in for exact attention."
    assert answer[-1] == "Ours gives the same result as torch's and is 2.0 times faster."
    assert "error" not in " ".join(answer)


def test_mechanisms_that_compute_something_else_are_not_offered_as_stand_ins() -> None:
    assert "Other" not in " ".join(panel(result("Other", (0.1, 0.1, 0.1), None, relation="different")).answer)


def test_layers_are_compared_by_cost_alone() -> None:
    answer = panel(result("Gate", (0.5, 0.1, 0.01), None, relation="different"), kind="map").answer
    assert answer[0].startswith("For your text at N = 1024, Gate is 100 times faster than the non-local block.")
    assert "not what they put out" in answer[1]
