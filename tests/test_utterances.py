"""Scripted utterances and posteriors -> decisions."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from scripted import ScriptedRecognizer

from speech.bundle import FORMAT, BundleInfo
from speech.decide import Decision, SequenceReader, WordReader, make_reader
from speech.errors import ConfigError
from speech.grammar import Grammar, NGram
from speech.results import Examined, Reason
from speech.segment import ListenerConfig, Utterance

RATE = 16000
DEFAULT = ListenerConfig()
PRE_ROLL_S, SILENCE_S = 0.3, 0.25
WORDS = BundleInfo(
    format=FORMAT, head="classification", labels=("low", "high", "_unknown_", "_silence_"), sample_rate_hz=RATE,
    window_s=1.0, threshold=0.6, thresholds={"high": 0.8},
)  # fmt: skip
SEQUENCES = replace(WORDS, head="ctc", labels=("low", "high", "_unknown_", "_blank_"), step_s=0.04, offset_s=0.02)


@dataclass(frozen=True)
class Said:
    """Something said at a time, and what a bundle makes of it: see `ScriptedRecognizer`."""

    start_s: float
    length_s: float
    heard: tuple[str, float] | str
    is_long: bool = False

    def utterance(self) -> Utterance:
        start, end = round(self.start_s * RATE), round((self.start_s + self.length_s) * RATE)
        begin, closed = start - round(PRE_ROLL_S * RATE), end + round(SILENCE_S * RATE)
        waveform = np.zeros(0 if self.is_long else closed - begin, np.float32)
        waveform[start - begin : end - begin] = 0.1 * np.sin(np.arange(end - start))[: len(waveform)]
        return Utterance(waveform, begin, start, end, closed, self.is_long)


@dataclass(frozen=True)
class Case:
    """What is said, how it is listened to, and what is decided: words and reasons."""

    said: list[Said]
    decided: list[str]
    thresholds: dict[str, float] = field(default_factory=lambda: {"low": 0.6, "high": 0.8})
    config: ListenerConfig = DEFAULT
    grammar: str = ""
    log: list[str] = field(default_factory=list)
    """Past utterances, which a language model counts; empty: there is none."""


def talk(start_s: float, length_s: float = 3.0) -> Said:
    return Said(start_s, length_s, "", is_long=True)


def low(start_s: float, posterior: float = 0.9) -> Said:
    return Said(start_s, 0.5, ("low", posterior))


def other(start_s: float, length_s: float = 0.5) -> Said:
    return Said(start_s, length_s, ("_unknown_", 0.9))


ONLY_HIGH = {"high": 0.8}
AT_ONCE = ListenerConfig(after_talk_s=0.0)
LATE = ListenerConfig(after_talk_s=4.0)
SINGLE = {
    "a word": Case([low(1)], ["low"]),
    "just enough": Case([low(1, 0.6)], ["low"]),
    "not quite": Case([low(1, 0.59)], [Reason.UNSURE]),
    "each word has its threshold": Case(
        [Said(1, 0.5, ("high", 0.79)), Said(2, 0.5, ("high", 0.8))], ["unsure", "high"]
    ),
    "other speech": Case([other(1)], [Reason.ANOTHER_WORD]),
    "a noise": Case([Said(1, 0.5, ("_silence_", 0.9))], [Reason.NO_WORD]),
    "a word nobody asked for": Case([low(1)], [Reason.NOT_ASKED_FOR], ONLY_HIGH),
    "a weak word nobody asked for": Case([low(1, 0.3)], [Reason.NOT_ASKED_FOR], ONLY_HIGH),
    "talk": Case([talk(1)], [Reason.TOO_LONG]),
    "too soon after talk": Case([talk(1), low(5.7)], [Reason.TOO_LONG, Reason.AFTER_TALK]),
    "late enough after talk": Case([talk(1), low(5.8)], [Reason.TOO_LONG, "low"]),
    "after talk, wanted at once": Case([talk(1), low(4.3)], [Reason.TOO_LONG, "low"], config=AT_ONCE),
    "after talk, wanted late": Case([talk(1), low(7.9), low(8)], ["too long", "after talk", "low"], config=LATE),
    "unsure after talk": Case([talk(1), low(5, 0.5)], [Reason.TOO_LONG, Reason.UNSURE]),
    "other speech after talk": Case([talk(1), other(5)], [Reason.TOO_LONG, Reason.ANOTHER_WORD]),
    "said again": Case([talk(1), low(4.5), low(5.2), low(6)], ["too long", "after talk", "after talk", "low"]),
    "talk goes on": Case([talk(1), talk(5), low(8.5), low(10)], ["too long", "too long", "after talk", "low"]),
    "a short word is no talk": Case([other(1), low(1.8)], [Reason.ANOTHER_WORD, "low"]),
    "0.7 s of other speech is no talk": Case([other(1, 0.7), low(2.1)], [Reason.ANOTHER_WORD, "low"]),
    "more is talk": Case([other(1, 0.72), low(2.1)], [Reason.ANOTHER_WORD, Reason.AFTER_TALK]),
    "accepted words are no talk": Case([low(1), low(1.8), low(2.6)], ["low", "low", "low"]),
    "at the very beginning": Case([low(0.3)], ["low"]),
}
"""For a bundle of single words."""

BOTH = "(low high)+"
EASY = {"low": 0.6, "high": 0.6}
LOW_HIGH, LOW_LOW = 400 * ["low high"], 400 * ["low low"]
SEVERAL = {
    "a sequence": Case([Said(1, 1.5, "....ll..hh..ll.........")], ["low high low"]),
    "one word": Case([Said(1, 0.5, "....ll.........")], ["low"]),
    "nothing": Case([Said(1, 0.5, "...............")], [Reason.NO_WORD]),
    "other speech among the words": Case([Said(1, 1.5, "....ll..uu..ll.........")], [Reason.ANOTHER_WORD]),
    "one token of two is unsure": Case([Said(1, 1.0, "....ll..?......")], [Reason.UNSURE]),
    "both are good enough": Case([Said(1, 1.0, "....ll..?......")], ["low high"], {"low": 0.4, "high": 0.4}),
    "a word nobody asked for": Case([Said(1, 1.0, "....hh..ll......")], [Reason.NOT_ASKED_FOR], ONLY_HIGH),
    "an unsure word nobody asked for": Case([Said(1, 1.0, "....ll..?......")], ["low low"], {"low": 0.4}),
    "talk": Case([talk(1, 9.0)], [Reason.TOO_LONG]),
    "after talk": Case([Said(1, 1.6, "..uu.."), Said(4, 0.5, "..ll..")], [Reason.ANOTHER_WORD, Reason.AFTER_TALK]),
    "another word is no talk": Case([Said(1, 0.7, "..uu.."), Said(3, 0.5, "..ll..")], [Reason.ANOTHER_WORD, "low"]),
    "a long sequence is no talk": Case([Said(1, 3.0, "..ll..hh.."), Said(5, 0.5, "..ll..")], ["low high", "low"]),
    "nor an unsure one": Case([Said(1, 3.0, "..?.."), Said(5, 0.5, "..ll..")], [Reason.UNSURE, "low"]),
    "nor a long noise": Case([Said(1, 3.0, "......"), Said(5, 0.5, "..ll..")], [Reason.NO_WORD, "low"]),
    "a sentence": Case([Said(1, 1.0, "..ll..hh..")], ["low high"], grammar=BOTH),
    "no sentence": Case([Said(1, 1.0, "..hh..ll..")], [Reason.NOT_IN_GRAMMAR], grammar=BOTH),
    "a sentence in two breaths": Case([Said(1, 0.5, ".ll."), Said(3, 0.5, ".hh.")], ["low", "high"], grammar=BOTH),
    "too long a breath": Case(
        [Said(1, 0.5, ".ll."), Said(3.1, 0.5, ".hh.")], ["low", "not in the grammar"], grammar=BOTH
    ),
    "begun anew": Case(
        [Said(1, 0.5, ".ll."), Said(2, 0.5, ".ll."), Said(3, 0.5, ".hh.")], ["low", "low", "high"], grammar=BOTH
    ),
    "half a sentence after talk": Case(
        [Said(1, 2, ".uu."), Said(4.6, 0.5, ".ll."), Said(5.5, 0.5, ".hh.")],
        [Reason.ANOTHER_WORD, Reason.AFTER_TALK, Reason.NOT_IN_GRAMMAR],
        grammar=BOTH,
    ),
    "words outside the grammar are not sought": Case(
        [Said(1, 0.5, "..?..")], ["high"], {"low": 0.4, "high": 0.4}, grammar="high+"
    ),
    "what often follows is sure": Case([Said(1, 1.0, "....ll..?......")], ["low high"], EASY, log=LOW_HIGH),
    "something else often follows": Case([Said(1, 1.0, "....ll..?......")], ["low low"], log=LOW_LOW),
    "what often begins is sure": Case([Said(1, 1.0, "....?..........")], ["low"], log=LOW_HIGH),
    "each utterance begins anew": Case([Said(1, 0.5, "..ll.."), Said(3, 0.5, "..?..")], ["low", "low"], log=LOW_HIGH),
    "clear words are heard though they never follow": Case(
        [Said(1, 1.0, "..hhh..lll..")], ["high low"], log=["low high", "low", "high"]
    ),
    "a language model does not loosen the grammar": Case(
        [Said(1, 1.0, "....ll..?......")], [Reason.NOT_IN_GRAMMAR], log=LOW_LOW, grammar=BOTH
    ),
    "a sentence that often follows": Case(
        [Said(1, 1.0, "....ll..?......")], ["low high"], EASY, log=LOW_HIGH, grammar=BOTH
    ),
    "often said but not asked for": Case([Said(1, 0.5, "..?..")], ["high"], {"high": 0.4}, log=["low", "high"]),
}
"""For a bundle of sequences."""


def decide(info: BundleInfo, case: Case) -> list[Examined]:
    grammar = Grammar.parse(case.grammar, info.words) if case.grammar else None
    recognizer = ScriptedRecognizer(info, [said.heard for said in case.said if not said.is_long])
    model = NGram.train([line.split() for line in case.log], info.words) if case.log else None
    reader = make_reader(recognizer, case.thresholds, case.config, grammar, model)
    decision = Decision(reader, case.config)
    utterances = [said.utterance() for said in case.said]
    return [decision.decide(utterance, fed=utterance.closed) for utterance in utterances]


def outcome(examined: Examined) -> str:
    """The words that were reported, or the reason why none were; exactly one of the two is there."""
    assert bool(examined.detections) != bool(examined.rejection)
    if examined.rejection:
        return str(examined.rejection.reason)
    return " ".join(d.word for d in examined.detections)


@pytest.mark.parametrize("name", SINGLE)
def test_single_words(name: str) -> None:
    assert [outcome(e) for e in decide(WORDS, SINGLE[name])] == SINGLE[name].decided


@pytest.mark.parametrize("name", SEVERAL)
def test_sequences(name: str) -> None:
    assert [outcome(e) for e in decide(SEQUENCES, SEVERAL[name])] == SEVERAL[name].decided


def test_every_reason_is_given_by_some_case() -> None:
    decided = {outcome for case in (*SINGLE.values(), *SEVERAL.values()) for outcome in case.decided}
    assert set(Reason) - decided == {Reason.NO_WAKE_WORD}, "tests/test_wake.py gives that one"


def test_what_is_reported_of_a_word() -> None:
    (examined,) = decide(WORDS, Case([low(2.0)], []))
    (detection,) = examined.detections
    assert (detection.word, detection.confidence) == ("low", 0.9)
    assert detection.start_s == pytest.approx(2.0, abs=0.03)
    assert detection.end_s == pytest.approx(2.5, abs=0.03)
    assert detection.at_s == examined.at_s == 2.5 + SILENCE_S
    assert examined.start_s == 2.0 - PRE_ROLL_S
    assert len(examined.waveform) == round((PRE_ROLL_S + 0.5 + SILENCE_S) * RATE)
    assert examined.scores == pytest.approx({"low": 0.9, "high": 1 / 30, "_unknown_": 1 / 30, "_silence_": 1 / 30})


def test_what_is_reported_of_a_rejected_word() -> None:
    (examined,) = decide(WORDS, Case([low(2.0, 0.5)], []))
    rejection = examined.rejection
    assert rejection
    assert (rejection.word, rejection.confidence, rejection.at_s) == ("low", 0.5, 2.75)
    assert (rejection.start_s, rejection.end_s) == pytest.approx((2.0, 2.5), abs=0.03)


def test_what_is_reported_of_talk() -> None:
    (examined,) = decide(WORDS, Case([talk(2.0)], []))
    rejection = examined.rejection
    assert rejection
    assert (rejection.word, rejection.confidence) == ("", 0.0)
    assert (rejection.start_s, rejection.end_s, rejection.at_s) == (2.0, 5.0, 5.25)
    assert (examined.start_s, len(examined.waveform), examined.scores) == (1.7, 0, {})


def test_what_is_reported_of_a_noise_in_the_place_of_a_sequence() -> None:
    (examined,) = decide(SEQUENCES, Case([Said(2, 1.0, "..............")], []))
    rejection = examined.rejection
    assert rejection
    assert (rejection.word, rejection.confidence) == ("_silence_", 1.0)
    assert (rejection.start_s, rejection.end_s) == (1.7, 3.25), "all of it"


def test_what_is_reported_of_a_rejected_sequence() -> None:
    (examined,) = decide(SEQUENCES, Case([Said(2, 1.0, "....ll..?......")], []))
    rejection = examined.rejection
    assert rejection
    assert rejection.word == "low high"
    assert rejection.confidence == pytest.approx(0.5, abs=0.05), "of the least sure of the words"
    assert (rejection.start_s, rejection.end_s) == pytest.approx((1.86, 3.0), abs=0.03)


def test_the_places_of_a_sequence() -> None:
    """Each token where its steps of 40 ms lie in the utterance; the outer two reach to where the sound does."""
    (examined,) = decide(SEQUENCES, Case([Said(2, 1.0, "." * 10 + "ll" + "." * 5 + "hhh" + "." * 19)], []))
    first, second = examined.detections
    begin_s = 2 - PRE_ROLL_S
    assert (first.start_s, second.end_s) == pytest.approx((2.0, 3.0), abs=0.03)
    assert (first.end_s, second.start_s) == pytest.approx((begin_s + 0.48, begin_s + 0.68), abs=1e-4)
    assert first.at_s == second.at_s == 3.25
    assert examined.scores == {}


def test_times_end_with_the_stream() -> None:
    """The last hop of a stream is filled up with silence that nobody has heard."""
    utterance = Said(1, 0.5, "").utterance()
    decision = Decision(WordReader(ScriptedRecognizer(WORDS, [("low", 0.9)]), {"low": 0.6}, AT_ONCE), AT_ONCE)
    (detection,) = decision.decide(utterance, fed=round(1.45 * RATE)).detections
    assert (detection.end_s, detection.at_s) == (1.45, 1.45)


@pytest.mark.parametrize(("info", "longest_s"), [(WORDS, 1.4), (SEQUENCES, 8.0)])
def test_each_head_has_its_longest_utterance(info: BundleInfo, longest_s: float) -> None:
    recognizer = ScriptedRecognizer(info, [])
    reader = make_reader(recognizer, {"low": 0.6}, ListenerConfig(), None)
    assert reader.max_s == longest_s
    halved = ListenerConfig(max_word_s=0.7, max_sequence_s=4.0)
    assert make_reader(recognizer, {"low": 0.6}, halved, None).max_s == longest_s / 2


def test_a_decision_that_is_reset_remembers_neither_talk_nor_sentence() -> None:
    recognizer = ScriptedRecognizer(SEQUENCES, ["..ll..", "..uu..", "..hh..", "..ll.."])
    grammar = Grammar.parse(BOTH, SEQUENCES.words)
    decision = Decision(
        SequenceReader(recognizer, {"low": 0.6, "high": 0.6}, ListenerConfig(), grammar), ListenerConfig()
    )

    def decided(start_s: float, length_s: float) -> str:
        utterance = Said(start_s, length_s, "").utterance()
        return outcome(decision.decide(utterance, utterance.closed))

    assert [decided(1, 0.5), decided(2, 2.0)] == ["low", Reason.ANOTHER_WORD]
    decision.reset()
    assert [decided(0.4, 0.5), decided(1, 0.5)] == [Reason.NOT_IN_GRAMMAR, "low"]


def test_grammar_and_language_model_need_a_head_that_hears_sequences() -> None:
    grammar, language_model = Grammar.parse("low", WORDS.words), NGram.train([["low"]], WORDS.words)
    recognizer = ScriptedRecognizer(WORDS, [])
    with pytest.raises(ConfigError, match="a grammar needs a bundle that recognises sequences"):
        make_reader(recognizer, {"low": 0.6}, ListenerConfig(), grammar)
    with pytest.raises(ConfigError, match="a language model needs a bundle that recognises sequences"):
        make_reader(recognizer, {"low": 0.6}, ListenerConfig(), None, language_model)


def test_a_language_model_knows_all_words_of_the_bundle() -> None:
    recognizer = ScriptedRecognizer(SEQUENCES, [])
    with pytest.raises(ConfigError, match="the language model does not know high,"):
        SequenceReader(recognizer, {"low": 0.6}, ListenerConfig(), language_model=NGram.train([], ["low"]))


@pytest.mark.parametrize(("weight", "outcome"), [(None, Reason.UNSURE), (0.0, "high"), (0.0625, "high"), (0.25, "low")])
def test_how_much_a_language_model_counts(weight: float | None, outcome: str) -> None:
    """The audio makes "high" 97 times as probable as "low", but "high" is not in the log."""
    recognizer, model = ScriptedRecognizer(SEQUENCES, ["..h.."]), NGram.train([["low"]] * 20_000, WORDS.words)
    thresholds = {"low": 0.3, "high": 0.8}
    if weight is None:
        reader = make_reader(recognizer, thresholds, DEFAULT, None, model)
    else:
        reader = SequenceReader(recognizer, thresholds, DEFAULT, language_model=model, weight=weight)
    found = Decision(reader, DEFAULT).decide(Said(1, 0.5, "..h..").utterance(), 2 * RATE)
    assert (found.rejection.reason if found.rejection else found.detections[0].word) == outcome
