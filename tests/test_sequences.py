"""Sequences of words: the Listener and the Recogniser on a CTC bundle that tells tones apart."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scripted import LoudVoice, ScriptedRecognizer

from speech.errors import AudioError, BundleError, ConfigError
from speech.grammar import Grammar, NGram
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Reason, Rejection, SpokenWord

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


@pytest.fixture(scope="module")
def words_only(tone: Tone) -> np.ndarray:
    """low at 1.0 s, high at 1.5, high at 2.0, low at 2.5, each 0.32 s; 4 s in all."""
    pause = silence(0.18)
    said = [tone(300, 0.32), pause, tone(2000, 0.32), pause, tone(2000, 0.32), pause, tone(300, 0.32)]
    return np.concatenate([silence(1.0), *said, silence(1.18)])


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


def listener_to(recognizer: Recognizer, rejected: list[Rejection] | None = None, **arguments: object) -> Listener:
    """A listener that takes loud hops for speech."""
    into = [] if rejected is None else rejected
    return Listener(recognizer, on_rejection=into.append, voice=LoudVoice(), **arguments)  # type: ignore[arg-type]


def test_only_the_words_asked_for(recognizer: Recognizer, stream: np.ndarray, words_only: np.ndarray) -> None:
    """No "low" is taken for "high", though the search may write nothing else."""
    whole = recognizer.transcribe(stream, RATE, grammar=Grammar.any_of(["high"]))
    assert [w.word for w in whole] == ["high", "high"]
    rejected: list[Rejection] = []
    assert list(listener_to(recognizer, rejected, words=["high"]).listen([words_only])) == []
    assert [(r.reason, r.word) for r in rejected] == [(Reason.NOT_ASKED_FOR, " ".join(SAID))]


@pytest.mark.parametrize("seconds", [0.001, 0.025, 0.3, 60.0])
def test_silence_of_any_length_holds_no_word(recognizer: Recognizer, seconds: float) -> None:
    assert recognizer.transcribe(silence(seconds), RATE) == []
    assert list(listener_to(recognizer).listen([silence(seconds)])) == []


def test_an_empty_recording_is_refused(recognizer: Recognizer) -> None:
    with pytest.raises(AudioError, match="samples of shape"):
        recognizer.transcribe(silence(0), RATE)


def test_single_words_are_classified(recognizer: Recognizer, tone: Tone) -> None:
    for pitch_hz, word in ((300, "low"), (2000, "high"), (4000, "_unknown_")):
        prediction = recognizer.classify(np.concatenate([silence(0.3), tone(pitch_hz, 0.4), silence(0.3)]), RATE)
        assert prediction.word == word
        assert sum(prediction.scores.values()) == pytest.approx(1, abs=1e-4)
    assert recognizer.classify(silence(1), RATE).word == "_silence_"


def test_the_live_path_agrees_with_the_whole_recording(recognizer: Recognizer, words_only: np.ndarray) -> None:
    long = np.concatenate(5 * [words_only])
    whole = recognizer.transcribe(long, RATE)
    found = list(listener_to(recognizer).listen([long]))
    assert [d.word for d in found] == [w.word for w in whole] == 5 * SAID
    starts = np.add.outer(np.arange(5) * len(words_only) / RATE, [1.0, 1.5, 2.0, 2.5]).ravel()
    np.testing.assert_allclose([d.start_s for d in found], starts, atol=0.05)
    np.testing.assert_allclose([d.end_s for d in found], starts + 0.32, atol=0.05)
    for last in found[3::4]:
        assert 0.2 < last.at_s - last.end_s < 0.35, "a sequence is decided when it has ended"


def test_other_speech_rejects_the_whole_utterance(recognizer: Recognizer, stream: np.ndarray) -> None:
    rejected: list[Rejection] = []
    assert list(listener_to(recognizer, rejected).listen([stream])) == []
    assert [(r.reason, r.word) for r in rejected] == [(Reason.ANOTHER_WORD, "low high _unknown_ high low")]


@pytest.mark.parametrize("size", [1, 7, 160, 512, 1599, 10_000])
def test_the_size_of_the_blocks_changes_nothing(
    recognizer: Recognizer, stream: np.ndarray, words_only: np.ndarray, size: int
) -> None:
    both = np.concatenate([words_only, stream])
    whole: list[Rejection] = []
    found = list(listener_to(recognizer, whole).listen([both]))
    assert (len(found), len(whole)) == (4, 1)
    rejected: list[Rejection] = []
    assert list(listener_to(recognizer, rejected).listen(chunks(both, size))) == found
    assert rejected == whole


def test_a_word_at_the_very_end_is_decided_by_flush(recognizer: Recognizer, tone: Tone) -> None:
    listener = listener_to(recognizer)
    fed, flushed = listener.feed(np.concatenate([silence(0.7), tone(300, 0.32)])), listener.flush()
    assert [d.word for d in fed + flushed] == ["low"]
    assert flushed[0].at_s <= 1.02


@pytest.mark.parametrize(
    ("text", "expected"),
    [("(low | high)+", SAID), ("low high high low", SAID), ("low high low", []), ("low high", [])],
)
def test_the_grammar_takes_all_of_an_utterance_or_nothing(
    recognizer: Recognizer, words_only: np.ndarray, text: str, expected: list[str]
) -> None:
    rejected: list[Rejection] = []
    listener = listener_to(recognizer, rejected, grammar=Grammar.parse(text, ["low", "high"]).repeated())
    assert [d.word for d in listener.listen([words_only])] == expected
    assert [(r.reason, r.word) for r in rejected] == ([] if expected else [(Reason.NOT_IN_GRAMMAR, " ".join(SAID))])


def test_how_much_a_language_model_counts_in_a_recording(recognizer: Recognizer) -> None:
    """97 times as much speaks for "high", which nobody has said so far."""
    model = NGram.train([["low"]] * 20_000, recognizer.info.words)

    def heard(**weight: float) -> SpokenWord:
        scripted = ScriptedRecognizer(recognizer.info, ["..h.."])
        (word,) = scripted.transcribe(silence(1), RATE, language_model=model, threshold=0.1, **weight)
        return word

    assert heard() == heard(weight=0.25) != heard(weight=0.5)
    assert heard().word == "low"
    assert heard(weight=0.125).word == heard(weight=0.0).word == "high"


def test_a_grammar_needs_a_bundle_that_hears_sequences(tone_bundle: Path) -> None:
    single = Recognizer.load(tone_bundle)
    with pytest.raises(ConfigError, match="recognises sequences"):
        Listener(single, grammar=Grammar.parse("low", ["low", "high"]))
    with pytest.raises(ConfigError, match="a language model needs a bundle that recognises sequences"):
        Listener(single, language_model=NGram.train([["low"]], ["low", "high"]))
    with pytest.raises(BundleError, match="single words"):
        single.transcribe(silence(1), RATE)
