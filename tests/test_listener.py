"""The Listener on a bundle that tells low tones from high ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from speech.spotters import stands_out, word_bounds

from speech.errors import AudioError, ConfigError
from speech.listener import Detection, Listener, ListenerConfig
from speech.recognizer import Recognizer

Tone = Callable[[float, float], np.ndarray]
RATE = 16000


@pytest.fixture(scope="module")
def recognizer(tone_bundle: Path) -> Recognizer:
    return Recognizer.load(tone_bundle)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


@pytest.fixture(scope="module")
def stream(tone: Tone) -> np.ndarray:
    """low at 1.0 s, high at 2.4 s, high at 3.4 s, low at 4.6 s, each 0.4 s long; 6 s in all."""
    pieces = [
        silence(1.0), tone(300, 0.4), silence(1.0), tone(2500, 0.4), silence(0.6), tone(2500, 0.4),
        silence(0.8), tone(300, 0.4), silence(1.0),
    ]  # fmt: skip
    return np.concatenate(pieces)


def chunks(stream: np.ndarray, size: int) -> list[np.ndarray]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


def test_words_times_and_order(recognizer: Recognizer, stream: np.ndarray) -> None:
    found = list(Listener(recognizer).listen([stream]))
    assert [d.word for d in found] == ["low", "high", "high", "low"]
    for detection, start in zip(found, (1.0, 2.4, 3.4, 4.6), strict=True):
        assert detection.start_s == pytest.approx(start, abs=0.03)
        assert detection.start_s < detection.end_s <= detection.at_s
        assert start + 0.25 <= detection.at_s <= start + 0.4 + 0.25
        assert 0.6 <= detection.confidence <= 1


@pytest.mark.parametrize("size", [1, 160, 1599, 1600, 10_000])
def test_the_size_of_the_blocks_changes_nothing(recognizer: Recognizer, stream: np.ndarray, size: int) -> None:
    stream = stream[: 3 * RATE] if size == 1 else stream
    whole = list(Listener(recognizer).listen([stream]))
    assert whole
    assert list(Listener(recognizer).listen(chunks(stream, size))) == whole


def test_detections_come_with_the_block_that_decides_them(recognizer: Recognizer, stream: np.ndarray) -> None:
    listener = Listener(recognizer)
    for block in chunks(stream, 160):
        for detection in listener.feed(block):
            assert listener.heard_s - 0.01 < detection.at_s <= listener.heard_s


def test_a_word_at_the_very_end_is_decided_by_flush(recognizer: Recognizer, tone: Tone) -> None:
    stream = np.concatenate([silence(0.5), tone(300, 0.3)])
    listener = Listener(recognizer)
    fed, flushed = listener.feed(stream), listener.flush()
    assert [d.word for d in fed + flushed] == ["low"]
    assert all(d.end_s <= d.at_s <= len(stream) / RATE for d in fed + flushed)


def test_flush_begins_a_new_stream(recognizer: Recognizer, stream: np.ndarray) -> None:
    listener = Listener(recognizer)
    first, second = list(listener.listen([stream])), list(listener.listen([stream]))
    assert first == second


def test_a_long_word_is_reported_once(recognizer: Recognizer, tone: Tone) -> None:
    found = list(Listener(recognizer).listen([np.concatenate([silence(1), tone(300, 0.9), silence(1)])]))
    # the tone is one sound: what follows the decision is its rest, and the refractory time covers it
    assert [d.word for d in found][:1] == ["low"]
    assert len(found) <= 2


@pytest.mark.parametrize("empty", [np.zeros(0, np.float32), silence(30)])
def test_nothing_said_nothing_reported(recognizer: Recognizer, empty: np.ndarray) -> None:
    assert list(Listener(recognizer).listen([empty])) == []


def test_only_the_words_asked_for(recognizer: Recognizer, stream: np.ndarray) -> None:
    found = list(Listener(recognizer, words=["high"]).listen([stream]))
    assert [d.word for d in found] == ["high", "high"]


def test_integers_and_stereo_are_the_same_audio(recognizer: Recognizer, stream: np.ndarray) -> None:
    expected = [d.word for d in Listener(recognizer).listen([stream])]
    as_int = (stream * 32767).astype(np.int16)
    assert [d.word for d in Listener(recognizer).listen([np.stack([as_int, as_int], 1)])] == expected


def test_nan_is_refused(recognizer: Recognizer) -> None:
    with pytest.raises(AudioError, match="NaN"):
        Listener(recognizer).feed(np.array([0.0, np.nan], np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": ["loud"]}, "does not know 'loud'; it knows low, high"),
        ({"words": []}, "an empty list"),
        ({"threshold": 0.0}, r"threshold=0\.0"),
        ({"threshold": 1.5}, r"threshold=1\.5"),
    ],
)
def test_bad_arguments_are_named(recognizer: Recognizer, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Listener(recognizer, **arguments)


def test_bad_timing_is_named() -> None:
    with pytest.raises(ConfigError, match="hop_s=0"):
        ListenerConfig(hop_s=0)


def test_bounds_keep_the_closure_of_a_plosive(tone: Tone) -> None:
    window = np.concatenate([silence(0.2), tone(300, 0.3), silence(0.08), tone(2000, 0.05), silence(0.37)])
    window += 1e-4 * np.random.default_rng(0).standard_normal(len(window)).astype(np.float32)
    start, end = word_bounds(window, RATE)
    assert start / RATE == pytest.approx(0.2, abs=0.03)
    assert end / RATE == pytest.approx(0.63, abs=0.03)


def test_bounds_of_silence_are_the_window() -> None:
    assert word_bounds(silence(1.0), RATE) == (0, RATE)


def test_a_detection_tells_its_latency(recognizer: Recognizer, stream: np.ndarray) -> None:
    found: list[Detection] = list(Listener(recognizer).listen([stream]))
    assert all(0 <= d.at_s - d.end_s < 0.5 for d in found)


@pytest.mark.parametrize(
    ("before_db", "behind_db", "alone"),
    [(None, None, True), (-12, None, True), (-1, None, False), (None, -12, True), (None, -1, False), (-12, -12, True)],
)
def test_a_word_within_other_sound_is_none(
    recognizer: Recognizer, tone: Tone, before_db: float | None, behind_db: float | None, alone: bool
) -> None:
    """Another tone ends 0.15 s before the word, or begins 0.05 s behind it."""

    def other(level_db: float | None) -> np.ndarray:
        return silence(1.0) if level_db is None else tone(300, 1.0) * np.float32(10 ** (level_db / 20))

    word = [silence(0.15), tone(2500, 0.4), silence(0.05)]
    stream = np.concatenate([silence(1), other(before_db), *word, other(behind_db), silence(1)])
    found = {d.word for d in Listener(recognizer, ["high"]).listen([stream])}
    assert found == ({"high"} if alone else set())
    anyway = Listener(recognizer, ["high"], config=ListenerConfig(alone_db=0))
    assert {d.word for d in anyway.listen([stream])} == {"high"}


def test_a_reported_word_is_no_neighbour(recognizer: Recognizer, tone: Tone) -> None:
    stream = np.concatenate([silence(1), tone(300, 0.4), silence(0.3), tone(2500, 0.4), silence(1)])
    assert [d.word for d in Listener(recognizer).listen([stream])] == ["low", "high"]


@pytest.mark.parametrize(
    ("talk_s", "level_db", "pause_s", "memory_s", "heard"),
    [
        (2.0, 0, 1.5, 5.0, False),  # somebody talks, pauses, and says one word
        (2.0, 0, 1.5, 0.0, True),
        (2.0, 0, 1.5, 1.2, True),
        (2.0, 0, 6.0, 5.0, True),
        (2.0, -12, 1.5, 5.0, True),  # the talk is far away
        (0.5, 0, 1.5, 5.0, True),  # a word, perhaps a command that was missed
    ],
)
def test_a_word_amid_talk_is_none(
    recognizer: Recognizer, tone: Tone, talk_s: float, level_db: float, pause_s: float, memory_s: float, heard: bool
) -> None:
    talk = tone(300, talk_s) * np.float32(10 ** (level_db / 20))
    stream = np.concatenate([silence(1), talk, silence(pause_s), tone(2500, 0.4), silence(1)])
    listener = Listener(recognizer, ["high"], config=ListenerConfig(talk_memory_s=memory_s))
    assert [d.word for d in listener.listen([stream])] == (["high"] if heard else [])


def test_a_command_said_over_and_over_is_heard_in_the_end(recognizer: Recognizer, tone: Tone) -> None:
    stream = np.concatenate([silence(1), tone(300, 2.0), *[silence(0.9), tone(2500, 0.4)] * 8, silence(1)])
    found = list(Listener(recognizer, ["high"]).listen([stream]))
    assert 3.0 + 5.5 < found[0].start_s < 3.0 + 7.5
    assert len(found) >= 3


def test_reported_words_are_no_talk(recognizer: Recognizer, tone: Tone) -> None:
    stream = np.concatenate([silence(1), *[tone(2500, 0.4), silence(0.8)] * 5])
    assert [d.word for d in Listener(recognizer).listen([stream])] == ["high"] * 5


def test_steady_noise_is_no_neighbour() -> None:
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(2 * RATE)
    word = np.zeros(2 * RATE)
    word[RATE : RATE + 4000] = 0.15 * rng.standard_normal(4000)
    bounds, reach = (RATE, RATE + 4000), (6400, 1600)
    assert stands_out((noise + word).astype(np.float32), bounds, RATE, 6.0, reach)
    quiet_first = noise * (np.arange(2 * RATE) > RATE // 2)
    assert not stands_out((quiet_first + word).astype(np.float32), bounds, RATE, 6.0, reach), "the noise came with it"
