"""What an epoch of the classification head holds."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from ten import KEYWORDS

from recipes.data.clips import CLIP, FRAME
from recipes.data.corpus import SILENCE, UNKNOWN, Corpus, Recording, index_procedural
from recipes.data.examples import (
    GROUPS,
    LONGEST_S,
    SHORTEST_S,
    EpochDraws,
    MixConfig,
    UtteranceBatches,
    Utterances,
    ValidationUtterances,
    bucket,
    lay_out,
    make_plan,
)
from recipes.data.material import Material, NoiseMix
from recipes.data.plan import as_bank, render
from recipes.data.teacher import Teacher
from speech.errors import ConfigError

LABELS = (*KEYWORDS, "bird", UNKNOWN, SILENCE)
MIX = MixConfig(
    keyword=12, word=6, unknown_real=0, unknown_voices=10, unknown_synthetic=0, speech=20, talk=8, pair=9, noise=7,
    events=5, procedural=4, digital=3, rare=12, speech_synthetic=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def rich(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The tiny corpus with voices that say other words, speech, events, words at home and made sounds."""
    folder, rng = tmp_path_factory.mktemp("rich"), np.random.default_rng(0)
    more = [Recording(folder / f"ghost{n}.wav", "ghost", "training", "voices") for n in range(3)]
    for part in ("training", "validation"):
        more += [Recording(folder / f"{part}{n}.wav", "", part, "speech") for n in range(3)]
        more += [Recording(folder / f"{part}event{n}.wav", "", part, "events") for n in range(3)]
    more += [Recording(folder / f"{word}.wav", word, "validation", "home") for word in ("on", "off", "red")]
    demo, _ = soundfile.read("speech/demo.flac")
    for recording in more:
        length = 6 * CLIP if recording.source == "events" else CLIP
        sound = 0.1 * rng.standard_normal(length) * np.repeat(rng.uniform(0, 1, length // FRAME), FRAME)
        if recording.source == "speech":  # somebody must speak for the endpointer to cut it
            sound = demo[: 10 * CLIP]
        soundfile.write(recording.path, sound, CLIP, subtype="PCM_16")
    return Corpus([*corpus.recordings, *more, *index_procedural(6)], folder / "cache")


@pytest.fixture(scope="module")
def material(rich: Corpus) -> Material:
    return Material(rich, "training", MIX, KEYWORDS)


def epoch(
    material: Material, number: int = 0, mix: MixConfig = MIX, size: int = 16, share: tuple[int, int] = (0, 1)
) -> UtteranceBatches:
    return UtteranceBatches(material, LABELS, mix, NoiseMix(), Teacher(len(LABELS)), size, 1, number, share)


def batches(of: UtteranceBatches) -> list[Utterances]:
    return [of[i] for i in range(len(of))]


def test_an_epoch_holds_what_the_mix_says(material: Material) -> None:
    draws = epoch(material).draws
    counts = Counter(LABELS[n] for n in draws.label)
    assert counts == dict.fromkeys(KEYWORDS, 12) | {"bird": 6, UNKNOWN: 10 + 20 + 8 + 9, SILENCE: 7 + 5 + 4 + 3}
    used = np.concatenate([draws.first.recording, draws.second.recording[draws.second.recording >= 0]])
    assert {material.corpus.recordings[i].part for i in used} == {"training"}
    assert {material.corpus.recordings[i].source for i in used} == {
        "words", "voices", "speech", "events", "noise", "procedural",
    }  # fmt: skip
    assert len(epoch(material, mix=dataclasses.replace(MIX, repeats=3)).draws) == 3 * len(draws)


def test_a_label_is_the_word_of_the_recording(material: Material) -> None:
    draws = epoch(material).draws
    spoken = draws.word >= 0
    assert spoken.sum() == 10 * 12 + 6 + 10
    words = [material.corpus.recordings[i].word for i in draws.first.recording[spoken]]
    assert words == [material.words[n] for n in draws.word[spoken]]
    expected = [LABELS.index(word if word in LABELS else UNKNOWN) for word in words]
    assert expected == draws.label[spoken].tolist()
    assert "ghost" in words
    assert (draws.taught == spoken).all(), "the teachers answered to single words only"


def test_the_seed_and_the_epoch_decide_every_example(material: Material) -> None:
    bank = as_bank(material.corpus, "cpu")

    def waveforms(number: int) -> list[torch.Tensor]:
        return [w for batch in batches(epoch(material, number)) for w in render(batch.plan, bank)]

    first, again, other = waveforms(0), waveforms(0), waveforms(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, other, strict=False))


def test_batches_hold_utterances_of_about_one_length(material: Material) -> None:
    of = epoch(material, mix=dataclasses.replace(MIX, repeats=10), size=32)
    spread = [np.ptp(of.layout.wanted[rows]) for rows in of.batches]
    assert np.median(spread) < 0.1 * CLIP < np.ptp(of.layout.wanted)
    lengths = [batch.plan.n_samples for batch in batches(of)]
    assert min(lengths) >= SHORTEST_S * CLIP
    assert max(lengths) <= LONGEST_S * CLIP
    assert all(length % FRAME == 0 for length in lengths)
    assert lengths != sorted(lengths), "in random order"


def test_each_process_gets_its_own_share_of_equally_long_utterances(material: Material) -> None:
    both = [epoch(material, size=8, share=(rank, 2)) for rank in (0, 1)]
    rows = [np.concatenate(of.batches) for of in both]
    assert not set(rows[0]) & set(rows[1])
    assert len(set(rows[0]) | set(rows[1])) == 2 * 8 * len(both[0])
    assert len(both[0]) == len(both[1]) == len(both[0].draws) // 16
    for a, b in zip(both[0].batches, both[1].batches, strict=True):
        assert abs(np.median(both[0].layout.wanted[a]) - np.median(both[0].layout.wanted[b])) < 0.1 * CLIP


def test_no_example_comes_twice() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate(bucket(rng.integers(8000, 32000, 9000), 64, 2, rng))
    assert len(rows) == len(set(rows)) == 9000 // 128 * 128


def test_a_sound_has_margins_and_its_whole_length(material: Material) -> None:
    corpus, bank = material.corpus, as_bank(material.corpus, "cpu")
    draws = EpochDraws(material, LABELS, MIX, np.random.default_rng(0)).draw()
    n = len(draws)
    layout = lay_out(draws, np.full(n, 0.2), np.full(n, 0.3))
    single = np.flatnonzero((draws.word >= 0) & (layout.n_first < 0.6 * CLIP))[:8]
    for row in single:
        plan = make_plan(corpus, draws, layout, np.array([row]), np.zeros(1), None)
        waveform = render(plan, bank)[0][0].numpy()
        index, speed = draws.first.recording[row], draws.speed[row]
        sound = corpus[index][draws.first.start[row] : draws.first.end[row]] * draws.gain[row]
        expected = np.interp(np.arange(len(sound) / speed - 1) * speed, np.arange(len(sound)), sound)
        begin = round(0.2 * CLIP)
        heard = waveform[begin : begin + len(expected)]
        assert np.corrcoef(heard, expected)[0, 1] > 0.9  # it may begin a part of a sample later
        assert len(waveform) == pytest.approx(0.5 * CLIP + len(sound) / speed, abs=2 * FRAME)


def test_around_a_word_its_recording_goes_on(material: Material) -> None:
    corpus, bank = material.corpus, as_bank(material.corpus, "cpu")
    draws = EpochDraws(material, LABELS, MIX, np.random.default_rng(0)).draw()
    n, words = len(draws), corpus.select("training", "words")
    layout = lay_out(draws, np.full(n, 0.2), np.full(n, 0.3))
    inside = (draws.first.start > 2000) & np.isin(draws.first.recording, words) & (draws.word >= 0)
    rows = np.flatnonzero(inside)[:5]
    assert len(rows) == 5
    for row in rows:
        waveform = render(make_plan(corpus, draws, layout, np.array([row]), np.zeros(1), None), bank)[0][0].numpy()
        index, start = draws.first.recording[row], draws.first.start[row]
        before = waveform[round(0.2 * CLIP) - 1000 : round(0.2 * CLIP)] / draws.gain[row]
        hiss = corpus[index][start - 1000 : start]
        assert before.std() == pytest.approx(hiss.std(), rel=0.4)
        assert not waveform[: max(0, round(0.2 * CLIP) - round(start / draws.speed[row]) - FRAME)].any()


def test_margins_give_way_where_a_sound_is_long(material: Material) -> None:
    draws = epoch(material, mix=dataclasses.replace(MIX, repeats=4)).draws
    n = len(draws)
    layout = lay_out(draws, np.full(n, 0.5), np.full(n, 0.6))
    assert layout.wanted.max() <= LONGEST_S * CLIP
    assert layout.wanted.min() >= SHORTEST_S * CLIP
    assert ((layout.left > 0) | ~draws.sounding).all()


def test_a_pair_is_two_sounds_close_together(material: Material) -> None:
    corpus, bank = material.corpus, as_bank(material.corpus, "cpu")
    of = epoch(material)
    pairs = np.flatnonzero(of.draws.second.recording >= 0)
    assert len(pairs) == MIX.pair
    assert set(of.draws.label[pairs]) == {LABELS.index(UNKNOWN)}
    for row in pairs:
        plan = make_plan(corpus, of.draws, of.layout, np.array([row]), np.zeros(1), None)
        first, second = plan.elements.place.tolist()
        gap = second - (first + plan.elements.n_samples[0].item())
        margin = 0.02 * CLIP / of.draws.speed[row]  # of the first sound
        assert of.draws.gap[row] - margin - 3 <= gap <= 0.2 * CLIP
        waveform = render(plan, bank)[0][0]
        assert waveform[second + 800 : second + 3000].abs().max() > 0.001


def test_silence_comes_at_every_level(material: Material) -> None:
    none = dict.fromkeys(
        ("keyword", "word", "unknown_voices", "speech", "talk", "pair", "events", "procedural", "digital"), 0
    )
    of = epoch(material, mix=dataclasses.replace(MIX, noise=200, **none))
    bank = as_bank(material.corpus, "cpu")
    levels = torch.cat([render(batch.plan, bank)[0].square().mean(1).sqrt() for batch in batches(of)])
    assert (levels < 1e-3).sum() > 40
    assert (levels > 0.05).sum() > 30
    assert not any(batch.sounding.any() for batch in batches(of))


def test_digital_silence_is_nothing_at_all(material: Material) -> None:
    of = epoch(material)
    nothing = np.flatnonzero(of.draws.gain == 0)
    assert len(nothing) == MIX.digital
    plan = make_plan(material.corpus, of.draws, of.layout, nothing, np.zeros(len(nothing)), None)
    assert not render(plan, as_bank(material.corpus, "cpu"))[0].any()


def test_the_teachers_posteriors_come_with_single_words(material: Material) -> None:
    n = len(material.corpus)
    posteriors = np.zeros((n + 1, len(LABELS)), np.float32)
    posteriors[:-1, 3] = np.arange(n)
    teacher = Teacher(len(LABELS), posteriors, np.ones(n + 1, np.float32))
    of = UtteranceBatches(material, LABELS, MIX, NoiseMix(), teacher, 16, 1, 0)
    for rows, batch in zip(of.batches, batches(of), strict=True):
        wanted = np.where(of.draws.word[rows] >= 0, of.draws.first.recording[rows], 0)
        assert batch.teacher[:, 3].tolist() == wanted.tolist()


def test_without_other_material_words_remain(corpus: Corpus, tmp_path: Path) -> None:
    bare = Material(Corpus([r for r in corpus.recordings if r.source == "words"], tmp_path), "training", MIX, KEYWORDS)
    counts = Counter(LABELS[n] for n in epoch(bare).draws.label)
    assert counts == dict.fromkeys(KEYWORDS, 12) | {"bird": 6, UNKNOWN: 9, SILENCE: 3}


def test_validation_never_changes_and_keeps_to_its_part(rich: Corpus) -> None:
    first, second = (ValidationUtterances(rich, LABELS, "validation", 5, 16) for _ in range(2))
    bank = as_bank(rich, "cpu")
    for i in range(len(first)):
        assert torch.equal(render(first[i].plan, bank)[0], render(second[i].plan, bank)[0])
        assert torch.equal(first[i].label, second[i].label)
    assert {rich.recordings[i].part for i in first.draws.first.recording} == {"validation"}
    counts = Counter(GROUPS[n] for n in first.draws.group)
    n_noise = 5 * bool(len(rich.select("validation", "noise")))
    assert counts == {"official": 33, "home": 3, "speech": 5, "events": 5} | ({"noise": n_noise} if n_noise else {})
    home = first.draws.label[first.draws.group == 1]
    assert sorted(home) == sorted(LABELS.index(word) for word in ("on", "off", UNKNOWN))


@pytest.mark.parametrize(("field", "value"), [("speed", 0.7), ("voices", 2.0), ("speech_s", (1.0, 0.5))])
def test_a_bad_mix_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        MixConfig(**{field: value})  # type: ignore[arg-type]
