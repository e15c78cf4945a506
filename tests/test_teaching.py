"""Recordings of a word: what spoils one is reported, and those of another word are found."""

from collections.abc import Iterator

import numpy as np
import pytest
from tunes import RATE, LoudIsSpeech, embed, make_space, tune

from speech.own.lesson import Fault, Take, largest_group, takes
from speech.segment import ListenerConfig

LAMP, SOFA = (500.0, 2500.0, 900.0), (3000.0, 700.0, 1800.0)


def heard(stream: np.ndarray, size: int = 1600) -> list[Take]:
    def blocks() -> Iterator[np.ndarray]:
        for begin in range(0, len(stream), size):
            yield stream[begin : begin + size]

    return [take for take in takes(blocks(), ListenerConfig(), LoudIsSpeech()) if take]


def stream_of(*parts: np.ndarray) -> np.ndarray:
    room = 0.001 * np.random.default_rng(8).standard_normal((len(parts) + 1, RATE // 2))
    pieces = [room[0]]
    for part, pause in zip(parts, room[1:], strict=True):
        pieces += [part, pause]
    return np.concatenate(pieces).astype(np.float32)


def word(level: float = 0.3, seconds: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    rise = np.minimum(1, np.minimum(time, seconds - time) / 0.05)
    return level * rise * np.sin(2 * np.pi * 700 * time)


def test_good_recordings_are_taken_whole() -> None:
    found = heard(stream_of(word(), word(), word()))
    assert [take.fault for take in found] == [None] * 3
    for take in found:
        assert 0.5 * RATE <= len(take.waveform) <= 1.3 * RATE
        assert np.square(take.waveform).sum() == pytest.approx(np.square(word()).sum(), rel=0.05)


@pytest.mark.parametrize("size", [1, 511, 4000, 10**6])
def test_the_size_of_the_blocks_changes_nothing(size: int) -> None:
    stream = stream_of(word(), word(seconds=2.0), word(level=1.5).clip(-1, 1))
    expected, found = heard(stream), heard(stream, size)
    assert [take.fault for take in found] == [take.fault for take in expected] == [None, Fault.TOO_LONG, Fault.CLIPPED]
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.waveform, b.waveform)


@pytest.mark.parametrize(
    ("spoken", "fault"),
    [
        (word(seconds=1.8), Fault.TOO_LONG),
        (word(seconds=0.07), Fault.TOO_SHORT),
        (word(level=1.5).clip(-1, 1), Fault.CLIPPED),
        (word() + 0.1 * np.random.default_rng(0).standard_normal(8000), None),
    ],
)
def test_what_spoils_a_recording_is_reported(spoken: np.ndarray, fault: Fault | None) -> None:
    assert [take.fault for take in heard(stream_of(spoken))] == [fault]


def test_a_whisper_is_too_quiet() -> None:
    class Sharp(LoudIsSpeech):
        def push(self, hop: np.ndarray) -> float:
            return float(np.abs(hop).max() > 0.0005)

    stream = np.concatenate([np.zeros(8000), word(level=0.002), np.zeros(8000)]).astype(np.float32)
    found = [take for take in takes([stream], ListenerConfig(), Sharp()) if take]
    assert [take.fault for take in found] == [Fault.TOO_QUIET]


def test_a_noisy_room_is_reported() -> None:
    noise = 0.015 * np.random.default_rng(0).standard_normal(24000)
    noise[8000:16000] += word(level=0.06)

    class OnlyTheWord(LoudIsSpeech):
        now = 0

        def push(self, hop: np.ndarray) -> float:
            self.now += 1
            return float(8000 <= self.now * 512 < 16000)

    found = [take for take in takes([noise.astype(np.float32)], ListenerConfig(), OnlyTheWord()) if take]
    assert [take.fault for take in found] == [Fault.NOISY]


@pytest.mark.parametrize("side", ["begin", "end"])
def test_a_recording_that_begins_or_ends_within_the_word_is_cut_off(side: str) -> None:
    pause = np.zeros(8000)  # what is set around a file
    cut = word()[3000:] if side == "begin" else word()[:-3000]
    found = heard(np.concatenate([pause, cut, pause]).astype(np.float32))
    assert [take.fault for take in found] == [Fault.CUT_OFF]


def test_silence_holds_no_recording() -> None:
    assert heard(np.zeros(RATE, np.float32)) == []
    assert heard(np.zeros(0, np.float32)) == []


def test_the_larger_group_wins_whichever_came_first() -> None:
    rng, space = np.random.default_rng(3), make_space(np.random.default_rng(0))
    spoken = [SOFA, LAMP, LAMP, SOFA, LAMP]
    vectors = list(space.project(np.stack([embed(tune(pitches, rng)) for pitches in spoken])))
    assert largest_group(space, vectors) == [1, 2, 4]
    assert largest_group(space, vectors[:2]) == [0], "of two that differ the first is kept"
    assert largest_group(space, []) == []
