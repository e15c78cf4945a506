"""The protocol that measures what a language model of past commands gains."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ten import KEYWORDS

from recipes.data.corpus import Corpus
from recipes.data.mixtures import spoken_mixtures
from recipes.protocols import command_log
from recipes.protocols.command_log import Habits, Speech, error_change, false_alarms, live, people, perplexity
from recipes.protocols.connected import Heard, error_estimate
from speech import Listener, Recognizer
from speech.grammar import NGram
from speech.listen import DEMO
from speech.segment import ListenerConfig, utterances_of
from speech.sound.files import read


def test_what_is_said_follows_the_chain() -> None:
    rng = np.random.default_rng(0)
    habits = Habits.draw(KEYWORDS, 0.3, rng)
    said = habits.say(6000, rng)
    assert {len(sentence) for sentence in said} == {1, 2, 3, 4, 5, 6}
    first, following = np.zeros(10), np.zeros((10, 10))
    for sentence in said:
        places = [KEYWORDS.index(word) for word in sentence]
        first[places[0]] += 1
        for a, b in pairwise(places):
            following[a, b] += 1
    np.testing.assert_allclose(first / len(said), habits.first, atol=0.03)
    often = following.sum(1) > 1000
    assert often.any()
    np.testing.assert_allclose((following / following.sum(1, keepdims=True))[often], habits.following[often], atol=0.05)


def test_the_log_is_of_the_same_habits_and_drawn_apart() -> None:
    some = people(KEYWORDS, KEYWORDS, skew=0.1, n=20, n_log=200)
    assert [p.said for p in people(KEYWORDS, KEYWORDS, 0.1, 20, 200)] == [p.said for p in some]
    assert len({tuple(p.said) for p in some}) == len(some) == 10
    shorter = people(KEYWORDS, KEYWORDS, 0.1, 5, 200)
    assert all(a.language_model.as_dict() == b.language_model.as_dict() for a, b in zip(some, shorter, strict=True))
    assert 1.5 < perplexity(some) < 4 < perplexity(people(KEYWORDS, KEYWORDS, 0.3, 20, 200)) < 7
    assert 10 < perplexity(people(KEYWORDS, KEYWORDS, 100.0, 20, 200)) < 15  # 200 utterances do not tell that well


def test_errors_and_their_change() -> None:
    said = ("yes", "no", "go", "up")
    without = [Heard(said, said[:n], 0.2) for n in (4, 3, 2, 4)]
    better = [Heard(said, said[:n], 0.2) for n in (4, 4, 3, 4)]
    assert error_estimate(without).value == 3 / 16
    change = error_change(better, without)
    assert change.value == -2 / 16
    assert change.low < change.value < change.high <= 0


def test_live_is_what_a_listener_reports() -> None:
    recognizer, config = Recognizer.load("connected"), ListenerConfig()
    samples = read(DEMO, 16000)
    model = NGram.train([["yes", "no"], ["left", "right"]] * 20, recognizer.info.words)
    listener = Listener(recognizer, config=config, language_model=model)
    reader = recognizer.head.reader(recognizer, listener.thresholds, config, None, model)
    found = live(reader, utterances_of(samples, config, reader.max_s), len(samples), config)
    assert found == list(listener.listen([samples]))
    assert len(found) > 4


def test_spoken_mixtures_say_the_sentences(corpus: Corpus) -> None:
    sentences = [("yes",), ("no", "up", "no"), ("go", "stop")] * 3
    mixtures, again = (spoken_mixtures(corpus, "validation", sentences, seed=3) for _ in range(2))
    assert [m.transcript for m in mixtures] == sentences
    for mixture, same in zip(mixtures, again, strict=True):
        np.testing.assert_array_equal(mixture.waveform, same.waveform)


def test_the_program_prints_and_writes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data.root", str(root), "--held-out", "0", "--n", "10", "--log", "5", "--skew", "0.3"]
    assert command_log.main([*arguments, "--weights", "0", "0.5", "--json", str(tmp_path / "figures.json")]) == 0
    printed, figures = capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())
    (skew,) = figures["skews"]
    names = [outcome["name"] for outcome in skew["outcomes"] if outcome["snr_db"] is None]
    assert names == [
        "without",
        "own log, weight 0",
        "another's, weight 0",
        "own log, weight 0.5",
        "another's, weight 0.5",
    ]
    assert all(name in printed for name in names)
    without, own = skew["outcomes"][:2]
    assert own["live"] == without["live"]
    assert own["whole"] == without["whole"]
    assert f"{100 * without['live']['value']:6.2f} [" in printed
    assert skew["alarms"] is None, "the toy corpus has no speech without commands"
    assert "false alarms" not in printed


def test_false_alarms_are_what_is_reported_in_speech() -> None:
    recognizer, speech = Recognizer.load("connected"), read(DEMO, 16000)
    model = NGram.train([["yes", "no"]] * 20, recognizer.info.words)
    alarms = false_alarms(recognizer, Speech.cut(np.tile(speech, 2)), [model, model], [0.0, 1.0], KEYWORDS)
    found = list(Listener(recognizer, KEYWORDS, config=ListenerConfig(after_talk_s=0)).listen([np.tile(speech, 2)]))
    assert alarms.counts["without"] == alarms.counts["weight 0"] == len(found) > 10
    assert alarms.counts["weight 1"] < len(found), "words that are not in the log need clearer audio"
    assert alarms.hours == 2 * len(speech) / 16000 / 3600
    assert "0.01 h of speech, commands accepted after talk: without 20.0, weight 0 20.0, weight 1 " in str(alarms)


def test_wrong_usage_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--n", "9"], ["--log", "0"], ["--skew", "0"]):
        with pytest.raises(SystemExit):
            command_log.main(["--data.root", str(root), *wrong])
        assert "--n must be at least 10" in capsys.readouterr().err
    assert command_log.main(["--data.root", str(root), "--model", "commands"]) == 1
    assert "recognises single words only" in capsys.readouterr().err
