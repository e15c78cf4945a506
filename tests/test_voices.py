"""Synthetic voices; an engine that is not installed is skipped.  CI installs them all."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ten import KEYWORDS

from recipes.data.recordings import index_others
from recipes.material import demo_recording, voices
from speech import Listener, Recognizer

RATE = 16000


def silent(text: str, rng: random.Random) -> tuple[str, np.ndarray]:
    return "silent", np.zeros(0, np.float32)


def tone(text: str, rng: random.Random) -> tuple[str, np.ndarray]:
    """A voice whose pitch depends on the draw and whose length depends on the text: 0.1 s a letter."""
    time = np.arange(len(text) * RATE // 10) / RATE
    return "tone", (0.2 * np.sin(2 * np.pi * rng.uniform(100, 900) * time)).astype(np.float32)


TONE = voices.Engine(tone, 1, "")


@pytest.mark.parametrize("name", voices.ENGINES)
def test_an_engine_says_words_that_are_distinguished(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped network is the judge: most of the ten commands, by random voices, are what was asked for."""
    try:
        (engine,) = voices.installed([name])
    except voices.DataError:
        pytest.skip(capsys.readouterr().err.strip())
    rng, recognizer = random.Random(1), Recognizer.load()
    spoken = [(word, engine.say(word, rng)) for word in KEYWORDS]
    assert all(voice.startswith(name) for _, (voice, _) in spoken)
    assert all(0.1 < len(waveform) / RATE < 1.5 for _, (_, waveform) in spoken)
    right = [recognizer.classify(waveform, RATE).word == word for word, (_, waveform) in spoken]
    assert np.mean(right) >= 0.4  # guessing: 0.1


def test_clips_are_laid_out_for_training(tmp_path: Path) -> None:
    voices.synthesise_all(tmp_path, [TONE], {"on": 6, "yes": 1}, n_sentences=2)
    found = index_others(tmp_path)
    assert sorted((r.source, r.word) for r in found) == [
        *[("sentences", "")] * 2, *[("synthetic", "on")] * 6, ("synthetic", "yes"),
    ]  # fmt: skip
    for recording in found:
        samples, rate = soundfile.read(recording.path)
        assert rate == RATE
        assert np.abs(samples).max() == pytest.approx(voices.PEAK, abs=0.01)
    assert len({soundfile.read(path)[0].tobytes() for path in tmp_path.glob("synthetic/on/*.wav")}) == 6


def test_what_is_too_short_or_too_long_is_not_written(tmp_path: Path) -> None:
    engines = [TONE]
    for word in ("", "a" * 15, "a" * 16):
        voices.word(tmp_path, engines, word, 0)
    assert {path.parent.name for path in tmp_path.glob("synthetic/*/*.wav")} == {"a" * 15}
    voices.word(tmp_path, [voices.Engine(silent, 1, "")], "yes", 0)
    assert not list(tmp_path.glob("synthetic/yes/*"))


def test_no_sentence_holds_a_word_of_the_vocabulary() -> None:
    assert len(voices.RUNNING) > 100
    assert not set(voices.RUNNING) & {*KEYWORDS, *voices.OTHERS}
    assert not set(voices.OUTSIDE) & {*KEYWORDS, *voices.OTHERS}


def test_a_number_always_gives_the_same_voice(tmp_path: Path) -> None:
    engines = [TONE, voices.Engine(silent, 1, "")]
    for number in range(8):
        (first, one), (second, two) = (voices.synthesise(engines, "left", f"left {number}") for _ in range(2))
        assert first == second
        np.testing.assert_array_equal(one, two)


def test_engines_are_drawn_by_their_shares() -> None:
    engines = [voices.Engine(tone, 3, ""), voices.Engine(silent, 1, "")]
    drawn = [voices.synthesise(engines, "left", str(number))[0] for number in range(400)]
    assert drawn.count("tone") / 400 == pytest.approx(0.75, abs=0.07)


def test_quiet_before_and_after_is_cut_off() -> None:
    time = np.arange(RATE // 2) / RATE
    sound = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    found = voices.trimmed(np.pad(sound, RATE), RATE)
    measured_s = 0.5 + 2 * 0.01  # the level is a mean over three frames of 10 ms
    assert len(found) / RATE == pytest.approx(voices.BEFORE_S + measured_s + voices.AFTER_S, abs=0.015)


def test_an_engine_that_is_missing_is_left_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(voices.ENGINES, "tone", TONE)
    assert voices.installed(["flite", "tone"]) == [TONE]
    assert capsys.readouterr().err == "flite is left out, it is not installed: apt-get install flite\n"


def test_without_any_engine_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert voices.main([str(tmp_path), "--engines", "espeak", "flite"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: no synthesiser is installed: espeak-ng alone will do"


def test_words_of_ones_own_are_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(voices, "ENGINES", {"tone": TONE})
    monkeypatch.setattr(voices, "OUTSIDE", ["snow"])
    (tmp_path / "words.txt").write_text("\ufeff# mine\nAbracadabra\n\ndon't\n", encoding="utf-8")
    arguments = [str(tmp_path), "--scarce", "2", "--known", "1", "--outside", "3", "--sentences", "0"]
    assert voices.main([*arguments, "--engines", "tone", "--words", str(tmp_path / "words.txt")]) == 0
    counts = {folder.name: len(list(folder.iterdir())) for folder in tmp_path.glob("synthetic/*")}
    assert counts == dict.fromkeys([*KEYWORDS, *voices.OTHERS], 1) | dict.fromkeys(
        ("snow", "abracadabra", "don't"), 3
    ) | dict.fromkeys(voices.SCARCE, 2)
    assert "\r" not in capsys.readouterr().err, "no progress line where stderr is no terminal"


@pytest.mark.parametrize("text", ["two words\n", "../x\n", "3\n"])
def test_a_line_that_is_no_word_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text(text)
    assert voices.main([str(tmp_path), "--words", str(tmp_path / "words.txt")]) == 2
    assert repr(text.strip()) in capsys.readouterr().err


def test_the_demo_made_anew_holds_the_same_commands() -> None:
    try:
        recording = demo_recording.compose(np.random.default_rng(1))
    except FileNotFoundError as error:
        pytest.skip(f"no synthesiser: {error}")
    assert tuple(d.word for d in Listener(Recognizer.load()).listen([recording])) == demo_recording.COMMANDS
