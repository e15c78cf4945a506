"""Own words: the store on disk, learning from recordings, and the posterior beside a bundle's."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tunes import embed, make_space, random_pitches, tune

from recipes.protocols.own import Heard, Row, Said, Trials
from speech.errors import BundleError, ConfigError
from speech.own import words as own_words
from speech.own.forecast import expected_misses, forecast
from speech.own.matching import KNOWN_WEIGHT, fit, learn, log_odds, with_own_words
from speech.own.similarity import METADATA, N_NEAREST, Similarity, left_out, make_similarity
from speech.own.words import MOST_RECORDINGS, OwnWords, check_name

LAMP, SOFA = (500.0, 2500.0, 900.0), (3000.0, 700.0, 1800.0)


@pytest.fixture(scope="module")
def space() -> Similarity:
    return make_space(np.random.default_rng(0))


def said(pitches: tuple[float, ...], seed: int, n: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [tune(pitches, rng) for _ in range(n)]


def vectors(space: Similarity, waveforms: list[np.ndarray]) -> np.ndarray:
    return space.project(np.stack([embed(waveform) for waveform in waveforms]))


@pytest.fixture
def own(tmp_path: Path) -> OwnWords:
    words = OwnWords.load(tmp_path / "own")
    words.add("lamp", said(LAMP, 1))
    return words


def posterior(own: OwnWords, space: Similarity, waveform: np.ndarray) -> dict[str, float]:
    vector = vectors(space, [waveform])
    margins = {w.name: float(m.margins(space, vector)[0]) for w, m in learn(own, space, embed, {}).items()}
    return with_own_words({"yes": 0.2, "_unknown_": 0.8}, margins, dict.fromkeys(margins, 0.6))


def test_a_taught_word_is_distinguished_from_everything_else(space: Similarity) -> None:
    rng, model = np.random.default_rng(2), fit(space, vectors(space, said(LAMP, 1)))
    others = vectors(space, [tune(random_pitches(rng), rng) for _ in range(200)])
    assert np.mean(model.margins(space, vectors(space, said(LAMP, 2, 40))) >= 0) >= 0.9
    assert np.mean(model.margins(space, others) >= 0) <= 0.02


def test_posteriors_sum_to_one_and_keep_the_bundles_proportions(own: OwnWords, space: Similarity) -> None:
    own.add("sofa", said(SOFA, 3, 3))
    for seed, pitches in enumerate((LAMP, SOFA, (400.0, 400.0, 400.0))):
        found = posterior(own, space, said(pitches, seed, 1)[0])
        assert set(found) == {"yes", "_unknown_", "lamp", "sofa"}
        assert sum(found.values()) == pytest.approx(1)
        assert found["_unknown_"] == pytest.approx(4 * found["yes"])


def test_two_own_words_share_the_odds_of_both() -> None:
    heard = {"yes": 0.3, "_unknown_": 0.7}
    odds = float(np.exp(1.2 + log_odds(0.6)))
    alone = with_own_words(heard, {"a": 1.2}, {"a": 0.6})
    twins = with_own_words(heard, {"a": 1.2, "b": 1.2}, {"a": 0.6, "b": 0.6})
    assert alone["a"] / (1 - alone["a"]) == pytest.approx(odds, rel=1e-3)
    assert twins["a"] == pytest.approx(twins["b"])
    assert twins["a"] / (1 - twins["a"] - twins["b"]) == pytest.approx(odds, rel=1e-3)


@pytest.mark.parametrize("margin", [-4.0, 0.0, 3.0])
@pytest.mark.parametrize("heard", [0.0, 0.2, 0.9])
def test_recordings_of_a_word_of_the_bundle_only_raise_it(margin: float, heard: float) -> None:
    posteriors = {"off": heard, "on": 0.05, "_unknown_": 0.95 - heard}
    found = with_own_words(posteriors, {"off": margin}, {"off": 0.6})
    assert found["off"] > heard
    assert sum(found.values()) == pytest.approx(1)
    if margin >= 0:
        assert found["off"] >= 0.5999, "at its threshold it is accepted, whatever the bundle thinks"


def test_a_bundle_that_is_sure_of_a_word_counts_against_own_words() -> None:
    odds = [
        log_odds(with_own_words({"yes": sure, "_silence_": 1 - sure}, {"a": 1.0}, {"a": 0.6})["a"])
        for sure in (0.1, 0.5, 0.9, 0.99)
    ]
    np.testing.assert_allclose(1 + log_odds(0.6) - np.array(odds), KNOWN_WEIGHT * np.log([1, 1, 9, 99]), atol=0.02)


def test_what_is_like_a_counterexample_is_not_taken_for_the_word(space: Similarity) -> None:
    near = (500.0, 2500.0, 1000.0)
    lamps, refused = vectors(space, said(LAMP, 1)), vectors(space, said(near, 2, 2))
    plain, warned = fit(space, lamps), fit(space, lamps, refused)
    again, lamp = vectors(space, said(near, 3, 20)), vectors(space, said(LAMP, 4, 20))
    taken = [float(np.mean(model.margins(space, again) >= 0)) for model in (plain, warned)]
    assert taken[1] < taken[0] - 0.3
    assert np.mean(warned.margins(space, lamp) >= 0) >= 0.8


def test_the_threshold_of_a_word_keeps_to_the_budget_of_false_alarms(space: Similarity) -> None:
    model = fit(space, vectors(space, said(LAMP, 1, 1)))
    n_alarms = int((space.background_scores(model.place) >= model.least).sum())
    assert (n_alarms - 1) * space.expected.alone / space.hours <= 0.5 < (n_alarms + 1) * space.expected.alone
    rare = replace(space, expected=replace(space.expected, alone=0.01))
    one, alike = fit(rare, model.place[None]), fit(rare, np.repeat(model.place[None], 5, 0))
    assert alike.least > one.least, "recordings that are alike ask for more than the budget"


def test_scores_are_deviations_from_the_nearest_background(space: Similarity) -> None:
    rng = np.random.default_rng(4)
    heard = vectors(space, [tune(random_pitches(rng), rng) for _ in range(5)])
    for vector, scores in zip(heard, space.scores(heard[:2], heard), strict=True):
        cosines = sorted((float(vector @ other) for other in space.background), reverse=True)[:N_NEAREST]
        np.testing.assert_allclose(scores, (heard[:2] @ vector - np.mean(cosines)) / np.std(cosines), rtol=1e-3)


def test_the_background_is_scored_without_itself(space: Similarity) -> None:
    place = space.background[7]
    found = space.background_scores(place)
    assert found[7] == found.max()
    without = replace(space, background=np.delete(space.background, 3, axis=0))
    assert found[3] == pytest.approx(without.scores(place[None], space.background[3:4])[0, 0], rel=1e-3)


def test_each_recording_is_compared_with_the_mean_of_the_others(space: Similarity) -> None:
    lamps = vectors(space, said(LAMP, 1))
    for n, score in enumerate(left_out(space, lamps)):
        mean = np.delete(lamps, n, axis=0).mean(0)
        place = mean / np.linalg.norm(mean)
        assert score == pytest.approx(space.scores(place[None], lamps[n : n + 1])[0, 0], rel=1e-3)


def test_the_projection_evens_out_the_scatter_of_recordings() -> None:
    rng = np.random.default_rng(5)
    words = [f"word {n}" for n in range(30) for _ in range(40)]
    places = {word: 3 * rng.standard_normal(6) for word in words}
    scales = np.array([0.1, 0.3, 1, 1, 3, 5])
    made_of = np.stack([places[word] + scales * rng.standard_normal(6) for word in words]).astype(np.float32)
    background = 3 * rng.standard_normal((200, 6)).astype(np.float32)
    made = make_similarity(made_of, words, [str(n) for n in range(len(words))], background, 1.0, 0.2)
    inside = (made_of - np.stack([places[word] for word in words])) @ made.projection
    assert inside.std(0).max() / inside.std(0).min() < 0.5 * scales.max() / scales.min()
    np.testing.assert_allclose(np.linalg.norm(made.project(made_of), axis=1), 1, rtol=1e-4)


def test_the_forecast_holds_for_recordings_as_different_as_was_observed(space: Similarity) -> None:
    rng, inside, widths, n_words = np.random.default_rng(6), 0, [], 20
    for _ in range(n_words):
        pitches = random_pitches(rng)
        heard = vectors(space, [tune(pitches, rng) for _ in range(25)])
        model = fit(space, heard[:5])
        missed, bounds = float(np.mean(model.margins(space, heard[5:]) < 0)), expected_misses(space, model)
        assert bounds
        inside += bounds[0] - 0.01 <= missed <= bounds[1] + 0.01
        widths.append(bounds[1] - bounds[0])
    assert inside >= 0.8 * n_words
    assert np.mean(widths) < 0.1
    assert expected_misses(space, fit(space, heard[:1])) is None
    lower = expected_misses(space, model, -2.0)
    assert lower and lower[0] > bounds[0] and lower[1] > bounds[1]  # noqa: PT018 - others are missed more often


def test_a_forecast_names_the_words_that_sound_alike(own: OwnWords, space: Similarity) -> None:
    own.add("lamb", said((500.0, 2500.0, 905.0), 5))
    own.add("sofa", said(SOFA, 3))
    knows = SimpleNamespace(similarity=space, models=learn(own, space, embed, {}))
    found = forecast(own["lamp"], own, knows)  # type: ignore[arg-type]
    assert found.confusions[0].word == "lamb"
    assert "sofa" not in [confusion.word for confusion in found.confusions]
    assert "avoid saying 'lamb'" in str(found)
    assert found.n_recordings == 5
    assert found.missed
    assert f"missed:       {found.missed[0] * 100:.0f} to " in str(found) or found.missed[0] * 100 % 1 > 0.4


def test_words_outlast_the_program(own: OwnWords) -> None:
    again = OwnWords.load(own.folder)
    assert list(again) == ["lamp"]
    assert again.notices == []
    assert again["lamp"] == own["lamp"]
    for kept, waveform in zip(again["lamp"].utterances(), said(LAMP, 1), strict=True):
        np.testing.assert_allclose(kept, waveform, atol=1 / 32768)
    kinds = sorted(path.suffix for path in own.folder.rglob("*") if path.is_file())
    assert kinds == [".json"] + 5 * [".wav"], "recordings only: nothing goes stale with another model or runs code"


def test_only_what_changed_is_learnt_again(own: OwnWords, space: Similarity) -> None:
    own.add("sofa", said(SOFA, 3))
    first = learn(own, space, embed, {})
    own.add("sofa", said(SOFA, 4))
    second = learn(OwnWords.load(own.folder), space, embed, first)
    assert second[own["lamp"]] is first[own["lamp"]]
    assert {word.name for word in second} == {"lamp", "sofa"}
    assert second[own["sofa"]] not in first.values()


def test_a_program_that_runs_sees_what_is_taught_and_forgotten(own: OwnWords) -> None:
    seen = OwnWords.load(own.folder)
    assert not seen.has_changed
    for change in (lambda: own.add("sofa", said(SOFA, 3)), lambda: own.add("lamp", said(LAMP, 4)),
                   lambda: own.forget("lamp")):  # fmt: skip
        change()
        assert seen.has_changed
        seen = OwnWords.load(own.folder)
        assert not seen.has_changed


def test_clients_that_teach_at_once_lose_no_word(tmp_path: Path) -> None:
    names, begin = [f"word {n}" for n in range(6)], threading.Barrier(6)

    def teach(name: str) -> None:
        own = OwnWords.load(tmp_path)
        begin.wait()
        own.add(name, said(LAMP, 1, 2))
        own.add("the same", said(SOFA, 1, 2))

    threads = [threading.Thread(target=teach, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = OwnWords.load(tmp_path)
    assert set(found) == {*names, "the same"}
    assert all(len(word.utterances()) == 2 for word in found.values())
    assert found.notices == []


def test_teaching_again_replaces_and_forgetting_removes(own: OwnWords) -> None:
    folder = own.folder_of("lamp")
    first = {path.name for path in folder.glob("*.wav")}
    own.add("lamp", said(LAMP, 6, 1), said(SOFA, 6, 2))
    kept = OwnWords.load(own.folder)["lamp"]
    assert (len(kept.recordings), len(kept.refused)) == (1, 2)
    assert len(kept.counterexamples()) == 2
    assert {path.name for path in folder.glob("*.wav")} == {p.name for p in (*kept.recordings, *kept.refused)} - first
    own.forget("lamp")
    assert not folder.exists()
    assert not OwnWords.load(own.folder)
    with pytest.raises(ConfigError, match="no own word 'lamp'; there are none"):
        own.forget("lamp")


@pytest.mark.parametrize(
    "name",
    ["", " ", "a/b", "..", "a\\b", "🎉", "lamp🎉", "a,b", "_unknown_", "x" * 41, "'", "a--b", "\u0301a", "\u200d"],
)
def test_names_that_can_not_be_one(name: str) -> None:
    with pytest.raises(ConfigError, match="can't be the name of a word"):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("  Turn   ON ", "turn on"), ("lamp\n", "lamp"), ("La\u0308mpchen", "lämpchen"), ("o’clock", "o'clock"),
     ("x" * 40, "x" * 40), ("हिन्दी", "हिन्दी"), ("ไฟฟ้า", "ไฟฟ้า"), ("விளக்கு", "விளக்கு"), ("אוֹר", "אוֹר"),
     ("می‌خواهم", "می‌خواهم"), ("İstanbul", "i̇stanbul"), ("e-mail 2", "e-mail 2")],
)  # fmt: skip
def test_names_are_kept_in_one_form(name: str, kept: str, own: OwnWords) -> None:
    assert check_name(name) == check_name(kept)
    own.add(name, said(LAMP, 1, 1))
    assert check_name(kept) in OwnWords.load(own.folder)


@pytest.mark.parametrize("n", [0, MOST_RECORDINGS + 1])
def test_a_word_takes_one_to_a_hundred_recordings(own: OwnWords, n: int) -> None:
    with pytest.raises(ConfigError, match=f"{n} recordings of 'sofa'; it takes 1 to 100"):
        own.add("sofa", said(SOFA, 0, 1) * n)
    assert list(own) == ["lamp"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "name": "x", "recordings": ["../../etc/passwd"]}',
             '{"format": 1, "name": "x", "recordings": []}', '{"format": 1, "name": "a/b", "recordings": ["1.wav"]}',
             '{"format": 1, "name": "x", "recordings": ["1.wav"], "refused": [2]}', "[" * 100_000, None],
)  # fmt: skip
def test_a_damaged_word_is_left_out_with_a_notice(own: OwnWords, text: str | None) -> None:
    folder = own.folder / "word-x"
    folder.mkdir()
    if text is not None:
        (folder / "word.json").write_text(text)
    again = OwnWords.load(own.folder)
    assert list(again) == ["lamp"]
    assert len(again.notices) == 1
    assert str(folder) in again.notices[0]
    assert "\n" not in again.notices[0]


def test_a_copy_of_a_word_is_left_out_with_a_notice(own: OwnWords) -> None:
    copy = own.folder / "word-lamp (copy)"
    shutil.copytree(own.folder_of("lamp"), copy)
    again = OwnWords.load(own.folder)
    assert again["lamp"].recordings[0].parent == own.folder_of("lamp")
    assert [n.startswith(f"{copy} is a copy of the word 'lamp'; it is left out") for n in again.notices] == [True]
    own.forget("lamp")
    assert not OwnWords.load(own.folder)


def test_a_word_without_its_recordings_is_left_out_with_a_notice(own: OwnWords, space: Similarity) -> None:
    own["lamp"].recordings[2].unlink()
    assert learn(own, space, embed, {}) == {}
    assert not own
    assert own.notices[0].startswith("own word 'lamp' is left out: no such file")


def test_a_user_without_a_home_has_no_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: Path("~"))
    with pytest.raises(ConfigError, match="there is no home folder"):
        OwnWords.load()


@pytest.mark.parametrize("when", ["first recording", "last recording", "settings"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_the_word_as_it_was(
    own: OwnWords, monkeypatch: pytest.MonkeyPatch, when: str, error: BaseException
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
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ConfigError
    for name in ("lamp", "sofa"):
        written.clear()
        with pytest.raises(expected) as raised:
            own.add(name, said(SOFA, 7, 2))
        if expected is ConfigError:
            assert str(raised.value).startswith(f"can't save '{name}' to ")
            assert str(raised.value).endswith("No space left on device")
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in sorted(own.folder.rglob("*.*"))} == before
    assert list(OwnWords.load(own.folder)) == ["lamp"]


def test_the_space_survives_the_metadata_and_tells_when_it_is_damaged(space: Similarity) -> None:
    text = space.as_text()
    again = Similarity.from_metadata({METADATA: text})
    assert again and again.words == space.words and again.hours == space.hours  # noqa: PT018
    assert again.expected == space.expected
    heard = np.random.default_rng(0).standard_normal((3, len(space.mean))).astype(np.float32)
    np.testing.assert_allclose(again.project(heard), space.project(heard), rtol=0.02, atol=0.05)
    assert Similarity.from_metadata({}) is None
    for damaged in ("?", text[: len(text) // 2], "AAAA", ""):
        with pytest.raises(BundleError, match="damaged bundle"):
            Similarity.from_text(damaged)
    with pytest.raises(BundleError, match="does not fit together"):
        replace(space, mean=space.mean[:-1])


def test_the_protocol_counts_what_a_listener_would_report(space: Similarity) -> None:
    def heard(pitches: tuple[float, ...], seed: int, n: int) -> list[Heard]:
        return [Heard(v, {"yes": 0.05, "_unknown_": 0.95}) for v in vectors(space, said(pitches, seed, n))]

    trials, row = object.__new__(Trials), Row("a tune", 5)
    trials.similarity, trials.rng = space, np.random.default_rng(0)
    trials.recognizer = SimpleNamespace(info=SimpleNamespace(threshold=0.6, thresholds={}))  # type: ignore[assignment]
    trials.speech = [*heard(LAMP, 2, 3), *heard(SOFA, 2, 1)]
    talk, soon, late, word, sofa = (0, 30000, -1), (40000, 48000, 0), (90000, 98000, 1), (99000, 107000, 2), 3
    trials.times = [talk, soon, late, word, (108000, 116000, sofa)]
    trials.others = [Said("sofa", [one], []) for one in heard(SOFA, 3, 4)]
    trials.run(row, [[Said("lamp", [one], []) for one in heard(LAMP, 1, 11)] + [Said("lamp", [], [])]])
    assert row.alarms == 2, "the one right after talk is rejected"
    assert row.counts["missed"].count(True) == 1, "what is not heard at all is missed"
    assert row.counts["others taken for it"] == [False] * 4
    assert row.forecasts[0][2] == pytest.approx(1 / len(row.counts["missed"]))
