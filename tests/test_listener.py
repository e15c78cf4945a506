"""The Listener: streams of tones with scripted ears, and the demo recording with its own."""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scripted import LoudVoice, ScriptedRecognizer, sound

from speech.bundle import BundleInfo
from speech.errors import AudioError, ConfigError
from speech.listen import DEMO
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Detection, Examined, Reason, Rejection
from speech.segment import HOP_S, ListenerConfig

Tone = Callable[[float, float], np.ndarray]
RATE = 16000
SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]


@pytest.fixture(scope="module")
def recognizer(tone_bundle: Path) -> Recognizer:
    return Recognizer.load(tone_bundle)


@pytest.fixture(scope="module")
def shipped() -> Recognizer:
    return Recognizer.load()


@pytest.fixture(scope="module")
def demo() -> np.ndarray:
    samples, rate = soundfile.read(DEMO, dtype="float32")
    assert rate == RATE
    return samples


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


@pytest.fixture(scope="module")
def stream(tone: Tone) -> np.ndarray:
    """low at 1.0 s, high at 2.4 s, talk at 3.4 s, low at 5.9 s, high at 8 s, each 0.4 s long but the talk; 9 s."""
    pieces = [
        silence(1.0), tone(300, 0.4), silence(1.0), tone(2500, 0.4), silence(0.6), tone(2500, 2.0),
        silence(0.5), tone(300, 0.4), silence(1.7), tone(2500, 0.4), silence(0.6),
    ]  # fmt: skip
    return np.concatenate(pieces)


def chunks(stream: np.ndarray, size: int) -> list[np.ndarray]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


def listener_to(recognizer: Recognizer, rejected: list[Rejection] | None = None, **arguments: object) -> Listener:
    """A listener that takes loud hops for speech."""
    into = [] if rejected is None else rejected
    return Listener(recognizer, on_rejection=into.append, voice=LoudVoice(), **arguments)  # type: ignore[arg-type]


# Scripted activity and posteriors


YES, NO = ("low", 0.9), ("_unknown_", 0.9)
QUIET = (1.0, 0.0)
TALK = (1.6, 1.0)


@pytest.mark.parametrize(
    ("pieces", "script", "decided"),
    [  # (seconds, probability of speech), the bundle's answers, what is decided
        ([QUIET], [], []),
        ([QUIET, (0.4, 0.68), QUIET], [], []),
        ([QUIET, (0.4, 0.72), QUIET], [YES], ["low"]),
        ([QUIET, (0.4, 1.0), QUIET], [("low", 0.59)], [Reason.UNSURE]),
        ([QUIET, (0.4, 1.0), QUIET], [NO], [Reason.ANOTHER_WORD]),
        ([QUIET, (0.4, 1.0), QUIET], [("_silence_", 0.9)], [Reason.NO_WORD]),
        ([QUIET, (0.2, 1.0), (0.2, 0.0), (0.2, 1.0), QUIET], [YES], ["low"]),
        ([QUIET, (0.2, 1.0), (0.26, 0.0), (0.2, 1.0), QUIET], [YES, NO], ["low", Reason.ANOTHER_WORD]),
        ([QUIET, (0.4, 1.0)], [YES], ["low"]),  # the stream ends in it
        ([(0.032, 0.0), (0.4, 1.0), QUIET], [YES], ["low"]),
        ([QUIET, (1.4, 1.0), QUIET], [YES], ["low"]),
        ([QUIET, (1.44, 1.0), QUIET], [], [Reason.TOO_LONG]),
        ([QUIET, TALK, (1.6, 0.0), (0.4, 1.0), QUIET], [YES], [Reason.TOO_LONG, Reason.AFTER_TALK]),
        ([QUIET, TALK, (2.2, 0.0), (0.4, 1.0), QUIET], [YES], [Reason.TOO_LONG, "low"]),
        ([QUIET, (0.4, 1.0), (0.3, 0.0), (0.4, 1.0), QUIET], [YES, YES], ["low", "low"]),
    ],
)
def test_what_is_heard_and_decided(
    info: BundleInfo, pieces: list[tuple[float, float]], script: list[tuple[str, float]], decided: list[str]
) -> None:
    outcomes: list[Examined] = []
    recognizer = ScriptedRecognizer(info, script)
    found = list(listener_to(recognizer, on_utterance=outcomes.append).listen([sound(*pieces)]))
    assert [e.rejection.reason if e.rejection else e.detections[0].word for e in outcomes] == decided
    assert [d.word for d in found] == [word for word in decided if word not in list(Reason)]
    assert len(recognizer.heard) == len(script), "every utterance is read once, and talk never"


WORD = (0.3, 1.0)
SETTINGS: dict[str, tuple[list[tuple[float, float]], list[tuple[float, int]]]] = {
    "min_silence_s": ([QUIET, WORD, (0.16, 0.0), WORD, (0.32, 0.0), WORD], [(0.25, 2), (0.125, 3), (0.5, 1)]),
    "max_word_s": ([QUIET, (0.8, 1.0), QUIET, (1.35, 1.0), QUIET, (1.44, 1.0)], [(1.4, 2), (0.7, 0), (2.8, 3)]),
    "after_talk_s": (
        [QUIET, TALK, (1.3, 0.0), WORD, (0.5, 0.0), WORD, (2.0, 0.0), WORD],
        [(1.8, 2), (1.0, 3), (4.0, 1)],
    ),
}
"""Of each: a stream, and how many words are heard in it with the default and with other values."""


@pytest.mark.parametrize(
    ("field", "value", "n_heard"),
    [(field, value, n_heard) for field, (_, values) in SETTINGS.items() for value, n_heard in values],
)
def test_what_a_setting_changes(info: BundleInfo, field: str, value: float, n_heard: int) -> None:
    pieces, values = SETTINGS[field]
    assert getattr(ListenerConfig(), field) == values[0][0]
    recognizer = ScriptedRecognizer(info, [YES] * 9)
    config = replace(ListenerConfig(), **{field: value})
    assert len(list(listener_to(recognizer, config=config).listen([sound(*pieces, (0.64, 0.0))]))) == n_heard


def test_how_much_is_kept_before_a_word(info: BundleInfo) -> None:
    examined: list[Examined] = []
    listener = listener_to(ScriptedRecognizer(info, [YES]), on_utterance=examined.append)
    list(listener.listen([sound((0.96, 0.0), (0.32, 1.0), (0.64, 0.0))]))
    assert examined[0].start_s == pytest.approx((30 - 9) * HOP_S)
    assert len(examined[0].waveform) / RATE == pytest.approx((9 + 10 + 8) * HOP_S)


@pytest.mark.parametrize(("max_sequence_s", "n_heard"), [(None, 1), (4.0, 0), (16.0, 2)])
def test_the_longest_sequence(info: BundleInfo, max_sequence_s: float | None, n_heard: int) -> None:
    config = ListenerConfig() if max_sequence_s is None else ListenerConfig(max_sequence_s=max_sequence_s)
    ctc = replace(info, head="ctc", labels=("low", "high", "_unknown_", "_blank_"), step_s=0.04, offset_s=0.02)
    listener = listener_to(ScriptedRecognizer(ctc, ["..ll.."] * 2), config=config)
    wavering = [(0.48, 1.0), (0.48, 0.6)] * 7  # what is steady for longer shuts the gate
    pieces = [*wavering, (1.2, 1.0), (3.2, 0.0), *wavering, (1.4, 1.0), (0.64, 0.0)]
    assert len(list(listener.listen([sound((0.32, 0.0), *pieces)]))) == n_heard


# Streams


def test_words_times_and_order(recognizer: Recognizer, stream: np.ndarray) -> None:
    rejected: list[Rejection] = []
    found = list(listener_to(recognizer, rejected).listen([stream]))
    assert [d.word for d in found] == ["low", "high", "high"]
    assert [(r.reason, r.word) for r in rejected] == [(Reason.TOO_LONG, ""), (Reason.AFTER_TALK, "low")]
    for heard, start_s in zip([*found, rejected[1]], (1.0, 2.4, 8.0, 5.9), strict=True):
        assert heard.start_s == pytest.approx(start_s, abs=0.03)
        assert heard.end_s == pytest.approx(start_s + 0.4, abs=0.03)
        assert 0.22 < heard.at_s - heard.end_s < 0.32
        assert 0.6 <= heard.confidence <= 1


@pytest.mark.parametrize("size", [1, 7, 160, 512, 1599, 10_000])
def test_the_size_of_the_blocks_changes_nothing(recognizer: Recognizer, stream: np.ndarray, size: int) -> None:
    whole: list[Rejection] = []
    found = list(listener_to(recognizer, whole).listen([stream]))
    assert len(found) == 3
    assert len(whole) == 2
    rejected: list[Rejection] = []
    assert list(listener_to(recognizer, rejected).listen(chunks(stream, size))) == found
    assert rejected == whole


@pytest.mark.parametrize("size", [7, 10_000])
def test_the_size_of_the_blocks_changes_nothing_for_real_speech(
    shipped: Recognizer, demo: np.ndarray, size: int
) -> None:
    def hear(blocks: list[np.ndarray]) -> tuple[list[Detection], list[Rejection]]:
        rejected: list[Rejection] = []
        return list(Listener(shipped, ["left", "stop"], on_rejection=rejected.append).listen(blocks)), rejected

    half = demo[4 * RATE : 10 * RATE]
    found, rejected = hear([half])
    assert ([d.word for d in found], [r.word for r in rejected]) == (["left", "stop"], ["down", "right", "go"])
    assert hear(chunks(half, size)) == (found, rejected)


def test_detections_come_with_the_block_that_decides_them(recognizer: Recognizer, stream: np.ndarray) -> None:
    listener, n_found = listener_to(recognizer), 0
    for block in chunks(stream, 160):
        for detection in listener.feed(block):
            assert listener.heard_s - 0.01 < detection.at_s <= listener.heard_s
            n_found += 1
    assert n_found == 3


def test_time_is_counted_in_samples(recognizer: Recognizer, tone: Tone) -> None:
    """After ten hours of other blocks a word has the time that samples tell."""
    listener = listener_to(recognizer)
    for _ in range(36):
        assert listener.feed(silence(10.0007)) == []
    fed = 36 * round(10.0007 * RATE)
    assert listener.heard_s == fed / RATE
    (found,) = listener.feed(np.concatenate([tone(300, 0.4), silence(0.5)]))
    assert found.start_s == pytest.approx(fed / RATE, abs=0.03)


def test_a_word_at_the_very_end_is_decided_by_flush(recognizer: Recognizer, tone: Tone) -> None:
    stream = np.concatenate([silence(0.5), tone(300, 0.305)])
    listener = listener_to(recognizer)
    assert listener.feed(stream) == []
    assert listener.is_hearing
    (found,) = listener.flush()
    assert found.word == "low"
    assert found.end_s == pytest.approx(0.805, abs=0.02)
    assert found.end_s <= found.at_s == len(stream) / RATE
    assert not listener.is_hearing


def test_less_than_a_hop_is_flushed_too(recognizer: Recognizer, tone: Tone) -> None:
    listener = listener_to(recognizer)
    assert listener.flush() == []
    assert listener.feed(tone(300, 0.01)) == []
    assert listener.flush() == []
    assert listener.heard_s == 0


def test_a_stream_is_left_without_a_trace(recognizer: Recognizer, stream: np.ndarray) -> None:
    listener = listener_to(recognizer)
    whole = list(listener.listen([stream]))
    for blocks in (chunks(stream, 1000), chunks(stream[: round(1.7 * RATE)], 77)):
        for _ in listener.listen(blocks):
            break
        assert listener.heard_s == 0
        assert not listener.is_hearing
        assert list(listener.listen([stream])) == whole


def test_a_stream_that_fails_leaves_no_trace(recognizer: Recognizer, stream: np.ndarray) -> None:
    listener = listener_to(recognizer)
    whole = list(listener.listen([stream]))

    def broken() -> Iterator[np.ndarray]:
        yield stream[: 6 * RATE]
        yield np.array([np.nan], np.float32)

    with pytest.raises(AudioError, match="NaN"):
        list(listener.listen(broken()))
    assert list(listener.listen([stream])) == whole


def test_what_was_fed_before_is_no_part_of_a_stream(recognizer: Recognizer, stream: np.ndarray) -> None:
    listener = listener_to(recognizer)
    whole = list(listener.listen([stream]))
    listener.feed(stream[: round(5.6 * RATE)])  # talk, and less than a hop
    assert list(listener.listen([stream])) == whole


def test_talk_is_not_kept(recognizer: Recognizer) -> None:
    rejected: list[Rejection] = []
    listener, second = listener_to(recognizer, rejected), sound((0.512, 1.0), (0.512, 0.6))
    listener.feed(second)
    tracemalloc.start()
    for _ in range(60):
        assert listener.feed(second) == []
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 2**19, "2 s as float32 are 128 kB; what was fed is 4 MB"
    assert listener.is_hearing
    assert listener.flush() == []
    (talk,) = rejected
    too_long_s = 1.024 + 45 * HOP_S
    assert (talk.reason, talk.start_s, talk.end_s, talk.at_s) == (Reason.TOO_LONG, 1.024, too_long_s, too_long_s)


@pytest.mark.parametrize("empty", [np.zeros(0, np.float32), silence(30)])
def test_nothing_said_nothing_reported(recognizer: Recognizer, empty: np.ndarray) -> None:
    assert list(Listener(recognizer).listen([empty])) == []


def test_only_the_words_asked_for(recognizer: Recognizer, stream: np.ndarray) -> None:
    rejected: list[Rejection] = []
    found = list(listener_to(recognizer, rejected, words=["high"]).listen([stream]))
    assert [d.word for d in found] == ["high", "high"]
    assert [r.reason for r in rejected] == [Reason.NOT_ASKED_FOR, Reason.TOO_LONG, Reason.NOT_ASKED_FOR]


def test_integers_and_stereo_are_the_same_audio(recognizer: Recognizer, stream: np.ndarray) -> None:
    expected = [d.word for d in listener_to(recognizer).listen([stream])]
    as_int = (stream * 32767).astype(np.int16)
    assert [d.word for d in listener_to(recognizer).listen([np.stack([as_int, as_int], 1)])] == expected


def test_nan_is_refused(recognizer: Recognizer) -> None:
    with pytest.raises(AudioError, match="NaN"):
        listener_to(recognizer).feed(np.array([0.0, np.nan], np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": ["loud"]}, "does not know 'loud'; it knows low, high"),
        ({"words": []}, "an empty list"),
        ({"threshold": 0.0}, r"threshold=0\.0 of 'low'"),
        ({"threshold": 1.5}, r"threshold=1\.5"),
        ({"threshold": {"high": True}}, "threshold=True of 'high'"),
        ({"threshold": {"high": "much"}}, "threshold='much' of 'high'"),
        ({"threshold": {"loud": 0.5}}, "does not know 'loud'"),
    ],
)
def test_bad_arguments_are_named(recognizer: Recognizer, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Listener(recognizer, **arguments)


def test_a_bundle_at_another_rate_is_refused(info: BundleInfo) -> None:
    with pytest.raises(ConfigError, match="8000 Hz"):
        Listener(ScriptedRecognizer(replace(info, sample_rate_hz=8000), []))


@pytest.mark.parametrize(
    ("words", "threshold", "expected"),
    [
        (None, None, {"low": 0.6, "high": 0.7}),
        (["high"], None, {"high": 0.7}),
        (None, 0.9, {"low": 0.9, "high": 0.9}),
        (["high", "low"], {"low": 1}, {"high": 0.7, "low": 1.0}),
        (["High", " LOW"], {"Low": 1}, {"high": 0.7, "low": 1.0}),  # names in any spelling
    ],
)
def test_each_word_has_a_threshold(info: BundleInfo, words: list[str], threshold: object, expected: dict) -> None:
    recognizer = ScriptedRecognizer(replace(info, thresholds={"high": 0.7}), [])
    assert Listener(recognizer, words, threshold).thresholds == expected  # type: ignore[arg-type]


# Real speech


def starts_and_ends(found: list[Detection]) -> list[tuple[float, float]]:
    return [(d.start_s, d.end_s) for d in found]


def test_the_options_of_the_readme_hear_the_demo(shipped: Recognizer, demo: np.ndarray) -> None:
    found = list(Listener(shipped, ["left", "right", "stop"], 0.8).listen([demo]))
    assert [d.word for d in found] == ["left", "right", "stop"]


@pytest.mark.parametrize("word", SPOKEN)
def test_each_word_of_the_demo_is_heard_alone(shipped: Recognizer, demo: np.ndarray, word: str) -> None:
    rejected: list[Rejection] = []
    assert [d.word for d in Listener(shipped, [word], on_rejection=rejected.append).listen([demo])] == [word]
    assert [r.word for r in rejected] == [w for w in SPOKEN if w != word] + [""]
    assert {r.reason for r in rejected[:-1]} == {Reason.NOT_ASKED_FOR}
    assert rejected[-1].reason == Reason.TOO_LONG


@pytest.fixture(scope="module")
def heard(shipped: Recognizer, demo: np.ndarray) -> list[Detection]:
    """The words of the demo."""
    found = list(Listener(shipped).listen([demo]))
    assert [d.word for d in found] == SPOKEN
    return found


@pytest.mark.parametrize(("offset", "hum_hz"), [(0.33, 0), (1, 0), (-2, 0), (0, 50), (0, 60), (2, 50)])
def test_an_offset_and_hum_change_neither_words_nor_times(
    shipped: Recognizer, demo: np.ndarray, heard: list[Detection], offset: float, hum_hz: float
) -> None:
    """An offset in parts of the peak, and hum at a third of it."""
    peak, time = np.abs(demo).max(), np.arange(len(demo)) / RATE
    hum = np.sin(2 * np.pi * hum_hz * time + 1) / 3 if hum_hz else 0 * time
    found = list(Listener(shipped).listen([(demo + peak * (offset + hum)).astype(np.float32)]))
    assert [d.word for d in found] == SPOKEN
    np.testing.assert_allclose(starts_and_ends(found), starts_and_ends(heard), atol=0.05)


@pytest.mark.parametrize(("pitch_hz", "gap_s"), [(440, 0.1), (1000, 0.3), (2000, 0.5)])
def test_a_beep_before_a_command_does_not_hide_it(
    shipped: Recognizer, demo: np.ndarray, heard: list[Detection], pitch_hz: float, gap_s: float
) -> None:
    """A tone of 0.3 s, as loud as the word."""
    time = np.arange(round(0.3 * RATE)) / RATE
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.005)
    listener, n_heard = Listener(shipped), 0
    for d in heard:
        word = demo[round((d.start_s - 0.05) * RATE) : round((d.end_s + 0.12) * RATE)]
        beep = np.sqrt(2) * np.std(word) * fade * np.sin(2 * np.pi * pitch_hz * time)
        stream = np.concatenate([silence(1), beep, silence(gap_s - 0.05), word, silence(1)])
        stream += 1e-4 * np.random.default_rng(0).standard_normal(len(stream))
        n_heard += [f.word for f in listener.listen([stream.astype(np.float32)])] == [d.word]
    assert n_heard >= 9
