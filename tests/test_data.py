"""Recordings -> store of mel power -> composed examples -> augmentation."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from ten import KEYWORDS

from recipes.data import compose
from recipes.data.augment import GAIN_DB, Augment
from recipes.data.compose import GROUPS, Composer, transcripts
from recipes.data.elements import ELEMENT, Plan, laid, played, render
from recipes.data.recordings import (
    Recording,
    index_others,
    index_procedural,
    index_words,
    read_commands,
    vocabulary,
)
from recipes.data.sounds import loud_frames
from recipes.data.store import (
    NOMINAL,
    QUIET,
    ROOMS,
    TAIL,
    Store,
    live_gain,
    mel_power,
    open_store,
    pictures,
    sounds_of,
)
from recipes.material.toy_corpus import PARTS, WORDS, glide
from recipes.vocabulary import WORDS as LIST
from speech.bundle import BLANK, SILENCE, UNKNOWN
from speech.errors import ConfigError, DataError
from speech.model.features import HOP, LOG_OFFSET, MFCC, N_MELS
from speech.segment import high_pass

LABELS = (*KEYWORDS, UNKNOWN, SILENCE)
TOKENS = (*KEYWORDS, UNKNOWN, BLANK)


# ---- recordings ----
def test_no_speaker_is_in_two_parts(root: Path) -> None:
    for held_out in (0.0, 0.5):
        recordings = index_words(root, held_out)
        parts = {part: {r.speaker for r in recordings if r.part == part} for part in PARTS}
        assert all(parts.values())
        assert not parts["training"] & parts["validation"]
        assert not parts["testing"] & (parts["training"] | parts["validation"])


def test_the_lists_decide_the_part(root: Path) -> None:
    listed = (root / "SpeechCommands/speech_commands_v0.02/testing_list.txt").read_text().split()
    assert sorted(listed) == sorted(f"{r.word}/{r.path.name}" for r in index_words(root) if r.part == "testing")


def test_held_out_speakers_move_with_all_they_said(root: Path) -> None:
    before, after = index_words(root), index_words(root, 0.5)
    moved = {a.speaker for a, b in zip(after, before, strict=True) if a.part != b.part}
    assert moved
    assert all(a.part == "validation" for a in after if a.speaker in moved)


def test_vocabulary_takes_words_with_enough_recordings(root: Path, tmp_path: Path) -> None:
    recordings = index_words(root)
    assert vocabulary(recordings, KEYWORDS, 12) == (*KEYWORDS, "bird", UNKNOWN, SILENCE)
    assert vocabulary(recordings, KEYWORDS, 13) == (*KEYWORDS, UNKNOWN, SILENCE)
    words = tmp_path / "words.txt"
    words.write_bytes(b"\xef\xbb\xbfbird  # it sings\r\n\r\n# mine\r\non\r\n")
    assert read_commands(words) == ("bird", "on"), "a byte order mark is no part of a word"
    with pytest.raises(DataError, match="no recording of lamp"):
        vocabulary(recordings, ("on", "lamp"))
    assert read_commands(LIST) == KEYWORDS


@pytest.mark.parametrize("text", ["", "# nothing\n", "on\non\n", "_unknown_\n"])
def test_a_bad_list_of_commands_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "words.txt").write_text(text)
    for name in ("words.txt", "missing.txt"):
        with pytest.raises(ConfigError, match=name):
            read_commands(tmp_path / name)


def test_other_folders_take_their_part(tmp_path: Path) -> None:
    names = ("voices/know/a.wav", "voices/ghost/A.WAV", "home/on/a.wav", "synthetic/yes/a.wav")
    events = [f"events/{part}/dog/a.wav" for part in ("training", "validation", "testing")]
    for name in (*names, *events, "voices/ghost/._A.WAV", "voices/ghost/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = {str(r.path.relative_to(tmp_path)): r for r in index_others(tmp_path)}
    assert set(found) == {*names, *events}, "neither what a Mac leaves nor a text is audio"
    assert found["voices/know/a.wav"].word == "no", "it sounds the same"
    assert found["home/on/a.wav"].part == "validation", "it may not be trained on"
    assert [found[name].part for name in events] == ["training", "validation", "testing"]
    assert index_others(tmp_path / "missing") == []


def test_missing_data_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation_list\.txt is missing; .*--data\.download true"):
        index_words(tmp_path)


# ---- store ----
@pytest.fixture(scope="module")
def store(root: Path) -> Store:
    return open_store(index_words(root) + index_others(root) + index_procedural(12), root / "cache")


def test_the_store_holds_what_the_features_compute(store: Store) -> None:
    """Dry pictures: the mel power of the recording after the live high-pass, at the nominal level."""
    for number in (0, 40, 80):
        sound = store.sounds[number]
        recording = store.recordings[sound["recording"]]
        waveform, _ = soundfile.read(recording.path, dtype="float32")
        waveform = high_pass(waveform)
        frames = np.square(waveform[: len(waveform) // HOP * HOP].reshape(-1, HOP)).mean(1)
        loud = np.sqrt(np.sort(frames)[-25:].mean())
        power = mel_power(torch.from_numpy(waveform * (NOMINAL / loud))[None])[0]
        stored = store.frames[sound["begin"] :][: sound["length"]].float()
        difference = (stored - power.log()).abs()[power > 1e-4]  # the live filter shifts phases, that of the store not
        assert difference.median() < 0.01
        assert difference.quantile(0.99) < 0.3
    mfcc, waveform = MFCC(), 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        torch.log(mel_power(waveform) + LOG_OFFSET) @ mfcc.dct.T, mfcc(waveform), atol=1e-4, rtol=0
    )


def test_a_word_is_also_kept_in_rooms() -> None:
    click = np.zeros(16000, np.float32)
    click[4000:4100] = np.hanning(100)
    echo = torch.zeros(2, 8000)
    echo[:, 0] = 1
    echo[1, 4800] = 0.5  # 30 frames later
    found = pictures(click, echo).astype(np.float32)
    dry, near, far = found[:98], found[98 : 98 + 98 + TAIL], found[98 + 98 + TAIL :]
    assert len(far) == 98 + TAIL
    np.testing.assert_allclose(near[:98], dry, atol=0.1)
    loud = np.exp(far).sum(1)
    assert loud[25 + 30 - 1 : 25 + 30].max() == pytest.approx(loud.max() / 4, rel=0.2)
    assert not len(pictures(np.zeros(16000, np.float32), echo)), "without a sound there is no picture"


def test_the_table_says_where_everything_is(store: Store) -> None:
    end = 0
    for sound in store.sounds:
        recording = store.recordings[sound["recording"]]
        assert recording.part != "testing"
        assert recording.source != "rooms"
        assert sound["rooms"] == (ROOMS.get(recording.source, 0) if recording.part == "training" else 0)
        assert 0 <= sound["start"] < sound["end"] <= sound["length"]
        if sound["begin"] >= end:
            assert sound["begin"] == end
            end += sound["length"] + sound["rooms"] * (sound["length"] + TAIL)
        if sound["quiet"] >= 0 and recording.word:
            assert sound["quiet"] + QUIET <= sound["start"]
    assert end == len(store.frames)
    assert len(store.select("training", "procedural")) >= 12, "made sounds are cut at their pauses"
    assert sum(sound["quiet"] >= 0 for sound in store.sounds) > 100


def test_bounds_leave_out_the_silence() -> None:
    waveform = glide("yes", np.random.default_rng(0)).astype(np.float32)
    recording = Recording(Path("a.wav"), "yes", "training", "words")
    ((start, end),) = sounds_of(recording, waveform)
    loud = np.flatnonzero(np.abs(waveform) > 0.05)
    assert abs(start - loud[0] // HOP) < 8
    assert abs(end - loud[-1] // HOP) < 8
    both = np.concatenate([waveform, 0.002 * np.random.default_rng(1).standard_normal(8000), waveform]).astype(
        np.float32
    )
    assert len(sounds_of(Recording(Path("a.wav"), "", "training", "events"), both)) == 2
    assert sounds_of(Recording(Path("a.wav"), "", "training", "noise"), both).tolist() == [[0, len(both) // HOP]]
    assert loud_frames(np.zeros(100, np.float32)).tolist() == []


def test_bad_recordings_are_listed_together_and_left_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "b.wav", np.zeros((100, 2)), 8000)
    bad = [Recording(tmp_path / name, "yes", "training", "words") for name in ("a.wav", "b.wav")]
    good = [r for r in index_words(root) if r.part == "training"][:3]
    for _ in range(2):  # built, and opened again
        store = open_store([*bad, *good], tmp_path / "cache")
        assert [r.path for r in store.recordings] == [r.path for r in good]
        told = capsys.readouterr().err
        assert "a.wav can't be read" in told
        assert "b.wav must be 16000 Hz mono" in told
    with pytest.raises(DataError, match="no recording can be used"):
        open_store(bad, tmp_path / "cache")


def test_a_changed_recording_changes_the_store(root: Path, tmp_path: Path) -> None:
    some = [r for r in index_words(root) if r.part == "validation"][:2]
    path = tmp_path / "a.wav"
    path.write_bytes(some[0].path.read_bytes())
    mine = [Recording(path, "yes", "validation", "words")]
    before = open_store(mine, tmp_path / "cache").frames.clone()
    path.write_bytes(some[1].path.read_bytes())
    assert not torch.equal(open_store(mine, tmp_path / "cache").frames, before)
    assert not list((tmp_path / "cache").glob("[0-9]*-*")), "no part of a store is left"


# ---- composing ----
def element(**values: float) -> np.ndarray:
    found = np.zeros(1, ELEMENT)
    found["tempo"] = found["tract"] = 1
    for name, value in values.items():
        found[name] = value
    return found


RAMP = torch.linspace(-5, 0, 40)[:, None].expand(40, N_MELS).half()


def test_elements_add_up_in_power_at_their_places() -> None:
    both = np.concatenate([element(begin=10, length=5, place=3), element(begin=20, length=15, place=-2, gain_db=10)])
    found = render(RAMP, both, 2, 20)
    expected = torch.zeros(20, N_MELS)
    expected[3:8] += RAMP[10:15].float().exp()
    expected[:13] += 10 * RAMP[22:35].float().exp()
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-5)
    assert (found[1] == 0).all()
    assert (render(RAMP, np.zeros(0, ELEMENT), 2, 20) == 0).all()


def test_tempo_keeps_both_ends_and_interpolates_between() -> None:
    found = render(RAMP, element(begin=10, length=9, tempo=0.5), 1, 30)[0].log()
    torch.testing.assert_close(found[:17:2], RAMP[10:19].float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[1:16:2], (RAMP[10:18] + RAMP[11:19]).float() / 2, rtol=1e-2, atol=1e-2)
    assert (found[17:] == -torch.inf).all()


def test_what_lies_around_is_filled_from_the_quiet_stretch() -> None:
    one = element(begin=20, length=5, place=6, lead=6, trail=9, fill=2, n_fill=3)
    found = render(RAMP, one, 1, 20)[0].log()[:, 0]
    quiet = {round(float(x), 2) for x in RAMP[2:5, 0]}
    assert {round(float(x), 2) for x in torch.cat([found[:6], found[11:]])} == quiet
    torch.testing.assert_close(found[6:11], RAMP[20:25, 0].float())


def test_a_longer_vocal_tract_lowers_the_formants() -> None:
    peak = torch.full((1, N_MELS), -10.0)
    peak[0, 30] = 0
    places = [int(render(peak.half(), element(length=1, tract=t), 1, 1).argmax()) for t in (0.85, 1.0, 1.15)]
    assert places[0] > 30 > places[2]
    assert places[1] == 30


def test_summed_powers_are_the_power_of_the_mixed_waveforms() -> None:
    """The product of both waveforms, left out in the sum, has no mean: it blurs the log mel power a little."""
    rng = np.random.default_rng(0)
    word, noise = glide("yes", rng).astype(np.float32), 0.05 * rng.standard_normal(16000).astype(np.float32)
    power = [mel_power(torch.from_numpy(x)[None])[0] for x in (word, noise, word + noise)]
    difference = (torch.log(power[2] + LOG_OFFSET) - torch.log(power[0] + power[1] + LOG_OFFSET)).abs()
    assert difference.mean() < 0.12
    assert difference.quantile(0.99) < 1.0
    assert (torch.log(power[2] + LOG_OFFSET) - torch.log(power[0] + LOG_OFFSET)).abs().mean() > 3


@pytest.fixture(scope="module")
def composer(store: Store) -> Composer:
    return Composer(store, "training", LABELS, KEYWORDS)


def test_utterances_are_determined_by_their_seed(composer: Composer) -> None:
    def batch(seed: int) -> Plan:
        return next(composer.utterances(16, np.random.default_rng(seed)))

    one, again, other = batch(1), batch(1), batch(2)
    assert one.elements.tobytes() == again.elements.tobytes()
    assert torch.equal(one.label, again.label)
    assert one.elements.tobytes() != other.elements.tobytes()


def test_utterances_hold_their_word_within_margins(composer: Composer) -> None:
    seen = set()
    plans = composer.utterances(32, np.random.default_rng(0))
    for plan in (next(plans) for _ in range(16)):
        power = render(composer.store.frames, plan.elements, plan.n_rows, plan.n_frames)
        assert compose.SHORTEST <= plan.n_frames <= compose.LONGEST
        loud = power.sum(2) > 0.03 * power.sum(2).amax(1, keepdim=True)
        for row in range(plan.n_rows):
            seen.add(LABELS[plan.label[row]])
            if plan.extra[row] >= 0:
                assert composer.label_of[plan.extra[row]] == plan.label[row]
                (where,) = loud[row].nonzero(as_tuple=True)
                assert where[0] >= compose.LEFT[0] - 2
                assert where[0] < plan.n_frames - 20, "the word begins well before the end"
    assert seen == set(LABELS)


def test_only_noise_and_silence_are_without_further_noise(composer: Composer) -> None:
    plan = next(composer.utterances(256, np.random.default_rng(3)))
    silence = plan.label == LABELS.index(SILENCE)
    assert (~plan.sounding).any()
    assert silence[~plan.sounding].all()
    assert not silence[plan.extra >= 0].any()


def test_validation_holds_each_word_once_and_without_change(store: Store) -> None:
    composer = Composer(store, "validation", LABELS, KEYWORDS, strength=0.0)
    batches = composer.fixed(5, 16)
    groups = torch.cat([group for _, group in batches])
    assert (groups == GROUPS.index("official")).sum() == PARTS["validation"] * len(WORDS)
    for plan, group in batches:
        assert not len(plan.noises)
        assert set(plan.elements["tempo"][plan.elements["length"] > 0]) == {1}
        for label, number in zip(plan.label, group, strict=True):
            if GROUPS[number] == "noise":
                assert LABELS[label] == SILENCE
    again = composer.fixed(5, 16)
    assert all(torch.equal(a.label, b.label) for (a, _), (b, _) in zip(batches, again, strict=True))


def test_sequences_hold_their_transcripts(store: Store) -> None:
    composer = Composer(store, "training", TOKENS, KEYWORDS)
    words, plans = set(), composer.sequences(2000, np.random.default_rng(0))
    for plan in (next(plans) for _ in range(12)):
        assert plan.n_frames in [round(100 * s) for s in compose.SEQUENCE_S]
        assert plan.n_rows == 2000 // plan.n_frames
        counts = np.bincount(plan.elements["row"], minlength=plan.n_rows)
        for row in range(plan.n_rows):
            tokens = plan.label[row, : plan.extra[row]].tolist()
            assert len(tokens) <= counts[row]
            assert (plan.label[row, plan.extra[row] :] == 0).all()
            words |= {TOKENS[token] for token in tokens}
            mine = plan.elements[plan.elements["row"] == row]
            ends = mine["place"] + played(mine["length"], mine["tempo"])
            assert (ends <= plan.n_frames + 1.2 * TAIL).all()
    assert words == {*KEYWORDS, UNKNOWN}


def test_a_run_of_other_speech_counts_once() -> None:
    packed, count = transcripts(np.array([[5, 9, 9, -1], [9, -1, 9, 2], [-1, -1, -1, -1]]), unknown=9)
    assert [row[:n].tolist() for row, n in zip(packed, count, strict=True)] == [[5, 9], [9, 2], []]


def test_a_sound_is_laid_so_that_it_begins_at_its_place() -> None:
    one = element(begin=0, length=30, lead=10, n_fill=1)  # its sound begins ten frames after its recording
    (placed,) = laid(one, np.array([25]), 60, fill=True)
    assert (placed["place"], placed["lead"], placed["trail"]) == (15, 15, 15)
    (placed,) = laid(one, np.array([5]), 60, fill=False)
    assert (placed["place"], placed["lead"], placed["trail"]) == (-5, 0, 0)


# ---- augmentation ----
def examples(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    power = torch.rand(n, 90, N_MELS, generator=generator) * 1e-3
    power[:, 30:60] += 1
    return power, torch.rand(n, 90, N_MELS, generator=generator)


def augmented(strength: float, n: int = 64, seed: int = 0) -> torch.Tensor:
    power, noise = examples(n)
    return Augment(strength, torch.Generator().manual_seed(seed))(power, noise, torch.ones(n, dtype=torch.bool))


def test_without_strength_only_the_level_and_faint_noise_change() -> None:
    power, noise = examples(64)
    change = 10 / np.log(10) * (augmented(0.0) - power.log())[:, 30:60]
    assert (change.amax((1, 2)) - change.amin((1, 2))).max() < 1.0
    assert GAIN_DB[0] <= change.min()
    assert change.max() <= GAIN_DB[1] + 0.5
    still = Augment(0.0, torch.Generator().manual_seed(0))(power, noise, torch.zeros(64, dtype=torch.bool))
    torch.testing.assert_close(still[:, 30:60], power[:, 30:60].log(), atol=0.01, rtol=0)


def test_augmentation_is_seeded_and_finite() -> None:
    assert torch.equal(augmented(1.0), augmented(1.0))
    assert not torch.equal(augmented(1.0), augmented(1.0, seed=1))
    assert augmented(1.0).isfinite().all()


def test_most_examples_get_noise_in_their_pauses_and_some_lose_their_treble() -> None:
    found = augmented(1.0, 512)
    pause_db = 10 / np.log(10) * (found[:, 30:60].mean((1, 2)) - found[:, :25].mean((1, 2)))
    noisy = (pause_db < 25).float().mean()
    assert 0.6 < noisy < 0.9
    word = found[:, 30:60].mean(1)
    treble = 10 / np.log(10) * (word[:, -8:].mean(1) - word[:, 15:25].mean(1))
    assert 0.12 < (treble < -20).float().mean() < 0.35


def test_masks_are_the_mean_over_time() -> None:
    found = augmented(1.0, 256)
    constant = (found.amax(1) - found.amin(1)) < 1e-5  # (examples, bands)
    assert 0.02 < constant.float().mean() < 0.2
    assert constant.sum(1).max() <= 2 * 8


def test_the_high_pass_of_the_store_is_that_of_the_live_loop() -> None:
    noise = np.random.default_rng(0).standard_normal(1 << 15).astype(np.float32)
    live = np.abs(np.fft.rfft(high_pass(noise))) / np.abs(np.fft.rfft(noise))
    ours, bins = live_gain(1 << 15).numpy(), slice(100, 8000)  # 50 Hz to 4 kHz
    assert np.median(np.abs(live[bins] - ours[bins])) < 0.02
    assert ours[0] == 0
    assert ours[205] == pytest.approx(0.5**0.5, abs=0.02), "100 Hz"
