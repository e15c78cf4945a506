from pathlib import Path

import numpy as np
import pytest
import soundfile
from ten import KEYWORDS

from recipes.data import corpus as corpus_module
from recipes.data.clips import CLIP, extent, procedural_sound
from recipes.data.corpus import (
    SILENCE,
    UNKNOWN,
    Corpus,
    Recording,
    index_others,
    index_procedural,
    index_words,
    read_commands,
    speaker_of,
    vocabulary,
)
from recipes.vocabulary import WORDS
from speech.errors import ConfigError, DataError


def test_no_speaker_is_in_two_parts(root: Path) -> None:
    for held_out in (0.0, 0.5):
        recordings = index_words(root, held_out)
        parts = {
            part: {speaker_of(r.path) for r in recordings if r.part == part}
            for part in ("training", "validation", "testing")
        }
        assert all(parts.values())
        assert not parts["training"] & parts["validation"]
        assert not parts["testing"] & (parts["training"] | parts["validation"])


def test_the_lists_decide_the_part(root: Path) -> None:
    recordings = index_words(root, 0.0)
    listed = (root / "SpeechCommands/speech_commands_v0.02/testing_list.txt").read_text().split()
    assert sorted(listed) == sorted(f"{r.word}/{r.path.name}" for r in recordings if r.part == "testing")


def test_held_out_speakers_move_with_all_they_said(root: Path) -> None:
    before, after = index_words(root, 0.0), index_words(root, 0.5)
    moved = {speaker_of(a.path) for a, b in zip(after, before, strict=True) if a.part != b.part}
    assert moved
    assert all(a.part == "validation" for a in after if speaker_of(a.path) in moved)


def test_vocabulary_takes_words_with_enough_recordings(root: Path) -> None:
    recordings = index_words(root, 0.0)
    assert vocabulary(recordings, 12, KEYWORDS) == (*KEYWORDS, "bird", UNKNOWN, SILENCE)
    assert vocabulary(recordings, 13, KEYWORDS) == (*KEYWORDS, UNKNOWN, SILENCE)


def test_a_word_is_added_by_a_line_and_recordings(root: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# mine\nbird  # it sings\n\non\n")
    commands = read_commands(words)
    assert commands == ("bird", "on")
    recordings = index_words(root, 0.0)
    assert vocabulary(recordings, 13, commands) == ("bird", "on", UNKNOWN, SILENCE)
    with pytest.raises(DataError, match="no recording of lamp"):
        vocabulary(recordings, 13, ("on", "lamp"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "on\non\n", "_unknown_\n"])
def test_a_bad_list_of_commands_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "words.txt").write_text(text)
    for name in ("words.txt", "missing.txt"):
        with pytest.raises(ConfigError, match=name):
            read_commands(tmp_path / name)


def test_the_list_of_the_recipe_is_the_ten() -> None:
    assert read_commands(WORDS) == KEYWORDS


def test_other_folders_take_their_part(tmp_path: Path) -> None:
    names = ("voices/know/a.wav", "voices/ghost/a.wav", "home/on/a.wav", "synthetic/yes/a.wav")
    events = [f"events/{part}/dog/a.wav" for part in ("training", "validation", "testing")]
    for name in (*names, *events):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = {str(r.path.relative_to(tmp_path)): r for r in index_others(tmp_path)}
    assert found["voices/know/a.wav"].word == "no", "it sounds the same"
    assert found["voices/ghost/a.wav"].word == "ghost"
    assert found["home/on/a.wav"].part == "validation", "it may not be trained on"
    assert [found[name].part for name in events] == ["training", "validation", "testing"]
    assert found["voices/ghost/a.wav"].part == found["synthetic/yes/a.wav"].part == "training"
    assert index_others(tmp_path / "missing") == []


def test_the_cache_holds_the_recordings(corpus: Corpus) -> None:
    for i in (0, 7, len(corpus) - 1):
        expected, _ = soundfile.read(corpus.recordings[i].path, dtype="float32")
        np.testing.assert_array_equal(corpus[i], expected)
        assert (corpus.start[i], corpus.end[i]) == extent(corpus[i])
    again = Corpus(corpus.recordings, Path(corpus.samples.filename).parent)
    np.testing.assert_array_equal(again[3], corpus[3])
    np.testing.assert_array_equal(again.power, corpus.power)


def test_several_processes_measure_what_one_does(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = corpus.recordings[:70] + index_procedural(3)
    monkeypatch.setattr(corpus_module, "MANY", 10)
    monkeypatch.setattr(corpus_module, "n_processors", lambda: 2)
    parallel = Corpus(some, tmp_path / "parallel")
    monkeypatch.setattr(corpus_module, "n_processors", lambda: 1)
    alone = Corpus(some, tmp_path / "alone")
    np.testing.assert_array_equal(parallel.samples, alone.samples)
    for name in ("begin", "length", "start", "end", "power"):
        np.testing.assert_array_equal(getattr(parallel, name), getattr(alone, name))
    np.testing.assert_array_equal(parallel.pieces.start, alone.pieces.start)
    assert len(alone.pieces.start) >= 3, "made sounds are cut into pieces"


def test_a_made_sound_needs_no_file(tmp_path: Path) -> None:
    made = Corpus(index_procedural(2), tmp_path)
    np.testing.assert_allclose(made[1], procedural_sound(1), atol=2e-4)
    assert {r.part for r in made.recordings} == {"training"}


def test_rms_is_that_of_the_stretch(corpus: Corpus) -> None:
    index = np.array([0, 5, len(corpus) - 1])
    start, end = np.array([1600, 4000, 0]), np.array([8000, 4800, 1600])
    expected = [np.sqrt(np.square(corpus[i][a:b]).mean()) for i, a, b in zip(index, start, end, strict=True)]
    np.testing.assert_allclose(corpus.rms(index, start, end), expected, rtol=1e-3)


def test_a_crop_of_a_short_recording_goes_round(corpus: Corpus) -> None:
    room = int(corpus.select("training", "rooms")[0])
    assert corpus.crop(room, np.random.default_rng(0), 3 * CLIP).shape == (3 * CLIP,)


def test_missing_data_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation_list\.txt is missing; .*--data\.download true"):
        index_words(tmp_path, 0.0)


def test_a_broken_recording_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"broken\.wav can't be read"):
        Corpus([Recording(broken, "yes", "training", "words")], tmp_path / "cache")
    soundfile.write(broken, np.zeros((100, 2)), 8000)
    with pytest.raises(DataError, match="16000 Hz mono"):
        Corpus([Recording(broken, "yes", "training", "words")], tmp_path / "cache")
