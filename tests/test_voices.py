"""Synthetic voices; skipped where espeak-ng or flite are not installed.  CI installs them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes import demo, voices
from speech import Listener, Recognizer
from speech.training.data import KEYWORDS, index_others

MISSING = [program for program in ("espeak-ng", "flite") if not shutil.which(program)]
needs_voices = pytest.mark.skipif(bool(MISSING), reason=f"no synthesiser: {', '.join(MISSING)} not installed")


@needs_voices
def test_clips_are_spoken_and_laid_out_for_training(tmp_path: Path) -> None:
    assert voices.main([str(tmp_path), "--scarce", "6", "--known", "1", "--outside", "1", "--sentences", "0"]) == 0
    clips = sorted(tmp_path.glob("synthetic/*/*_nohash_*.wav"))
    assert len([c for c in clips if c.parent.name == "on"]) >= 5
    assert {c.parent.name for c in clips} >= {"yes", "off", "zero", "snow", "marvin"}
    assert all(len(c.parent.name) > 1 for c in clips), "words, not letters"
    for clip in clips:
        samples, rate = soundfile.read(clip)
        assert rate == 16000
        assert 1600 <= len(samples) <= 16000
        assert np.abs(samples).max() == pytest.approx(0.5, abs=0.01)


@needs_voices
def test_sentences_hold_no_command_and_are_laid_out_for_training(tmp_path: Path) -> None:
    assert not set(voices.RUNNING.split()) & {*KEYWORDS, *voices.OTHERS}
    voices.sentence(tmp_path, 0)
    voices.sentence(tmp_path, 1)
    recordings = index_others(tmp_path)
    assert {r.source for r in recordings} == {"sentences"}
    assert len(recordings) == 2
    assert all(soundfile.info(r.path).duration > 1 for r in recordings)


@needs_voices
def test_a_number_always_gives_the_same_voice(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        voices.synthesise(tmp_path / folder, "left", 3)
    (first,), (second,) = (list((tmp_path / folder).glob("synthetic/left/*.wav")) for folder in ("a", "b"))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


@needs_voices
def test_the_demo_made_anew_holds_the_same_commands() -> None:
    recording = demo.compose(np.random.default_rng(1))
    assert tuple(d.word for d in Listener(Recognizer.load()).listen([recording])) == demo.COMMANDS


def test_missing_programs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert voices.main([str(tmp_path)]) == 1
    assert "espeak-ng is missing" in capsys.readouterr().err
