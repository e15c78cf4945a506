"""Own words: the store on disk, learning from recordings, and the posterior beside a bundle's."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tunes import embed, make_space, random_pitches, tune

from speech.errors import BundleError, ConfigError
from speech.own import words as own_words
from speech.own.matching import KNOWN_WEIGHT, WordModel, odds_of, with_own_words
from speech.own.similarity import METADATA, N_NEAREST, Similarity, make_similarity
from speech.own.words import MOST_RECORDINGS, OwnWords, check_name

LAMP, SOFA = (500.0, 2500.0, 900.0), (3000.0, 700.0, 1800.0)


@pytest.fixture(scope="module")
def space() -> Similarity:
    return make_space(np.random.default_rng(0))


@pytest.fixture
def lamps() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [tune(LAMP, rng) for _ in range(5)]


@pytest.fixture
def own(tmp_path: Path, space: Similarity, lamps: list[np.ndarray]) -> OwnWords:
    words = OwnWords.load(tmp_path / "own")
    words.add("lamp", lamps, space, embed)
    return words


def posterior(own: OwnWords, space: Similarity, waveform: np.ndarray) -> dict[str, float]:
    models = {word.name: word.model for word in own if word.model}
    return with_own_words({"yes": 0.2, "_unknown_": 0.8}, models, space, space.project(embed(waveform)[None])[0])


def test_a_taught_word_is_distinguished_from_everything_else(own: OwnWords, space: Similarity) -> None:
    rng = np.random.default_rng(2)
    said = [posterior(own, space, tune(LAMP, rng))["lamp"] for _ in range(40)]
    others = [posterior(own, space, tune(random_pitches(rng), rng))["lamp"] for _ in range(200)]
    assert np.mean(np.array(said) > 0.7) >= 0.9
    assert np.mean(np.array(others) > 0.7) <= 0.01


def test_posteriors_sum_to_one_and_keep_the_bundles_proportions(own: OwnWords, space: Similarity) -> None:
    own.add("sofa", [tune(SOFA, np.random.default_rng(3)) for _ in range(3)], space, embed)
    for seed, pitches in enumerate((LAMP, SOFA, (400.0, 400.0, 400.0))):
        found = posterior(own, space, tune(pitches, np.random.default_rng(seed)))
        assert set(found) == {"yes", "_unknown_", "lamp", "sofa"}
        assert sum(found.values()) == pytest.approx(1)
        assert found["_unknown_"] == pytest.approx(4 * found["yes"])


def test_two_own_words_share_the_odds_of_both(space: Similarity) -> None:
    vector = space.project(embed(tune(LAMP, np.random.default_rng(0)))[None])
    word = WordModel(vector[0])
    odds = float(np.exp(word.log_odds(space, vector)[0]))
    alone = with_own_words({"yes": 0.3, "_unknown_": 0.7}, {"a": word}, space, vector[0])
    twins = with_own_words({"yes": 0.3, "_unknown_": 0.7}, {"a": word, "b": word}, space, vector[0])
    assert alone["a"] / (1 - alone["a"]) == pytest.approx(odds, rel=1e-3)
    assert twins["a"] == pytest.approx(twins["b"])
    assert twins["a"] / (1 - twins["a"] - twins["b"]) == pytest.approx(odds, rel=1e-3)
    known = with_own_words({"a": 0.2, "_unknown_": 0.8}, {"a": word}, space, vector[0])
    assert known["a"] == pytest.approx((0.2 + odds) / (1 + odds), rel=1e-3), "a word that a later bundle knows too"


def test_a_bundle_that_is_sure_of_a_word_counts_against_own_words(space: Similarity) -> None:
    vector = space.project(embed(tune(LAMP, np.random.default_rng(0)))[None])
    word, odds = WordModel(vector[0]), []
    for sure in (0.1, 0.5, 0.9, 0.99):
        found = with_own_words({"yes": sure, "_silence_": 1 - sure}, {"a": word}, space, vector[0])
        odds.append(np.log(found["a"] / (1 - found["a"])))
    plain = word.log_odds(space, vector)[0]
    np.testing.assert_allclose(plain - odds, KNOWN_WEIGHT * np.log([1, 1, 9, 99]), atol=0.02)


def test_scores_are_deviations_from_the_nearest_background(space: Similarity) -> None:
    rng = np.random.default_rng(4)
    vectors = space.project(np.stack([embed(tune(random_pitches(rng), rng)) for _ in range(5)]))
    place = vectors[0]
    for vector, score in zip(vectors, space.scores(place, vectors), strict=True):
        cosines = sorted((float(vector @ other) for other in space.background), reverse=True)[:N_NEAREST]
        assert score == pytest.approx((vector @ place - np.mean(cosines)) / np.std(cosines), rel=1e-3)


def test_the_background_is_scored_without_itself(space: Similarity) -> None:
    place = space.background[7]
    found = space.background_scores(place)
    assert found[7] == found.max()
    without = replace(space, background=np.delete(space.background, 3, axis=0))
    assert found[3] == pytest.approx(without.scores(place, space.background[3:4])[0], rel=1e-3)


def test_the_projection_evens_out_the_scatter_of_recordings() -> None:
    rng = np.random.default_rng(5)
    words = [f"word {n}" for n in range(30) for _ in range(40)]
    places = {word: 3 * rng.standard_normal(6) for word in words}
    scales = np.array([0.1, 0.3, 1, 1, 3, 5])
    vectors = np.stack([places[word] + scales * rng.standard_normal(6) for word in words]).astype(np.float32)
    made = make_similarity(vectors, words, 3 * rng.standard_normal((200, 6)).astype(np.float32), 1.0)
    inside = (vectors - np.stack([places[word] for word in words])) @ made.projection
    np.testing.assert_allclose(np.sort(inside.std(0)), np.sort(made.spread), rtol=0.1)
    assert made.spread.max() / made.spread.min() < 0.5 * scales.max() / scales.min()
    np.testing.assert_allclose(np.linalg.norm(made.project(vectors), axis=1), 1, rtol=1e-4)


def test_words_outlast_the_program(own: OwnWords, space: Similarity, lamps: list[np.ndarray]) -> None:
    again = OwnWords.load(own.folder)
    assert again.names == ("lamp",)
    assert again.notices == []
    again.learn(space, embed)
    assert again.notices == [], "the model kept is that of this bundle"
    assert again["lamp"].model
    assert own["lamp"].model
    np.testing.assert_allclose(again["lamp"].model.place, own["lamp"].model.place, atol=1e-3)
    for kept, waveform in zip(again["lamp"].utterances(), lamps, strict=True):
        np.testing.assert_allclose(kept, waveform, atol=1 / 32768)


def test_a_word_of_another_bundle_is_learnt_again_from_its_recordings(own: OwnWords) -> None:
    other = make_space(np.random.default_rng(9))
    again = OwnWords.load(own.folder)
    again.learn(other, embed)
    assert again.notices == ["the model has changed; learnt again from their recordings: lamp"]
    assert again["lamp"].key == other.key
    assert posterior(again, other, tune(LAMP, np.random.default_rng(3)))["lamp"] > 0.7
    third = OwnWords.load(own.folder)
    third.learn(other, embed)
    assert third.notices == [], "it was kept"


def test_teaching_again_replaces_and_forgetting_removes(own: OwnWords, space: Similarity) -> None:
    folder = own.folder_of("lamp")
    first = {path.name for path in folder.glob("*.wav")}
    own.add("lamp", [tune(LAMP, np.random.default_rng(6))], space, embed)
    kept = OwnWords.load(own.folder)["lamp"].recordings
    assert len(kept) == 1
    assert {path.name for path in folder.glob("*.wav")} == {kept[0].name} - first
    own.forget("lamp")
    assert not folder.exists()
    assert len(OwnWords.load(own.folder)) == 0
    with pytest.raises(ConfigError, match="no own word 'lamp'; there are none"):
        own.forget("lamp")


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", "a\\b", "lamp\n", "🎉", "lamp🎉", "a,b", "_unknown_", "x" * 41])
def test_names_that_can_not_be_one(name: str) -> None:
    if name == "lamp\n":
        assert check_name(name) == "lamp"
        return
    with pytest.raises(ConfigError, match="can't be the name of a word"):
        check_name(name)


def test_names_are_kept_in_one_form() -> None:
    assert check_name("  Turn   ON ") == "turn on"
    assert check_name("Lämpchen") == check_name("La\u0308mpchen") == "lämpchen"
    assert check_name("o'clock") == "o'clock"
    assert check_name("x" * 40) == "x" * 40


@pytest.mark.parametrize("n", [0, MOST_RECORDINGS + 1])
def test_a_word_takes_one_to_a_hundred_recordings(own: OwnWords, space: Similarity, n: int) -> None:
    with pytest.raises(ConfigError, match=f"{n} recordings of 'sofa'; it takes 1 to 100"):
        own.add("sofa", [tune(SOFA, np.random.default_rng(0))] * n, space, embed)
    assert own.names == ("lamp",)


def test_a_standard_deviation_of_the_score_is_a_factor_of_e_in_the_odds() -> None:
    np.testing.assert_allclose(odds_of(np.array([2.5, 3.5], np.float32)), [0, 1])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "name": "x", "recordings": ["../../etc/passwd"]}',
             '{"format": 1, "name": "x", "recordings": []}', '{"format": 1, "name": "a/b", "recordings": ["1.wav"]}',
             '{"format": 1, "name": "x", "recordings": ["1.wav"], "model": {"place": [2]}}'],
)  # fmt: skip
def test_a_damaged_word_is_left_out_with_a_notice(own: OwnWords, text: str) -> None:
    folder = own.folder / "word-x"
    folder.mkdir()
    (folder / "word.json").write_text(text)
    again = OwnWords.load(own.folder)
    assert again.names == ("lamp",)
    assert len(again.notices) == 1
    assert str(folder) in again.notices[0]
    assert "\n" not in again.notices[0]


def test_a_word_without_its_recordings_works_until_the_bundle_changes(own: OwnWords, space: Similarity) -> None:
    for path in own["lamp"].recordings:
        path.unlink()
    again = OwnWords.load(own.folder)
    again.learn(space, embed)
    assert again.names == ("lamp",)
    again.learn(make_space(np.random.default_rng(9)), embed)
    assert again.names == ()
    assert again.notices[0].startswith("own word 'lamp' is left out: no such file")


@pytest.mark.parametrize("when", ["first recording", "last recording", "settings"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_the_word_as_it_was(
    own: OwnWords, space: Similarity, monkeypatch: pytest.MonkeyPatch, when: str, error: BaseException
) -> None:
    before = {path: path.read_bytes() for path in sorted(own.folder.rglob("*.*"))}
    written: list[Path] = []
    real = soundfile.write

    def write(path: Path, *rest: object, **named: object) -> None:
        if len(written) == {"first recording": 0, "last recording": 1}.get(when, 99):
            path.write_bytes(b"RIFF half")
            raise error
        written.append(path)
        real(path, *rest, **named)

    def fail(self: Path, target: Path) -> None:
        raise error

    monkeypatch.setattr(own_words.soundfile, "write", write)
    if when == "settings":
        monkeypatch.setattr(Path, "replace", fail)
    rng = np.random.default_rng(7)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ConfigError
    for name in ("lamp", "sofa"):
        written.clear()
        with pytest.raises(expected) as raised:
            own.add(name, [tune(SOFA, rng), tune(SOFA, rng)], space, embed)
        if expected is ConfigError:
            assert str(raised.value).startswith(f"can't save '{name}' to ")
            assert str(raised.value).endswith("No space left on device")
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in sorted(own.folder.rglob("*.*"))} == before
    assert OwnWords.load(own.folder).names == ("lamp",)


def test_the_space_survives_the_metadata_and_tells_when_it_is_damaged(space: Similarity) -> None:
    text = space.as_text()
    again = Similarity.from_metadata({METADATA: text})
    assert again and again.words == space.words and again.hours == space.hours  # noqa: PT018
    assert again.key == Similarity.from_text(again.as_text()).key
    vectors = np.random.default_rng(0).standard_normal((3, len(space.mean))).astype(np.float32)
    np.testing.assert_allclose(again.project(vectors), space.project(vectors), rtol=0.02, atol=0.05)
    assert Similarity.from_metadata({}) is None
    for damaged in ("?", text[: len(text) // 2], "AAAA", ""):
        with pytest.raises(BundleError, match="damaged bundle"):
            Similarity.from_text(damaged)
    with pytest.raises(BundleError, match="does not fit together"):
        replace(space, mean=space.mean[:-1])
    moved = replace(space, background=space.background + 1)
    assert moved.key != space.key


def test_listening_loads_no_training_stack() -> None:
    heavy = ("torch", "scipy", "onnx", "recipes")
    script = f"import sys; import speech.teach; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stderr


def test_what_is_kept_holds_nothing_that_runs_code(own: OwnWords) -> None:
    kept = sorted(path.suffix for path in own.folder.rglob("*") if path.is_file())
    assert kept == [".json"] + 5 * [".wav"]
    assert json.loads((own.folder_of("lamp") / "word.json").read_text())["name"] == "lamp"
