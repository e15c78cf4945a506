"""A lesson: what spoils a recording is reported, and those of another word are found."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tunes import RATE, LoudIsSpeech, embed, make_space, tune

from speech.errors import ConfigError
from speech.own.lesson import Fault, Take, TakeCutter, TeachingSession, fault_of, largest_group
from speech.own.similarity import Similarity
from speech.own.words import MOST_RECORDINGS, OwnWords
from speech.segment import Utterance

LAMP, SOFA = (500.0, 2500.0, 900.0), (3000.0, 700.0, 1800.0)


def heard(stream: np.ndarray, size: int = 1600, is_file: bool = False, voice: Any = None) -> list[Take]:
    cutter, found = TakeCutter(voice or LoudIsSpeech(), is_file), []
    for begin in range(0, len(stream), size):
        found += cutter.push(stream[begin : begin + size])
    return found + cutter.finish()


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
    found = heard(stream, voice=Sharp())
    assert [take.fault for take in found] == [Fault.TOO_QUIET]


def test_a_noisy_room_is_reported() -> None:
    noise = 0.015 * np.random.default_rng(0).standard_normal(24000)
    noise[8000:16000] += word(level=0.06)

    class OnlyTheWord(LoudIsSpeech):
        now = 0

        def push(self, hop: np.ndarray) -> float:
            self.now += 1
            return float(8000 <= self.now * 512 < 16000)

    found = heard(noise.astype(np.float32), voice=OnlyTheWord())
    assert [take.fault for take in found] == [Fault.NOISY]


def test_only_a_microphone_is_late() -> None:
    pause = 1e-4 * np.random.default_rng(0).standard_normal(12000)
    stream = np.concatenate([pause, word()[:-3000]]).astype(np.float32)
    assert [take.fault for take in heard(stream)] == [Fault.CUT_OFF]
    assert [take.fault for take in heard(stream, is_file=True)] == [None]
    late = np.concatenate([word()[3000:], pause[:4000]]).astype(np.float32)
    utterance = Utterance(late, 0, 0, 5000, len(late), False)
    assert [fault_of(utterance, late, is_file) for is_file in (False, True)] == [Fault.CUT_OFF, None]


def test_silence_holds_no_recording() -> None:
    assert heard(np.zeros(RATE, np.float32)) == []
    assert heard(np.zeros(0, np.float32)) == []


@pytest.fixture(scope="module")
def space() -> Similarity:
    return make_space(np.random.default_rng(0))


def session(space: Similarity, name: str = "lamp", n_wanted: int = 5, earlier: Any = None) -> TeachingSession:
    odds = {LAMP: 0.55, SOFA: 0.1}
    knows = SimpleNamespace(
        similarity=space, embed=embed, thresholds={"lamp": 0.6}, posteriors=lambda w: {"lamp": odds[pitches_of(w)]}
    )
    return TeachingSession(knows, name, n_wanted, earlier)  # type: ignore[arg-type]


def pitches_of(waveform: np.ndarray) -> tuple[float, ...]:
    power = np.abs(np.fft.rfft(waveform, 16000))
    return LAMP if power[480:520].max() > power[2900:3100].max() else SOFA


@pytest.mark.parametrize(
    ("spoken", "kept"),
    [("SLLSL", [1, 2, 4]), ("SL", [0]), ("LLSLL", [0, 1, 3, 4]), ("SLLL", [1, 2, 3]), ("LLLLL", [0, 1, 2, 3, 4]),
     ("", [])],
)  # fmt: skip
def test_the_larger_group_wins_whichever_came_first(space: Similarity, spoken: str, kept: list[int]) -> None:
    rng = np.random.default_rng(3)
    heard = [embed(tune({"S": SOFA, "L": LAMP}[letter], rng)) for letter in spoken]
    vectors = space.project(np.stack(heard)) if heard else np.zeros((0, space.projection.shape[1]), np.float32)
    assert largest_group(space, vectors) == kept


def test_a_session_says_which_recordings_sound_like_another_word(space: Similarity, tmp_path: Path) -> None:
    rng, lesson = np.random.default_rng(3), session(space)
    faults = [lesson.add(tune(pitches, rng)) for pitches in (LAMP, LAMP, SOFA, LAMP, SOFA, LAMP)]
    assert faults == [None, None, Fault.UNLIKE, None, Fault.UNLIKE, None]
    assert (lesson.count, lesson.is_over) == ("4 of 5", False)
    assert lesson.odd_ones == (
        "sounds like another word and is left out: recording 3 and 5 of 6; was 'lamp' said there?"
    )
    lesson.add(tune(LAMP, rng))
    assert lesson.is_over
    own = OwnWords.load(tmp_path)
    assert len(lesson.save(own).recordings) == 5
    more = session(space, n_wanted=2, earlier=own)
    assert (more.count, more.has_news, more.odd_ones) == ("5 of 7", False, "")
    more.refuse(tune(SOFA, rng))
    assert more.has_news
    assert len(more.save(own).refused) == 1


def test_a_word_with_all_its_recordings_takes_no_more(space: Similarity, tmp_path: Path) -> None:
    own = OwnWords.load(tmp_path)
    own.add("lamp", [np.zeros(8000, np.float32)] * MOST_RECORDINGS)
    with pytest.raises(ConfigError, match="105 recordings of 'lamp'; it takes 1 to 100"):
        session(space, earlier=own)


def test_near_misses_come_first_and_what_is_known_not_at_all(space: Similarity) -> None:
    rng, lesson = np.random.default_rng(3), session(space, n_wanted=0)
    lamps, sofas = [tune(LAMP, rng) for _ in range(3)], [tune(SOFA, rng) for _ in range(2)]
    lesson.add(lamps[0])
    lesson.refuse(sofas[0])
    asked = lesson.by_doubt([sofas[1], *lamps, sofas[0]])
    assert [any(one is w for w in (lamps[1], lamps[2], sofas[1])) for one in asked] == [True] * 3
    assert asked[-1] is sofas[1], "0.1 is further from the threshold than 0.55"
