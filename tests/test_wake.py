"""The wake word: commands count only for a while after it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tunes import LoudIsSpeech

from speech.decide import Decision
from speech.errors import ConfigError
from speech.heads import Reading, Word
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Reason, Rejection
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, Utterance

Tone = Callable[[float, float], np.ndarray]


class Script:
    """A reader that knows what is said when; "?" is speech that is none of the words."""

    max_s = 8.0

    def __init__(self, said: dict[float, str]) -> None:
        self.said, self.n_resets = said, 0

    def reset(self) -> None:
        self.n_resets += 1

    def read(self, utterance: Utterance) -> Reading:
        words = tuple(Word(word, 0, 100, 0.9) for word in self.said[utterance.start / SAMPLE_RATE_HZ].split())
        return Reading(words, Reason.ANOTHER_WORD if words[0].word == "?" else None, {})


def decided(said: dict[float, str], config: ListenerConfig, wake: str | None = "computer") -> list[str]:
    """Of each utterance the words that were accepted, or why they were not."""
    decision, outcomes = Decision(Script(said), config, wake), []
    for start_s in said:
        start, end = round(start_s * SAMPLE_RATE_HZ), round((start_s + 0.5) * SAMPLE_RATE_HZ)
        utterance = Utterance(np.zeros(end - start, np.float32), start, start, end, end + 8000, False)
        examined = decision.decide(utterance, end + 8000)
        accepted = " ".join(d.word for d in examined.detections)
        outcomes.append(f"{examined.rejection.reason}" if examined.rejection else accepted)
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
        rejected=rejected.append,
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
