import numpy as np
import pytest

from speech.decoding import WordDecoder, most_confident

LABELS = ("yes", "no", "_unknown_")


def row(*posteriors: float) -> np.ndarray:
    return np.array(posteriors, np.float32)


def test_decides_on_the_mean_of_the_windows() -> None:
    decoder = WordDecoder(LABELS, {"yes": 0.7, "no": 0.7}, n_windows=2)
    assert decoder.push(row(1.0, 0.0, 0.0)) is None  # one window is not enough
    nearly = decoder.push(row(0.3, 0.3, 0.4))  # mean 0.65
    assert nearly is not None
    assert not nearly.is_sure
    decoder.push(row(0.0, 0.0, 1.0))
    assert decoder.push(row(0.9, 0.1, 0.0)) is None  # mean 0.45 is not even near
    decision = decoder.push(row(0.9, 0.1, 0.0))
    assert decision is not None
    assert decision.is_sure
    assert decision.word == "yes"
    assert decision.confidence == pytest.approx(0.9)


def test_a_label_that_may_not_be_reported_still_competes() -> None:
    decoder = WordDecoder(LABELS, {"yes": 0.3}, n_windows=1)
    assert decoder.push(row(0.4, 0.6, 0.0)) is None
    assert decoder.push(row(0.4, 0.0, 0.6)) is None
    assert decoder.push(row(0.5, 0.3, 0.2)) is not None


def test_reset_forgets() -> None:
    decoder = WordDecoder(LABELS, {"yes": 0.5}, n_windows=2)
    decoder.push(row(1, 0, 0))
    decoder.reset()
    assert decoder.push(row(1, 0, 0)) is None


def test_the_window_with_the_clearest_word_counts() -> None:
    posteriors = np.stack([row(0.1, 0.1, 0.8), row(0.2, 0.7, 0.1), row(0.6, 0.2, 0.2)])
    chosen = most_confident(posteriors, np.array([True, True, False]))
    np.testing.assert_array_equal(chosen, posteriors[1])
