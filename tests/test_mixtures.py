import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from ten import KEYWORDS

from recipes.data.clips import CLIP
from recipes.data.corpus import Corpus, Recording, speaker_of
from recipes.data.material import Material, NoiseMix
from recipes.data.mixtures import (
    NOTHING,
    Element,
    Mixture,
    MixtureBatches,
    MixtureConfig,
    MixtureMaker,
    Mixtures,
    Placed,
    encode,
    lay,
    lay_in_a_row,
    transcripts,
    trim,
)
from recipes.data.plan import as_bank, render
from speech.bundle import UNKNOWN
from speech.errors import ConfigError

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


def test_transcripts_become_tokens() -> None:
    targets, n_targets = encode([("no", "no"), (), ("yes", UNKNOWN, "go")], LABELS)
    assert targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 10, 9]]
    assert n_targets.tolist() == [2, 0, 3]


def test_elements_in_a_row_keep_their_gaps_and_fit() -> None:
    n_samples = np.array([[3000, 2000, 9000, 100]] * 50)
    gaps = np.array([[5000, 1000, -500, 700]] * 50)  # the gap before the first does not count
    begin, fits = lay_in_a_row(n_samples, gaps, 10000, np.random.default_rng(0))
    assert fits.tolist() == [[True, True, False, False]] * 50, "what follows the one that does not fit is left out too"
    assert (begin[:, 1] - begin[:, 0] == 4000).all()
    assert begin[:, 0].min() >= 0
    assert begin[:, 1].max() + 2000 <= 10000
    assert np.ptp(begin[:, 0]) > 2000, "what is left over lies before and after them"


def test_transcripts_leave_out_sounds_and_join_other_speech() -> None:
    unknown = 10
    labels = np.array([[3, NOTHING, 3, 10], [10, NOTHING, 10, 4], [NOTHING] * 4, [10, 5, 10, 10]])
    tokens, n_tokens = transcripts(labels, unknown)
    assert n_tokens.tolist() == [3, 2, 0, 3]
    assert tokens.tolist() == [[3, 3, 10], [10, 4, 0], [0, 0, 0], [10, 5, 10]]


@pytest.fixture(scope="module")
def material(corpus: Corpus) -> Material:
    return Material(corpus, "training", SMALL, KEYWORDS)


def batches(of: Material, config: MixtureConfig = SMALL, **more) -> MixtureBatches:
    return MixtureBatches(
        of, LABELS, config, NoiseMix(), more.get("seed", 1), more.get("epoch", 0), more.get("share", (0, 1))
    )


def rendered(of: Material, batch: Mixtures) -> torch.Tensor:
    return render(batch.plan, as_bank(of.corpus, "cpu"))[0]


def test_the_seed_and_the_epoch_decide_a_batch(material: Material) -> None:
    first, again, other = (batches(material, epoch=epoch)[1] for epoch in (0, 0, 1))
    assert torch.equal(rendered(material, first), rendered(material, again))
    assert torch.equal(first.targets, again.targets)
    assert first.targets.shape != other.targets.shape or not torch.equal(first.targets, other.targets)


def test_each_process_makes_its_own_mixtures_of_one_length(material: Material) -> None:
    shares = [batches(material, dataclasses.replace(SMALL, batches=4), share=(rank, 2)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 2
    for first, second in zip(*([of[i] for i in range(2)] for of in shares), strict=True):
        assert first.plan.n_samples == second.plan.n_samples
        assert not torch.equal(first.plan.elements.begin, second.plan.elements.begin)


def test_batches_have_the_shapes_and_only_training_recordings(material: Material) -> None:
    of = batches(material)
    corpus = material.corpus
    assert len(of) == 3
    for batch in (of[i] for i in range(3)):
        waveform = rendered(material, batch)
        assert waveform.shape[1] / CLIP in SMALL.lengths_s
        assert waveform.shape[0] * waveform.shape[1] / CLIP <= SMALL.audio_s
        assert batch.targets.shape == (len(waveform), max(1, int(batch.n_targets.max())))
        assert batch.targets.max() < len(LABELS) - 1, "the blank is never said"
        assert torch.isfinite(waveform).all()
        for begin in batch.plan.elements.begin.tolist():
            index = int(np.searchsorted(corpus.begin, begin, side="right")) - 1
            assert corpus.recordings[index].part == "training"
    with pytest.raises(IndexError):
        of[3]


def test_the_transcript_is_what_is_rendered(material: Material) -> None:
    corpus = material.corpus
    config = dataclasses.replace(SMALL, batches=8, unknown_word=0.3, word=0.0)
    for batch in (batches(material, config)[i] for i in range(8)):
        for row in range(batch.plan.n_rows):
            elements = batch.plan.elements
            mine = elements.row == row
            order = elements.place[mine].argsort()
            spoken = [
                corpus.recordings[int(np.searchsorted(corpus.begin, begin, side="right")) - 1]
                for begin in elements.begin[mine][order].tolist()
            ]
            words = [r.word if r.word in LABELS else UNKNOWN for r in spoken if r.word]
            expected = [w for i, w in enumerate(words) if w != UNKNOWN or i == 0 or words[i - 1] != UNKNOWN]
            said = [LABELS[n] for n in batch.targets[row, : batch.n_targets[row]]]
            assert said == expected


def test_rare_commands_come_more_often(corpus: Corpus, tmp_path: Path) -> None:
    few = Corpus([r for r in corpus.recordings if r.word != "on" or r.path.name < "8"], tmp_path)
    config = dataclasses.replace(SMALL, rare=12, command_rare=10.0, repeat=0.0, one_speaker=0.0, running=0.0)
    pool = Material(few, "training", config, KEYWORDS)
    assert [word for word in KEYWORDS if pool.is_rare(word)] == ["on"]
    _, tokens, n_tokens = MixtureMaker(pool, LABELS, config).make(6 * CLIP, 100, np.random.default_rng(0))
    said = [LABELS[n] for row, count in zip(tokens, n_tokens, strict=True) for n in row[:count]]
    commands = [word for word in said if word in KEYWORDS]
    assert len(commands) > 300
    assert 0.45 < commands.count("on") / len(commands) < 0.6  # ten of nineteen


def test_one_speaker_says_all_the_words_where_he_should(material: Material) -> None:
    corpus = material.corpus
    config = dataclasses.replace(SMALL, one_speaker=1.0, repeat=0.0, unknown_word=0.0, event=0.0, empty=0.0)
    plan, _, _ = MixtureMaker(material, LABELS, config).make(6 * CLIP, 20, np.random.default_rng(0))
    index = np.searchsorted(corpus.begin, plan.elements.begin.numpy(), side="right") - 1
    for row in range(20):
        speakers = {speaker_of(corpus.recordings[i].path) for i in index[plan.elements.row.numpy() == row]}
        assert len(speakers) == 1


def test_running_speech_fills_its_mixture_and_is_one_token(corpus: Corpus, tmp_path: Path) -> None:
    speech = tmp_path / "1-1-1.wav"
    soundfile.write(speech, 0.1 * np.random.default_rng(0).standard_normal(9 * CLIP), CLIP)
    rich = Corpus([*corpus.recordings, Recording(speech, "", "training", "speech")], tmp_path)
    config = dataclasses.replace(SMALL, running=1.0, empty=0.0)
    plan, tokens, n_tokens = MixtureMaker(Material(rich, "training", config, KEYWORDS), LABELS, config).make(
        3 * CLIP, 10, np.random.default_rng(0)
    )
    assert plan.elements.n_samples.tolist() == [3 * CLIP] * 10
    assert tokens.tolist() == [[LABELS.index(UNKNOWN)]] * 10
    assert n_tokens.tolist() == [1] * 10


@pytest.mark.parametrize(
    ("field", "value"), [("repeat", 1.5), ("lengths_s", (0.5,)), ("lengths_s", ()), ("batches", 0), ("audio_s", 2.0)]
)
def test_a_bad_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        MixtureConfig(**{field: value})  # type: ignore[arg-type]
