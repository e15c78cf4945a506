import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.errors import ConfigError, DataError
from speech.training.data import (
    CLIP,
    KEYWORDS,
    SILENCE,
    UNKNOWN,
    Corpus,
    FixedExamples,
    MixConfig,
    TrainingExamples,
    extent,
    fit,
    halve,
    index_others,
    index_words,
    isolate,
    join,
    place,
    procedural_noise,
    set_level,
    speaker_of,
    vocabulary,
)

MIX = MixConfig(keyword=4, word=2, unknown_word=5, partial=3, speech=0, silence=20, rare=12)


def test_no_speaker_stands_in_two_parts(root: Path) -> None:
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
    assert vocabulary(recordings, 12) == (*KEYWORDS, "bird", UNKNOWN, SILENCE)
    assert vocabulary(recordings, 13) == (*KEYWORDS, UNKNOWN, SILENCE)


def test_the_cache_holds_the_recordings(corpus: Corpus) -> None:
    for i in (0, 7, len(corpus) - 1):
        expected, _ = soundfile.read(corpus.recordings[i].path, dtype="float32")
        np.testing.assert_array_equal(corpus[i], expected)
    again = Corpus(corpus.recordings, Path(corpus._samples.filename).parent)
    np.testing.assert_array_equal(again[3], corpus[3])


def test_a_crop_of_a_short_recording_goes_round(corpus: Corpus) -> None:
    room = int(corpus.select("training", "rooms")[0])
    assert corpus.crop(room, np.random.default_rng(0), 3 * CLIP).shape == (3 * CLIP,)


def test_missing_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation_list\.txt is missing; .*--data\.download true"):
        index_words(tmp_path, 0.0)


def test_a_broken_recording_is_named(root: Path, tmp_path: Path) -> None:
    recording = index_words(root, 0.0)[0]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"broken\.wav can't be read"):
        Corpus([type(recording)(broken, "yes", "training", "words")], tmp_path / "cache")
    soundfile.write(broken, np.zeros((100, 2)), 8000)
    with pytest.raises(DataError, match="16000 Hz mono"):
        Corpus([type(recording)(broken, "yes", "training", "words")], tmp_path / "cache")


def test_an_epoch_holds_what_the_mix_says(corpus: Corpus) -> None:
    labels = (*KEYWORDS, "bird", UNKNOWN, SILENCE)
    examples = TrainingExamples(corpus, labels, MIX, seed=1, epoch=0)
    counts = np.bincount([draw.label for draw in examples.draws], minlength=len(labels))
    assert counts.tolist() == [4] * 10 + [2, 3, 20]  # no word stands outside this vocabulary: only partial ones
    assert all(corpus.recordings[d.index].part == "training" for d in examples.draws if d.index >= 0)


def test_rare_commands_can_come_more_often(root: Path, corpus: Corpus) -> None:
    mix = dataclasses.replace(MIX, keyword_rare=9, rare=13)  # all are rare
    labels = (*KEYWORDS, UNKNOWN, SILENCE)
    drawn = [draw.label for draw in TrainingExamples(corpus, labels, mix, seed=1, epoch=0).draws]
    assert drawn.count(labels.index("on")) == 9


def test_the_seed_and_the_epoch_decide_an_example(corpus: Corpus) -> None:
    labels = (*KEYWORDS, UNKNOWN, SILENCE)

    def epoch(number: int) -> np.ndarray:
        examples = TrainingExamples(corpus, labels, MIX, seed=1, epoch=number)
        return np.stack([examples[i][0].numpy() for i in range(len(examples))])

    np.testing.assert_array_equal(epoch(0), epoch(0))
    assert not np.array_equal(epoch(0), epoch(1))


def test_silence_comes_at_every_level(corpus: Corpus) -> None:
    labels = (*KEYWORDS, UNKNOWN, SILENCE)
    mix = MixConfig(keyword=0, word=0, unknown_word=0, partial=0, speech=0, silence=200, rare=12)
    examples = TrainingExamples(corpus, labels, mix, seed=1, epoch=0)
    levels = [float(examples[i][0].square().mean().sqrt()) for i in range(len(examples))]
    assert min(levels) == 0
    assert sum(level < 1e-3 for level in levels) > 40
    assert sum(level > 0.05 for level in levels) > 30


def test_fixed_examples_never_change(corpus: Corpus) -> None:
    labels = (*KEYWORDS, UNKNOWN, SILENCE)
    first, second = (FixedExamples(corpus, labels, "validation", 5, seed=0) for _ in range(2))
    assert len(first) == 33 + 5 * bool(len(corpus.select("validation", "noise")))
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first.items, second.items, strict=True))
    assert sum(label == labels.index(UNKNOWN) for _, label in first.items) == 3


def word(start: int = 5000, end: int = 9000) -> np.ndarray:
    clip = np.zeros(CLIP, np.float32)
    clip[start:end] = 0.5 * np.sin(np.arange(end - start) / 5)
    return clip


def test_extent_finds_the_word() -> None:
    noisy = word() + 0.002 * np.random.default_rng(0).standard_normal(CLIP).astype(np.float32)
    start, end = extent(noisy)
    assert 0 <= 5000 - start <= 320
    assert 0 <= end - 9000 <= 320
    assert extent(np.zeros(CLIP, np.float32)) == (0, CLIP)
    assert extent(np.ones(300, np.float32)) == (0, 300)


def test_extent_keeps_a_weak_end_and_is_no_click() -> None:
    rng = np.random.default_rng(0)
    clip = word() + 0.0005 * rng.standard_normal(CLIP).astype(np.float32)
    clip[10500:13000] += 0.01 * np.diff(rng.standard_normal(2501)).astype(np.float32)  # as the "ff" of "off"
    assert extent(clip)[1] >= 12900
    quiet = 0.02 * word()
    quiet[1000:1010] = 1
    start, end = extent(quiet)
    assert start <= 5000
    assert end >= 9000


def test_fit_centres() -> None:
    assert fit(np.ones(4, np.float32), 8).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert fit(np.arange(8, dtype=np.float32), 4).tolist() == [2, 3, 4, 5]


def test_a_halved_word_keeps_little_and_touches_an_edge() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        half = halve(word(), rng)
        kept = np.square(half).sum() / np.square(word()).sum()
        assert half.shape == (CLIP,)
        assert 0.03 <= kept <= 0.37
        assert half[:10].any() or half[-10:].any()


def test_a_placed_word_stays_whole() -> None:
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(30):
        moved = place(word(), rng)
        assert np.square(moved).sum() == pytest.approx(np.square(word()).sum(), rel=1e-3)
        starts.add(int(np.flatnonzero(moved)[0]))
    assert max(starts) - min(starts) > CLIP // 2


def test_a_neighbour_leaves_the_word_alone() -> None:
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(CLIP).astype(np.float32)
    for _ in range(20):
        joined = join(word(), speech, rng)
        np.testing.assert_array_equal(joined[4850:9150], word()[4850:9150])
        assert not np.array_equal(joined, word())


def test_a_piece_stands_alone_and_is_cut_softly() -> None:
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(CLIP).astype(np.float32)
    lengths, starts = [], []
    for _ in range(50):
        alone = isolate(speech, rng)
        sounding = np.flatnonzero(alone)
        lengths.append((sounding[-1] - sounding[0]) / CLIP)
        starts.append(sounding[0])
        assert len(alone) == CLIP
        assert abs(alone[sounding[0]]) < 0.05 > abs(alone[sounding[-1]])
    assert min(lengths) > 0.13
    assert 0.5 < max(lengths) < 0.73
    assert max(starts) - min(starts) > CLIP / 4


def test_snippets_and_sentences_are_unknown(root: Path) -> None:
    sentences = root / "synthetic_sentences"
    sentences.mkdir()
    for n in range(3):
        soundfile.write(sentences / f"voice_{n}.wav", np.full(2 * CLIP, 0.1), CLIP, subtype="PCM_16")
    speech = root / "negative_speech/training/book"
    speech.mkdir(parents=True)
    for n in range(20):
        soundfile.write(speech / f"{n}-1-1.wav", np.full(2 * CLIP, 0.1), CLIP, subtype="PCM_16")
    corpus = Corpus(index_words(root, 0.0) + index_others(root), root / "cache")
    labels = (*KEYWORDS, UNKNOWN, SILENCE)
    mix = MixConfig(0, 0, 0, 0.0, partial=0, speech=40, snippet=40, speech_synthetic=0.25, silence=0, rare=12)
    draws = TrainingExamples(corpus, labels, mix, seed=1, epoch=0).draws
    assert {labels[draw.label] for draw in draws} == {UNKNOWN}
    for kind in ("speech", "snippet"):
        sources = [corpus.recordings[draw.index].source for draw in draws if draw.kind == kind]
        assert len(sources) == 40
        assert 2 <= sources.count("sentences") <= 20
        assert set(sources) == {"speech", "sentences"}


def test_procedural_noise_peaks_at_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        assert np.abs(procedural_noise(rng)).max() == pytest.approx(1, abs=1e-3)


def test_level() -> None:
    assert np.sqrt(np.square(set_level(word(), -30)).mean()) == pytest.approx(10 ** (-30 / 20), rel=1e-3)


def test_bad_mix_is_named() -> None:
    with pytest.raises(ConfigError, match=r"neighbour=2"):
        MixConfig(neighbour=2)
