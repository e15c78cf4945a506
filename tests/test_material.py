from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ten import KEYWORDS

from recipes.data.clips import CLIP, FRAME
from recipes.data.corpus import SPOKEN, Corpus, Recording, index_procedural, speaker_of
from recipes.data.material import (
    Groups,
    Material,
    NoiseMix,
    Sounds,
    SourceMix,
    draw_noise,
)
from speech.errors import ConfigError


@pytest.fixture(scope="module")
def rich(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The tiny corpus with voices, speech with pauses, events and made sounds."""
    folder = tmp_path_factory.mktemp("rich")
    rng = np.random.default_rng(0)
    more = []
    for word, source in (("on", "voices"), ("ghost", "voices"), ("on", "synthetic"), ("robot", "synthetic")):
        for number in range(3):
            more.append((Recording(folder / f"{source}_{word}_{number}.wav", word, "training", source), 12000))
    for number in range(4):
        more.append((Recording(folder / f"{number}-1-1.wav", "", "training", "speech"), 8 * CLIP))
        more.append((Recording(folder / f"event{number}.wav", "", "training", "events"), 2 * CLIP))
    for recording, length in more:
        sound = 0.1 * rng.standard_normal(length)
        sound[:: 4 * FRAME] = 0
        if recording.source == "events":
            sound[4000:12000] *= 0.001
        if recording.source == "speech":
            sound *= np.repeat(rng.uniform(0.05, 1, length // FRAME), FRAME)
        soundfile.write(recording.path, sound, CLIP, subtype="PCM_16")
    return Corpus([*corpus.recordings, *(r for r, _ in more), *index_procedural(5)], folder / "cache")


@pytest.fixture(scope="module")
def material(rich: Corpus) -> Material:
    return Material(rich, "training", SourceMix(rare=5), KEYWORDS)


def test_groups_hold_each_item_under_its_key() -> None:
    groups = Groups(np.array([2, 0, 2, 2]), np.array([10, 11, 12, 13]), 4)
    assert sorted(groups.of(2)) == [10, 12, 13]
    assert len(groups.of(1)) == 0
    drawn = groups.draw(np.full(300, 2), np.random.default_rng(0))
    assert min(Counter(drawn.tolist())[i] for i in (10, 12, 13)) > 70


def test_each_source_gets_its_share_of_a_word(rich: Corpus) -> None:
    mix = SourceMix(voices=0.3, synthetic=0.2, rare=5)
    material = Material(rich, "training", mix, KEYWORDS)
    on = material.number("on")
    drawn = material.draw_words(np.full(4000, on), np.random.default_rng(0))
    assert {rich.recordings[i].word for i in drawn} == {"on"}
    share = Counter(rich.recordings[i].source for i in drawn)
    assert [share[s] / 4000 for s in SPOKEN] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_a_word_of_one_source_comes_from_there(material: Material) -> None:
    ghost, robot = material.number("ghost"), material.number("robot")
    drawn = material.draw_words(np.array([ghost, robot] * 20), np.random.default_rng(0))
    assert {material.corpus.recordings[i].word for i in drawn[::2]} == {"ghost"}
    assert {material.corpus.recordings[i].source for i in drawn[1::2]} == {"synthetic"}


def test_rare_words_get_more_voices(rich: Corpus) -> None:
    often, rare = (
        Material(rich, "training", SourceMix(rare=5), KEYWORDS),
        Material(rich, "training", SourceMix(rare=50), KEYWORDS),
    )
    on = often.number("on")
    assert not often.is_rare("on")
    assert rare.is_rare("on")
    assert often.shares[on] == pytest.approx([0.87, 0.08, 0.05], abs=1e-6)
    assert rare.shares[on] == pytest.approx([0.65, 0.25, 0.10], abs=1e-6)


def test_recordings_are_drawn_evenly(material: Material) -> None:
    drawn = material.draw_evenly(material.number("yes"), 0, 30, np.random.default_rng(0))
    counts = Counter(drawn.tolist())
    assert len(counts) == 12
    assert set(counts.values()) == {2, 3}
    assert len(material.draw_evenly(material.number("yes"), 1, 0, np.random.default_rng(0))) == 0


def test_only_one_part_is_drawn_from(rich: Corpus) -> None:
    for part in ("training", "validation"):
        material = Material(rich, part, SourceMix(rare=5), KEYWORDS)
        drawn = material.draw_words(np.repeat([material.number("on"), material.number("yes")], 50), generator())
        assert {rich.recordings[i].part for i in drawn} == {part}


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_same_speaker_says_another_word(material: Material) -> None:
    corpus = material.corpus
    like = np.repeat(material.draw_evenly(material.number("yes"), 0, 3, generator()), 20)
    other = material.draw_same_speaker(like, generator())
    speakers = [[speaker_of(corpus.recordings[i].path) for i in some] for some in (like, other)]
    assert speakers[0] == speakers[1]
    assert len({corpus.recordings[i].word for i in other}) > 5
    voice = corpus.select("training", "voices")[:1]
    assert material.draw_same_speaker(voice, generator()).tolist() == voice.tolist()


def test_speech_is_cut_where_it_is_weak(material: Material) -> None:
    corpus = material.corpus
    sounds = material.cut_speech("speech", 300, 0.25, 1.4, generator())
    length_s = (sounds.end - sounds.start) / CLIP
    assert 0.15 < length_s.min() < 0.4
    assert 1.2 < length_s.max() < 1.6
    assert {corpus.recordings[i].source for i in sounds.recording} == {"speech"}
    for edge in (sounds.start, sounds.end):
        frame = corpus.first_frame[sounds.recording] + edge // FRAME
        weak = np.median(corpus.power[frame])
        assert weak < 0.3 * np.median(corpus.power[corpus.first_frame[sounds.recording] + 100])


def test_pieces_are_what_the_endpointer_cuts(material: Material) -> None:
    pieces = material.draw_pieces("events", 200, generator())
    assert ((pieces.end <= 4400) | (pieces.start >= 11600)).all(), "cut at the pause"
    short = material.crop_pieces(pieces, 0.2, 1.4, generator())
    assert ((short.end - short.start) <= 1.4 * CLIP).all()
    assert ((short.start >= pieces.start) & (short.end <= pieces.end)).all()
    assert (short.end - short.start).min() < 0.6 * CLIP


def test_a_gain_brings_a_sound_to_its_level(material: Material) -> None:
    corpus = material.corpus
    sounds = material.whole(material.draw_evenly(material.number("up"), 0, 5, generator()))
    gain = material.gain(sounds, np.full(5, -26.0))
    for index, start, end, factor in zip(sounds.recording, sounds.start, sounds.end, gain, strict=True):
        rms = np.sqrt(np.square(factor * corpus[index][start:end]).mean())
        assert rms == pytest.approx(10 ** (-26 / 20), rel=0.01)


def test_noise_is_made_of_what_the_mix_says(material: Material) -> None:
    noise = draw_noise(material, NoiseMix(babble=0.3, events=0.2, procedural=0.1), 3000, generator())
    recordings = material.corpus.recordings
    first = Counter(recordings[i].source for i in noise.recording[:, 0])
    shares = [first[s] / 3000 for s in ("speech", "events", "procedural", "noise")]
    assert shares == pytest.approx([0.3, 0.2, 0.1, 0.4], abs=0.03)
    voices = (noise.recording >= 0).sum(1)
    babble = np.array([recordings[i].source == "speech" for i in noise.recording[:, 0]])
    assert set(voices[babble]) == {2, 3, 4}
    assert set(voices[~babble]) == {1}
    assert (noise.offset < material.corpus.length[noise.recording])[noise.recording >= 0].all()


def test_without_material_there_is_no_noise(tmp_path: Path, corpus: Corpus) -> None:
    bare = Corpus([r for r in corpus.recordings if r.source == "words"], tmp_path)
    noise = draw_noise(Material(bare, "training", SourceMix(), KEYWORDS), NoiseMix(), 5, generator())
    assert (noise.recording == -1).all()


@pytest.mark.parametrize("field", ["voices", "synthetic_rare"])
def test_a_bad_share_is_named(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}=1.5"):
        SourceMix(**{field: 1.5})
    with pytest.raises(ConfigError, match="must not exceed 1"):
        NoiseMix(babble=0.9, events=0.2)
    with pytest.raises(ConfigError, match="must not exceed 1"):
        SourceMix(voices=0.6, synthetic=0.6)


def test_sounds_are_chosen_by_row() -> None:
    sounds = Sounds(np.array([1, 2]), np.array([3, 4]), np.array([5, 6]))
    assert len(sounds.at(np.array([1]))) == 1
    assert sounds.at(np.array([True, False])).end.tolist() == [5]
