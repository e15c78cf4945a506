"""Streams with commands at known places."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ten import KEYWORDS

from recipes.data.recordings import Recording
from recipes.data.sounds import SPEECH_DB, extent
from recipes.protocols.scenes import (
    ECHO_DELAY,
    QUIET_DBFS,
    SCENES,
    SENTENCE_S,
    TONE_GAP_S,
    TONE_S,
    AfterTalk,
    AfterTone,
    Dressed,
    InRoom,
    Recordings,
    Scene,
    Stage,
    is_talk,
    place,
    sentence,
    sound_rms,
)
from speech.errors import DataError
from speech.listen import DEMO
from speech.sound.files import read

RATE = 16000


def clip(start_s: float = 0.4, end_s: float = 0.8, level: float = 0.1) -> np.ndarray:
    """A second of faint hiss with a louder one in it."""
    rng = np.random.default_rng(0)
    waveform = 1e-4 * rng.standard_normal(RATE)
    start, end = round(start_s * RATE), round(end_s * RATE)
    waveform[start:end] += level * rng.standard_normal(end - start)
    return waveform.astype(np.float32)


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.square(waveform).mean()))


def test_names_are_short_and_all_different() -> None:
    names = [scene.name for scene in SCENES]
    assert len(set(names)) == len(names)
    assert Scene().name == "clean"
    assert Scene(10.0, room=True).name == "10 dB, room"
    assert Scene(20.0, bed="speech").name == "20 dB over speech"
    assert Scene(after_talk_s=0.3).name == "0.3 s after talk"
    assert Scene(peak_dbfs=-40.0).name == "peak -40 dBFS"


def test_the_words_sound_where_it_says(recordings: Recordings) -> None:
    composed, again = (Stage(recordings, "testing", KEYWORDS, 20).compose(Scene()) for _ in range(2))
    assert composed
    assert again
    stream, placed = composed
    np.testing.assert_array_equal(stream, again[0])
    assert len(placed) == 20
    assert len({p.word for p in placed}) == 10
    for command in placed:
        inside = stream[round(command.start_s * RATE) : round(command.end_s * RATE)]
        after = stream[round(command.end_s * RATE) :][:800]
        assert np.square(inside).mean() > 100 * np.square(after).mean()


def test_what_comes_before_a_clip_moves_it() -> None:
    stream, placed = place([("go", clip(), 0.5), ("up", clip(), 1.0)], lambda x: Dressed(np.pad(x, (800, 0)), 800))
    starts = [0.5 + 0.05 + 0.4, 0.5 + 0.05 + 1 + 1.0 + 0.05 + 0.4]
    assert [p.start_s for p in placed] == pytest.approx(starts, abs=0.011)
    assert [p.end_s - p.start_s for p in placed] == pytest.approx([0.4, 0.4], abs=0.03)
    for p in placed:
        assert rms(stream[round(p.start_s * RATE) :][:4000]) == pytest.approx(0.1, rel=0.1)


def test_a_room_sounds_on_after_the_same_words() -> None:
    room = np.zeros(8000, np.float32)
    room[0], room[6400] = 1.0, 0.5  # an echo after 0.4 s
    clips = [("go", clip(), 0.6), ("up", clip(), 0.7)]
    dry, placed = place(clips, Dressed)
    wet, again = place(clips, InRoom([room]))
    assert placed == again
    assert len(dry) == len(wet)
    assert np.corrcoef(dry, wet)[0, 1] > 0.7
    assert np.corrcoef(np.roll(dry, 6400), wet)[0, 1] > 0.3


@pytest.mark.parametrize("pause_s", [0.3, 2.0])
def test_a_pause_and_a_command_follow_a_sentence_as_loud(pause_s: float) -> None:
    spoken = np.full(2 * RATE, 10 ** (SPEECH_DB / 20), np.float32)
    dress = AfterTalk([spoken, -spoken], pause_s)
    first, second = dress(clip()), dress(clip(level=0.01))
    assert first.lead == second.lead == 2 * RATE + round(pause_s * RATE)
    for take, sign in ((first, 1), (second, -1)):
        assert take.waveform[0] == sign * spoken[0]
        assert not take.waveform[2 * RATE : take.lead].any()
        said = take.waveform[take.lead :]
        assert len(said) == RATE
        assert sound_rms(said) == pytest.approx(rms(spoken), rel=1e-3)


def test_a_tone_ends_before_the_word_and_is_as_loud() -> None:
    dress = AfterTone()
    gaps = []
    for start_s in (0.05, 0.4, 0.7, 0.2, 0.5, 0.6, 0.65):
        plain = clip(start_s, start_s + 0.25)
        take = dress(plain)
        tone = take.waveform - np.pad(plain, (take.lead, 0))
        begin, *_, end = np.flatnonzero(np.abs(tone) > 1e-5)
        assert (end - begin) / RATE == pytest.approx(TONE_S, abs=0.002)
        assert rms(tone[begin:end]) == pytest.approx(sound_rms(plain), rel=0.1)
        gaps.append((take.lead + extent(plain)[0] - end) / RATE)
    assert min(gaps) > TONE_GAP_S[0] - 0.02
    assert max(gaps) < TONE_GAP_S[1] + 0.02
    assert max(gaps) - min(gaps) > 0.1


def test_a_sentence_is_cut_where_it_is_quietest() -> None:
    long = np.random.default_rng(0).standard_normal(8 * RATE).astype(np.float32)
    long[round(3.4 * RATE) : round(3.5 * RATE)] *= 0.05
    long[:RATE] = 0
    cut = sentence(long)
    assert cut is not None
    assert len(cut) / RATE == pytest.approx(2.4, abs=0.06)
    assert rms(cut) == pytest.approx(10 ** (SPEECH_DB / 20), rel=0.01)
    assert sentence(long[: 2 * RATE]) is None, "shorter than a sentence"
    whole = sentence(long[: 5 * RATE])
    assert whole is not None
    assert SENTENCE_S[0] < len(whole) / RATE < SENTENCE_S[1]


def test_talk_is_what_ends_as_one_long_utterance() -> None:
    demo = read(DEMO, RATE)
    spoken = demo[round(13.2 * RATE) : round(16.3 * RATE)]
    assert is_talk(spoken)
    assert not is_talk(demo[: 2 * RATE]), "a word"
    assert not is_talk(np.concatenate([spoken, demo[: 2 * RATE]])), "talk, but a word last"
    assert not is_talk(np.zeros(3 * RATE, np.float32))


def written(tmp_path: Path, kinds: Sequence[tuple[str, str, str, np.ndarray]]) -> list[Recording]:
    found = []
    for number, (word, part, source, audio) in enumerate(kinds):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, audio, RATE)
        found.append(Recording(path, word, part, source))
    return found


def test_scenes_need_what_they_are_made_of(tmp_path: Path) -> None:
    words = [(word, "validation", "words", clip()) for word in KEYWORDS]
    bare = Stage(Recordings(written(tmp_path, words)), "validation", KEYWORDS, 10)
    there = [scene.name for scene in SCENES if bare.compose(scene) and not scene.peak_dbfs]
    assert there == ["clean", "after a tone"]
    demo = read(DEMO, RATE)
    more = [
        *words,
        ("", "training", "rooms", np.eye(1, 4000)[0]),
        ("", "validation", "noise", clip()),
        ("", "validation", "speech", demo[round(13.2 * RATE) :]),
        ("on", "validation", "home", clip()),
        ("red", "validation", "home", clip()),
    ]
    stage = Stage(Recordings(written(tmp_path, more)), "validation", KEYWORDS, 10)
    assert not stage.compose(Scene(room=True, echo_db=0.0)), "a second place in the room is needed"
    more.append(("", "training", "rooms", np.eye(1, 4000)[0]))
    stage = Stage(Recordings(written(tmp_path, more)), "validation", KEYWORDS, 10)
    for scene in SCENES:
        if scene.cancelled:
            continue
        composed = stage.compose(scene)
        assert composed, scene.name
        stream, placed = composed
        assert [p.word for p in placed] == ["on"] if scene.home else len(placed) == 10
        assert stream.dtype == np.float32
    once, again = (stage.compose(Scene(10.0, room=True)) for _ in range(2))
    assert once
    assert again
    np.testing.assert_array_equal(once[0], again[0])


def test_missing_commands_are_reported(tmp_path: Path) -> None:
    words = [(word, "validation", "words", clip()) for word in KEYWORDS if word != "left"]
    with pytest.raises(DataError, match="all commands"):
        Stage(Recordings(written(tmp_path, words)), "validation", KEYWORDS, 10)


def test_noise_is_mixed_in_at_its_level(tmp_path: Path) -> None:
    words = [(word, "validation", "words", clip()) for word in KEYWORDS]
    noise = ("", "validation", "noise", np.random.default_rng(1).standard_normal(6 * RATE) / 10)
    stage = Stage(Recordings(written(tmp_path, [*words, noise])), "validation", KEYWORDS, 10)
    clean, ten, five = (stage.compose(Scene(snr_db)) for snr_db in (None, 10.0, 5.0))
    assert clean
    assert ten
    assert five
    assert clean[1] == ten[1] == five[1]
    for noisy, snr_db in ((ten, 10.0), (five, 5.0)):
        added_db = 20 * np.log10(rms(noisy[0] - clean[0]))
        assert added_db == pytest.approx(SPEECH_DB - snr_db, abs=0.2)


def test_a_level_is_that_of_the_words_peak_over_a_quiet_room(recordings: Recordings) -> None:
    stage = Stage(recordings, "validation", KEYWORDS, 10)
    clean, quiet = stage.compose(Scene()), stage.compose(Scene(peak_dbfs=-40.0))
    assert clean
    assert quiet
    assert clean[1] == quiet[1]
    for command in quiet[1]:
        said = quiet[0][round(command.start_s * RATE) : round(command.end_s * RATE)]
        assert 20 * np.log10(np.abs(said).max()) == pytest.approx(-40, abs=0.3)
    before = quiet[0][: RATE // 4]
    assert 20 * np.log10(rms(before)) == pytest.approx(QUIET_DBFS, abs=0.2)


def test_the_same_seed_draws_the_same_however_files_are_listed(tmp_path: Path) -> None:
    found = written(tmp_path, [("on", "testing", "words", clip(level=0.01 * n)) for n in range(1, 4)])
    forth, back = Recordings(found), Recordings(found[::-1])
    assert [r.path for r in forth.recordings] == [r.path for r in back.recordings]
    index = int(forth.select("testing", "words")[1])
    np.testing.assert_array_equal(forth[index], back[index])
    long = forth.crop(index, np.random.default_rng(0), 3 * RATE)
    np.testing.assert_array_equal(long, back.crop(index, np.random.default_rng(0), 3 * RATE))
    assert len(long) == 3 * RATE


@pytest.mark.parametrize(("rate", "shape", "wrong"), [(8000, (800,), "16000 Hz mono"), (RATE, (800, 2), "mono")])
def test_a_file_of_another_format_is_named(tmp_path: Path, rate: int, shape: tuple[int, ...], wrong: str) -> None:
    path = tmp_path / "odd.wav"
    soundfile.write(path, np.zeros(shape), rate)
    with pytest.raises(DataError, match=rf"odd\.wav must be .*{wrong}"):
        Recordings([Recording(path, "", "testing", "noise")])[0]
    path.write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"odd\.wav can't be read"):
        Recordings([Recording(path, "", "testing", "noise")])[0]


def test_an_echo_comes_at_its_level_and_is_cancelled(tmp_path: Path) -> None:
    demo = read(DEMO, RATE)
    kinds = [(word, "validation", "words", clip()) for word in KEYWORDS]
    kinds += [("", "validation", "rooms", np.eye(1, 4000)[0]), ("", "validation", "rooms", np.eye(1, 4000)[0])]
    kinds += [("", "validation", "speech", demo[round(13.2 * RATE) : round(16.3 * RATE)])]
    stage = Stage(Recordings(written(tmp_path, kinds)), "validation", KEYWORDS, 10)
    clean, echo = stage.compose(Scene(room=True)), stage.compose(Scene(room=True, echo_db=5.0))
    assert clean
    assert echo
    assert clean[1] == echo[1]
    added = echo[0] - clean[0]
    assert not added[:ECHO_DELAY].any()
    assert 20 * np.log10(rms(added)) == pytest.approx(SPEECH_DB - 5, abs=0.3)
    cancelled = stage.compose(Scene(room=True, echo_db=5.0, cancelled=True))
    assert cancelled
    assert cancelled[1] == clean[1]
    assert len(cancelled[0]) == len(clean[0])
    quiet = np.abs(clean[0]) < 1e-3  # between the words
    late = np.arange(len(quiet)) > 5 * RATE  # it has to find the delay first
    assert rms(cancelled[0][quiet & late]) < 0.2 * rms(echo[0][quiet & late])
