"""Sequences of words: the Listener and the Recogniser on a CTC bundle that tells tones apart."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speech import spotters
from speech.errors import AudioError, BundleError, ConfigError
from speech.grammar import Grammar
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Detection

Tone = Callable[[float, float], np.ndarray]
RATE = 16000
SAID = ["low", "high", "high", "low"]


@pytest.fixture(scope="module")
def recognizer(sequence_bundle: Path) -> Recognizer:
    return Recognizer.load(sequence_bundle)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


@pytest.fixture(scope="module")
def stream(tone: Tone) -> np.ndarray:
    """low at 1.0 s, high at 1.5, other speech at 2.0, high at 2.4, low at 2.9; each 0.32 s but the other, 0.2 s."""
    pieces = [
        silence(1.0), tone(300, 0.32), silence(0.18), tone(2000, 0.32), silence(0.18), tone(4000, 0.2), silence(0.2),
        tone(2000, 0.32), silence(0.18), tone(300, 0.32), silence(1.0),
    ]  # fmt: skip
    return np.concatenate(pieces)


def chunks(stream: np.ndarray, size: int) -> list[np.ndarray]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


def test_a_recording_is_transcribed_with_times(recognizer: Recognizer, stream: np.ndarray) -> None:
    found = recognizer.transcribe(stream, RATE)
    assert [word.word for word in found] == SAID
    for word, start_s in zip(found, (1.0, 1.5, 2.4, 2.9), strict=True):
        assert word.start_s == pytest.approx(start_s, abs=0.05)
        assert word.end_s == pytest.approx(start_s + 0.32, abs=0.05)
        assert word.confidence > 0.9


def test_long_recordings_are_seen_through_windows_without_seams(recognizer: Recognizer, stream: np.ndarray) -> None:
    for lead_s in (0.0, 1.3, 2.6):
        long = np.concatenate([silence(lead_s)] + 12 * [stream])
        found = recognizer.transcribe(long, RATE)
        assert [word.word for word in found] == 12 * SAID
        starts = lead_s + np.add.outer(np.arange(12) * len(stream) / RATE, [1.0, 1.5, 2.4, 2.9]).ravel()
        np.testing.assert_allclose([word.start_s for word in found], starts, atol=0.05)


def test_the_grammar_rejects_what_it_does_not_hold(recognizer: Recognizer, stream: np.ndarray) -> None:
    whole = Grammar.parse("low high high low", ["low", "high"])
    assert [w.word for w in recognizer.transcribe(stream, RATE, grammar=whole)] == SAID
    only = Grammar.parse("high", ["low", "high"]).repeated()
    assert [w.word for w in recognizer.transcribe(stream, RATE, grammar=only)] == ["high", "high"]


def test_only_the_words_asked_for(recognizer: Recognizer, stream: np.ndarray) -> None:
    """No "low" is taken for "high", though the search may write nothing else."""
    found = list(Listener(recognizer, ["high"]).listen([stream]))
    assert [d.word for d in found] == ["high", "high"]
    whole = recognizer.transcribe(stream, RATE, grammar=Grammar.any_of(["high"]))
    assert [w.word for w in whole] == ["high", "high"]


@pytest.mark.parametrize("seconds", [0.001, 0.025, 0.3, 60.0])
def test_silence_of_any_length_holds_no_word(recognizer: Recognizer, seconds: float) -> None:
    assert recognizer.transcribe(silence(seconds), RATE) == []
    assert list(Listener(recognizer).listen([silence(seconds)])) == []


def test_an_empty_recording_is_refused(recognizer: Recognizer) -> None:
    with pytest.raises(AudioError, match="samples of shape"):
        recognizer.transcribe(silence(0), RATE)


def test_single_words_are_classified(recognizer: Recognizer, tone: Tone) -> None:
    for pitch_hz, word in ((300, "low"), (2000, "high"), (4000, "_unknown_")):
        prediction = recognizer.classify(np.concatenate([silence(0.3), tone(pitch_hz, 0.4), silence(0.3)]), RATE)
        assert prediction.word == word
        assert sum(prediction.scores.values()) == pytest.approx(1, abs=1e-4)
    assert recognizer.classify(silence(1), RATE).word == "_silence_"


def test_the_live_path_agrees_with_the_whole_recording(recognizer: Recognizer, stream: np.ndarray) -> None:
    long = np.concatenate(5 * [stream])
    found = list(Listener(recognizer).listen([long]))
    assert [d.word for d in found] == 5 * SAID
    starts = np.add.outer(np.arange(5) * len(stream) / RATE, [1.0, 1.5, 2.4, 2.9]).ravel()
    np.testing.assert_allclose([d.start_s for d in found], starts, atol=0.05)
    np.testing.assert_allclose([d.end_s for d in found], starts + 0.32, atol=0.05)
    assert all(0.1 < d.at_s - d.end_s < 0.7 for d in found)


@pytest.mark.parametrize("size", [160, 1599, 10_000])
def test_the_size_of_the_blocks_changes_nothing(recognizer: Recognizer, stream: np.ndarray, size: int) -> None:
    whole = list(Listener(recognizer).listen([stream]))
    assert list(Listener(recognizer).listen(chunks(stream, size))) == whole


def test_a_word_at_the_very_end_is_decided_by_flush(recognizer: Recognizer, tone: Tone) -> None:
    listener = Listener(recognizer)
    fed, flushed = listener.feed(np.concatenate([silence(0.7), tone(300, 0.32)])), listener.flush()
    assert [d.word for d in fed + flushed] == ["low"]
    assert flushed[0].at_s <= 1.02


def test_words_outside_the_grammar_are_passed_over_live(recognizer: Recognizer, stream: np.ndarray) -> None:
    grammar = Grammar.parse("low high", ["low", "high"]).repeated()
    found = list(Listener(recognizer, grammar=grammar).listen([stream]))
    assert [d.word for d in found] == ["low", "high", "low"]


def test_a_word_just_under_the_threshold_is_a_near_miss(
    recognizer: Recognizer, stream: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = spotters.beam_search
    monkeypatch.setattr(
        spotters, "beam_search", lambda *a, **k: [replace(s, confidence=0.9 * s.confidence) for s in search(*a, **k)]
    )
    near: list[Detection] = []
    assert list(Listener(recognizer, threshold=0.95, near_miss=near.append).listen([stream])) == []
    assert {d.word for d in near} == {"low", "high"}
    near.clear()
    assert [d.word for d in Listener(recognizer, threshold=0.85, near_miss=near.append).listen([stream])] == SAID
    assert near == []


def test_a_grammar_needs_a_bundle_that_hears_sequences(tone_bundle: Path) -> None:
    single = Recognizer.load(tone_bundle)
    with pytest.raises(ConfigError, match="hears sequences"):
        Listener(single, grammar=Grammar.parse("low", ["low", "high"]))
    with pytest.raises(BundleError, match="single words"):
        single.transcribe(silence(1), RATE)
