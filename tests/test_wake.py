"""The wake word: commands count only for a while after it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tunes import LoudIsSpeech

from speech.decide import Decision, examined
from speech.errors import ConfigError
from speech.listen import DEMO
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Examined, Reason, Rejection, SpokenWord
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, Utterance
from speech.sound.files import read

Tone = Callable[[float, float], np.ndarray]


class Script:
    """A reader that knows what is said when; "?" is speech that is none of the words."""

    max_s = 8.0

    def __init__(self, said: dict[float, str]) -> None:
        self.said, self.n_resets = said, 0

    def reset(self) -> None:
        self.n_resets += 1

    def read(self, utterance: Utterance) -> Examined:
        words = [SpokenWord(word, 0.0, 0.1, 0.9) for word in self.said[utterance.start / SAMPLE_RATE_HZ].split()]
        return examined(utterance, words, Reason.ANOTHER_WORD if words[0].word == "?" else None)


def decided(said: dict[float, str], config: ListenerConfig, wake: str | None = "computer") -> list[str]:
    """Of each utterance the words that were accepted, or why they were not."""
    decision, outcomes = Decision(Script(said), config, wake), []
    for start_s in said:
        start, end = round(start_s * SAMPLE_RATE_HZ), round((start_s + 0.5) * SAMPLE_RATE_HZ)
        utterance = Utterance(np.zeros(end - start, np.float32), start, start, end, end + 8000, False)
        decided_on = decision.decide(utterance, end + 8000)
        outcomes.append(str(decided_on.reason or " ".join(word.word for word in decided_on.words)))
    return outcomes


def test_commands_count_only_for_a_while_after_the_wake_word() -> None:
    said = {1.0: "left", 3.0: "computer", 4.0: "left", 8.4: "right", 8.6: "stop", 20.0: "computer", 21.0: "left"}
    expected = ["no wake word", "computer", "left", "right", "no wake word", "computer", "left"]
    assert decided(said, ListenerConfig()) == expected
    assert decided(said, ListenerConfig(wake_for_s=1.0)) == [*expected[:3], "no wake word", *expected[4:]]
    assert decided(said, ListenerConfig(), wake=None) == list(said.values())


def test_the_wake_word_said_again_lasts_anew() -> None:
    said = {1.0: "computer", 5.0: "computer", 9.0: "left"}
    assert decided(said, ListenerConfig()) == ["computer", "computer", "left"]


def test_in_a_sequence_it_may_come_in_the_same_breath() -> None:
    said = {1.0: "computer left left", 3.0: "stop", 9.0: "left computer"}
    assert decided(said, ListenerConfig()) == ["computer left left", "stop", "no wake word"]


def test_a_wake_word_right_after_talk_does_not_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decision, "TALK_S", 0.4)  # so that half a second of speech is talk
    assert decided({1.0: "?", 2.0: "computer", 2.9: "left", 6.0: "left"}, ListenerConfig()) == [
        "another word", "after talk", "after talk", "no wake word",
    ]  # fmt: skip


def test_the_listener_says_whether_it_is_awake(tone_bundle: Path, tone: Tone) -> None:
    rejected: list[Rejection] = []
    config = ListenerConfig(wake_for_s=2.0)
    listener = Listener(
        Recognizer.load(tone_bundle),
        ["high"],
        config=config,
        on_rejection=rejected.append,
        voice=LoudIsSpeech(),
        wake="low",
    )
    silence = np.zeros(SAMPLE_RATE_HZ, np.float32)

    def hear(sound: np.ndarray) -> list[str]:
        return [d.word for d in listener.feed(np.concatenate([sound, silence]))]

    hear(silence)
    assert not listener.is_awake
    assert hear(tone(2500, 0.4)) == []
    assert [r.reason for r in rejected] == [Reason.NO_WAKE_WORD]
    assert hear(tone(300, 0.4)) == ["low"], "it is reported, though only `high` was asked for"
    assert listener.is_awake
    assert hear(tone(2500, 0.4)) == ["high"]
    assert not listener.is_awake
    hear(tone(300, 0.4))
    listener.reset()
    assert not listener.is_awake, "a new stream begins asleep"
    assert Listener(Recognizer.load(tone_bundle)).is_awake, "without a wake word always"


def test_a_wake_word_that_nobody_taught_is_an_error(tone_bundle: Path) -> None:
    for words in (None, ["high"]):
        with pytest.raises(ConfigError, match="does not know 'computer'; it knows low, high"):
            Listener(Recognizer.load(tone_bundle), words, wake="computer")
    with pytest.raises(ConfigError, match="wake_for_s=-1"):
        ListenerConfig(wake_for_s=-1)


@pytest.fixture(scope="module")
def demo() -> np.ndarray:
    return read(DEMO, SAMPLE_RATE_HZ)


@pytest.mark.parametrize("gap_s", [0.0, 0.1])
@pytest.mark.parametrize(("first", "second"), [("left", "stop"), ("stop", "down"), ("yes", "left")])
def test_wake_word_and_command_in_one_breath(demo: np.ndarray, first: str, second: str, gap_s: float) -> None:
    """Two words of the demo, cut out at their bounds and set together."""
    recognizer = Recognizer.load()
    alone = Listener(recognizer).listen([demo[: 13 * SAMPLE_RATE_HZ]])
    place = {d.word: slice(round(d.start_s * SAMPLE_RATE_HZ), round(d.end_s * SAMPLE_RATE_HZ)) for d in alone}
    quiet = np.zeros(SAMPLE_RATE_HZ, np.float32)
    gap = np.zeros(round(gap_s * SAMPLE_RATE_HZ), np.float32)
    stream = np.concatenate([quiet, demo[place[first]], gap, demo[place[second]], quiet])
    stream += (1e-4 * np.random.default_rng(0).standard_normal(len(stream))).astype(np.float32)
    found = list(Listener(recognizer, [second], wake=first).listen([stream]))
    assert [d.word for d in found] == [first, second]
    assert found[0].start_s < found[0].end_s == found[1].start_s < found[1].end_s
    assert [d.word for d in Listener(recognizer, [second], wake="go").listen([stream])] == []


def test_a_command_between_other_words_is_not_one_breath(demo: np.ndarray) -> None:
    rejected: list[Rejection] = []
    listener = Listener(Recognizer.load(), ["left"], wake="yes", on_rejection=rejected.append)
    talk = demo[216_000:256_000]
    assert list(listener.listen([talk])) == []
    assert [r.reason for r in rejected] == [Reason.TOO_LONG]
