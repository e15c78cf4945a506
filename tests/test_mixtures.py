import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.connected import Heard, error_rate, latencies, noisy
from speech.bundle import UNKNOWN
from speech.errors import ConfigError
from speech.results import Detection
from speech.training.data import CLIP, KEYWORDS, Corpus, speaker_of
from speech.training.mixtures import (
    Element,
    Mixture,
    MixtureBatches,
    MixtureConfig,
    MixtureMaker,
    Placed,
    WordPool,
    change_speed,
    encode,
    fixed_mixtures,
    lay,
    trim,
)

LABELS = (*KEYWORDS, UNKNOWN, "_blank_")
SMALL = MixtureConfig(batches=3, audio_s=24.0, lengths_s=(1.2, 3.0, 6.0))


def tone(seconds: float) -> np.ndarray:
    return np.sin(np.arange(round(seconds * CLIP)) / 5).astype(np.float32)


def test_elements_lie_where_the_transcript_says() -> None:
    rng = np.random.default_rng(0)
    elements = [
        Element(tone(0.3), "yes", 800, 4000),
        Element(tone(0.2), UNKNOWN, 0, 3200),
        Element(tone(2), "no", 0, 1),
    ]
    mixture = lay(elements, [9.0, 0.25, 0.1], 2 * CLIP, rng)  # the gap before the first does not count
    assert [p.word for p in mixture.placed] == ["yes", UNKNOWN], "the third does not fit"
    first, second = mixture.placed
    begin = first.start_s - 0.05
    assert second.start_s == pytest.approx(begin + 0.3 + 0.25)
    inside = slice(round(begin * CLIP) + 1, round((begin + 0.3) * CLIP))
    assert np.abs(mixture.waveform[inside]).max() > 0.9
    gap = slice(round((begin + 0.3) * CLIP) + 1, round(second.start_s * CLIP))
    assert not mixture.waveform[gap].any()
    assert len(mixture.waveform) == 2 * CLIP


def test_overlapping_elements_are_added() -> None:
    elements = [Element(tone(0.3), "yes", 0, 4800), Element(tone(0.3), "no", 0, 4800)]
    mixture = lay(elements, [0.0, -0.05], CLIP, np.random.default_rng(0))
    first, second = mixture.placed
    assert second.start_s == pytest.approx(first.end_s - 0.05)


def test_a_run_of_other_speech_is_one_token() -> None:
    words = ("yes", UNKNOWN, UNKNOWN, "no", UNKNOWN, "no", "no")
    mixture = Mixture(tone(1), tuple(Placed(word, i, i + 1) for i, word in enumerate(words)))
    assert mixture.transcript == ("yes", UNKNOWN, "no", UNKNOWN, "no", "no")


def test_trim_keeps_the_word_and_ends_softly() -> None:
    clip = np.concatenate([np.zeros(5000, np.float32), tone(0.25), np.zeros(5000, np.float32)])
    cut, start, end = trim(clip, (5000, 9000), np.random.default_rng(0))
    np.testing.assert_array_equal(cut[start:end], clip[5000:9000])
    assert 320 <= start <= 1280
    assert len(cut) - end <= 1280
    assert cut[0] == cut[-1] == 0


def test_speed_changes_length_and_pitch() -> None:
    fast = change_speed(tone(1), 1.25)
    assert len(fast) == CLIP / 1.25
    crossings = [np.count_nonzero(np.diff(np.sign(x))) / len(x) for x in (tone(1), fast)]
    assert crossings[1] / crossings[0] == pytest.approx(1.25, abs=0.01)


def test_the_seed_and_the_epoch_decide_a_batch(corpus: Corpus) -> None:
    def batch(seed: int, epoch: int) -> tuple[torch.Tensor, ...]:
        return MixtureBatches(corpus, LABELS, SMALL, seed, epoch)[1]

    for a, b in zip(batch(1, 0), batch(1, 0), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(batch(1, 0)[2], batch(1, 1)[2]) or batch(1, 0)[0].shape != batch(1, 1)[0].shape


def test_batches_have_the_shapes_and_only_training_recordings(corpus: Corpus) -> None:
    batches = MixtureBatches(corpus, LABELS, SMALL, seed=1, epoch=0)
    assert len(batches) == 3
    for waveform, noise, targets, n_targets in (batches[i] for i in range(3)):
        assert waveform.shape == noise.shape
        assert waveform.shape[1] / CLIP in SMALL.lengths_s
        assert waveform.shape[0] * waveform.shape[1] / CLIP <= SMALL.audio_s
        assert targets.shape == (len(waveform), max(1, int(n_targets.max())))
        assert targets.max() < len(LABELS) - 1, "the blank is never said"
        assert torch.isfinite(waveform).all()
        assert waveform.abs().max() <= 1
    clips = [i for some in batches.pool._clips.values() for i in some]
    assert {corpus.recordings[i].part for i in clips} == {"training"}
    with pytest.raises(IndexError):
        batches[3]


def test_rare_commands_come_more_often(corpus: Corpus, tmp_path: Path) -> None:
    few = Corpus([r for r in corpus.recordings if r.word != "on" or r.path.name < "8"], tmp_path)
    config = dataclasses.replace(SMALL, rare=12, command_rare=10.0, repeat=0.0, one_speaker=0.0, running=0.0)
    pool = WordPool(few, "training", LABELS, config)
    assert [word for word in KEYWORDS if pool.is_rare(word)] == ["on"]
    maker, rng = MixtureMaker(pool, config), np.random.default_rng(0)
    said = [word for _ in range(40) for word in maker.make(6 * CLIP, rng).transcript if word in KEYWORDS]
    assert 0.4 < said.count("on") / len(said) < 0.65  # ten of nineteen


def test_transcripts_become_tokens() -> None:
    targets, n_targets = encode([("no", "no"), (), ("yes", UNKNOWN, "go")], LABELS)
    assert targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 10, 9]]
    assert n_targets.tolist() == [2, 0, 3]


@pytest.mark.parametrize("part", ["validation", "testing"])
def test_fixed_mixtures_keep_to_their_part_and_sizes(corpus: Corpus, part: str) -> None:
    mixtures = fixed_mixtures(corpus, part, 30, seed=0)
    again = fixed_mixtures(corpus, part, 30, seed=0)
    for mixture, same in zip(mixtures, again, strict=True):
        assert mixture.placed == same.placed
        np.testing.assert_array_equal(mixture.waveform, same.waveform)
    assert {len(m.placed) for m in mixtures} == {1, 2, 3, 4, 5, 6}
    assert {p.word for m in mixtures for p in m.placed} == set(KEYWORDS)
    for mixture in mixtures:
        assert mixture.placed[0].start_s >= 0.3
        assert mixture.placed[-1].end_s <= len(mixture.waveform) / CLIP - 0.7
        gaps = [b.start_s - a.end_s for a, b in zip(mixture.placed, mixture.placed[1:], strict=False)]
        assert all(0.1 <= gap <= 0.8 + 0.2 for gap in gaps)  # up to 80 ms of each clip's own margin


def test_one_speaker_stays_one_speaker(corpus: Corpus) -> None:
    batches = MixtureBatches(corpus, LABELS, SMALL, seed=1, epoch=0)
    rng = np.random.default_rng(0)
    like = batches.pool.draw("yes", rng)
    for _ in range(10):
        other = batches.pool.draw_same_speaker(like, rng)
        assert speaker_of(corpus.recordings[other].path) == speaker_of(corpus.recordings[like].path)


def test_noise_comes_at_the_ratio(corpus: Corpus) -> None:
    mixtures = fixed_mixtures(corpus, "testing", 5, seed=0)
    if not len(corpus.select("testing", "noise")):
        pytest.skip("the tiny corpus has no noise for testing")
    clean, mixed = (noisy(mixtures, corpus, "testing", snr_db) for snr_db in (None, 10.0))
    for without, with_noise in zip(clean, mixed, strict=True):
        level_db = 20 * np.log10(np.sqrt(np.square(with_noise - without).mean()))
        assert level_db == pytest.approx(-36, abs=2)


def test_errors_are_substitutions_deletions_and_insertions() -> None:
    heard = [
        Heard(("yes", "no"), ("yes",), 0.2),
        Heard(("go",), ("up",), 0.0),
        Heard(("go", "go"), ("go", "up", "go"), 0.2),
    ]
    assert [h.errors for h in heard] == [1, 1, 1]
    assert error_rate(heard).value == pytest.approx(3 / 5)


def test_latency_counts_from_the_end_of_the_word() -> None:
    mixture = Mixture(tone(1), (Placed("go", 0.5, 0.9), Placed("go", 1.5, 1.9), Placed("up", 2.5, 2.8)))
    detections = [Detection("go", 0.5, 0.9, 0.9, 1.2), Detection("go", 1.5, 1.9, 0.9, 2.3)]
    assert latencies(mixture, detections) == [0.3, 0.4]


@pytest.mark.parametrize(
    ("field", "value"), [("repeat", 1.5), ("lengths_s", (0.5,)), ("lengths_s", ()), ("batches", 0), ("audio_s", 2.0)]
)
def test_a_bad_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        MixtureConfig(**{field: value})  # type: ignore[arg-type]
