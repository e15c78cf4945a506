from pathlib import Path

import numpy as np
import pytest

from recipes.live import Placed, Scene, evaluate_live, place_words, score
from recipes.toy import make_corpus
from speech.errors import DataError
from speech.listener import Detection
from speech.recognizer import Recognizer
from speech.training.data import Corpus, index_others, index_words

PLACED = [Placed("yes", 1.0, 1.5), Placed("no", 3.0, 3.4), Placed("yes", 5.0, 5.5)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = make_corpus(tmp_path_factory.mktemp("data"))
    return Corpus(index_words(root, 0.0) + index_others(root), root / "cache")


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


def test_the_protocol_runs_through_the_listener(corpus: Corpus) -> None:
    result = evaluate_live(Recognizer.load(), corpus, "testing", n_words=20)
    assert [c.snr_db for c in result.conditions] == [None, 20.0, 10.0, 5.0]
    assert result.conditions[0].misses.total == 20
    assert result.conditions[0].misses.value > 0.8, "two glides are no words"
    assert result.noise_hours > 0
    assert "misses" in result.as_dict()["conditions"][0]  # type: ignore[index]


def test_missing_commands_are_told(corpus: Corpus, tmp_path: Path) -> None:
    few = Corpus([r for r in corpus.recordings if r.word != "left"], tmp_path)
    with pytest.raises(DataError, match="all ten commands"):
        evaluate_live(Recognizer.load(), few, "testing")
