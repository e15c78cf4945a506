import dataclasses
import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from recipes.live import (
    Live,
    Point,
    Remembering,
    Scene,
    draw_live,
    evaluate_live,
    find_alarms,
    find_alarms_apart,
    place_words,
    score,
)
from recipes.report import write_report
from recipes.toy import make_corpus
from recipes.words import Evaluation, Mistake
from speech.errors import DataError
from speech.listen import DEMO
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Detection
from speech.training.corpus import Corpus, Recording, index_others, index_words
from speech.training.mixtures import Placed

PLACED = [Placed("yes", 1.0, 1.5), Placed("no", 3.0, 3.4), Placed("yes", 5.0, 5.5)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = make_corpus(tmp_path_factory.mktemp("data"))
    others = [dataclasses.replace(r, part="testing") if r.source == "rooms" else r for r in index_others(root)]
    return Corpus(index_words(root, 0.0) + others, root / "cache")


def heard(word: str, at_s: float) -> Detection:
    return Detection(word, at_s - 0.5, at_s - 0.2, 0.9, at_s)


@pytest.mark.parametrize(
    ("detections", "missed", "false_alarms", "latencies"),
    [
        ([heard("yes", 1.7), heard("no", 3.5), heard("yes", 5.4)], 0, 0, (0.2, 0.1, -0.1)),
        ([heard("yes", 1.7), heard("yes", 2.0)], 2, 1, (0.2,)),  # a second firing for one word
        ([heard("no", 1.7), heard("no", 3.5)], 2, 1, (0.1,)),  # a wrong word
        ([heard("yes", 2.26), heard("yes", 0.9)], 3, 2, ()),  # too late, too early
        ([], 3, 0, ()),
    ],
)
def test_hits_misses_and_false_alarms(
    detections: list[Detection], missed: int, false_alarms: int, latencies: tuple[float, ...]
) -> None:
    condition = score(PLACED, detections, Scene(None))
    assert (condition.misses.hits, condition.misses.total) == (missed, 3)
    assert condition.false_alarms == false_alarms
    assert condition.latencies_s == pytest.approx(latencies)
    assert len(condition.judged) == len(detections)
    assert sum(right for _, right in condition.judged) == 3 - missed


def test_the_words_stand_where_it_says(corpus: Corpus) -> None:
    stream, placed = place_words(corpus, "testing", 20, np.random.default_rng(0))
    again, _ = place_words(corpus, "testing", 20, np.random.default_rng(0))
    np.testing.assert_array_equal(stream, again)
    assert len(placed) == 20
    assert len({p.word for p in placed}) == 10
    for command in placed:
        inside = stream[round(command.start_s * 16000) : round(command.end_s * 16000)]
        after = stream[round(command.end_s * 16000) :][:800]
        assert np.square(inside).mean() > 100 * np.square(after).mean()


def test_a_room_sounds_on_behind_the_same_words(corpus: Corpus) -> None:
    room = torch.zeros(1, 8000)
    room[0, 0], room[0, 6400] = 1.0, 0.5  # an echo after 0.4 s
    dry, placed = place_words(corpus, "testing", 10, np.random.default_rng(0))
    wet, again = place_words(corpus, "testing", 10, np.random.default_rng(0), room)
    assert placed == again
    assert len(dry) == len(wet)
    assert np.corrcoef(dry, wet)[0, 1] > 0.7
    assert np.corrcoef(np.roll(dry, 6400), wet)[0, 1] > 0.3


@pytest.fixture(scope="module")
def result(corpus: Corpus) -> Live:
    return evaluate_live(Recognizer.load(), corpus, "testing", n_words=10, thresholds=(0.5, 0.9))


def test_the_protocol_runs_through_the_listener(result: Live) -> None:
    names = ["clean", "20 dB", "10 dB", "5 dB", "0 dB"]
    assert [c.scene.name for c in result.conditions] == [*names, *(f"{name}, room" for name in names)]
    assert result.conditions[0].misses.total == 10
    assert result.conditions[0].misses.value > 0.8, "two glides are no words"
    assert [a.source for a in result.alarms] == ["speech without commands", "noise alone", "speech, each by itself"]
    assert result.alarms[1].hours > 0
    assert [p.threshold for p in result.curve] == [0.5, 0.9]


def test_a_bundle_at_its_own_threshold_is_a_point_of_the_curve(corpus: Corpus) -> None:
    recognizer = Recognizer.load()
    thresholds = set(Listener(recognizer).thresholds.values())
    result = evaluate_live(recognizer, corpus, "testing", n_words=10, thresholds=sorted(thresholds))
    if len(thresholds) == 1:
        assert result.curve[0].misses == {c.scene.name: c.misses.value for c in result.conditions}
    assert Remembering(recognizer).info is recognizer.info


def test_what_is_remembered_is_what_the_recogniser_says(corpus: Corpus) -> None:
    recognizer = Recognizer.load()
    remembering = Remembering(recognizer)
    window = corpus[int(corpus.select("testing", "words")[0])][None, :16000]
    for _ in range(2):
        np.testing.assert_array_equal(remembering.scores(window), recognizer.scores(window))


@pytest.mark.parametrize(("rates", "kept"), [([3, 0.4, 0.6, 0.5, 0], 0.8), ([0, 0], 0.5), ([9, 8], None)])
def test_the_budget_is_kept_from_a_threshold_on(rates: list[float], kept: float | None) -> None:
    points = [Point(t, {}, rate, 0.0) for t, rate in zip((0.5, 0.6, 0.7, 0.8, 0.9), rates, strict=False)]
    point = Live("testing", {"yes": 0.5}, 1.0, [], [], points).within_budget
    assert (point.threshold if point else None) == kept


def test_a_report_needs_nothing_beside_it(result: Live, tmp_path: Path) -> None:
    draw_live(result, tmp_path / "live.png")
    clip = np.sin(np.arange(16000) / 10).astype(np.float32)
    confusion = np.array([[3, 1], [0, 4]])
    words = Evaluation("<two> words", ("yes", "_unknown_"), confusion, [Mistake("a<b>.wav", "yes", "no", 0.9, clip)])
    info = Recognizer.load().info
    page = write_report(
        tmp_path, Path("commands.onnx"), info, [result, words], {0: [tmp_path / "live.png"]}
    ).read_text()
    outside = [link for link in re.findall(r'(?:src|href)="([^"]*)"', page) if not link.startswith("data:")]
    assert not outside
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 1
    assert page.count("<audio") == 1
    assert "&lt;two&gt; words" in page
    assert "a&lt;b&gt;.wav" in page
    assert "<b>" not in page
    html.parser.HTMLParser().feed(page)
    assert "87.50 %" in page  # seven of eight


def test_missing_commands_are_told(corpus: Corpus, tmp_path: Path) -> None:
    few = Corpus([r for r in corpus.recordings if r.word != "left"], tmp_path)
    with pytest.raises(DataError, match="all ten commands"):
        evaluate_live(Recognizer.load(), few, "testing")


def test_alarms_are_told_by_recording_in_one_stream(tmp_path: Path) -> None:
    """The demo recording twice, and silence between: ten commands in each, at the same places."""
    demo, _ = soundfile.read(DEMO, dtype="float32")
    recordings = []
    for name, audio in {"a": demo, "b": np.zeros(8000, np.float32), "c": demo}.items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, audio, 16000)
        recordings.append(Recording(path, "", "testing", "speech"))
    corpus = Corpus(recordings, tmp_path / "cache")
    by_itself, amid_talk = Listener(Recognizer.load()), Listener(Recognizer.load())
    alarms = find_alarms_apart(by_itself, corpus, "speech", [0, 1, 2])
    assert alarms.hours == pytest.approx((2 * len(demo) + 8000) / 16000 / 3600)
    places = {name: [round(d.start_s, 1) for path, d in alarms.found if path.endswith(f"{name}.wav")] for name in "abc"}
    assert places["a"] == pytest.approx(places["c"], abs=0.11)
    assert len(places["a"]) == 10
    assert not places["b"]
    one_stream = find_alarms(amid_talk, corpus, "speech", [0, 1, 2])
    assert one_stream.hours == pytest.approx(alarms.hours)
    later = [d for path, d in one_stream.found if path.endswith("c.wav")]
    assert 0 < len(later) < 10, "the sentence that ends the first is talk before the second"
    assert one_stream.found[:10] == alarms.found[:10]
    assert not find_alarms(Listener(Recognizer.load()), corpus, "speech", []).found
