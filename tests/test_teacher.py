from pathlib import Path

import numpy as np
import pytest
from ten import KEYWORDS

from recipes.data.corpus import SILENCE, UNKNOWN, Recording
from recipes.data.teacher import Teacher, map_posteriors, read_teacher
from speech.errors import DataError

KWT1 = [SILENCE, UNKNOWN, *KEYWORDS]
BCRES2 = ["bed", "bird", *KEYWORDS, "dog"]
LABELS = (*KEYWORDS, "bed", UNKNOWN, SILENCE)


def posteriors(labels: list[str], **shares: float) -> np.ndarray:
    """(1, labels): what is not given is divided evenly among the others."""
    rest = (1 - sum(shares.values())) / max(1, len(labels) - len(shares))
    return np.array([[shares.get(label.strip("_"), rest) for label in labels]])


def mapped(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    return dict(zip(LABELS, map_posteriors(first, KWT1, second, BCRES2, LABELS)[0], strict=True))


def test_a_command_gets_the_mean_of_both() -> None:
    zeros = dict.fromkeys(("bed", "bird", "dog"), 0.0)
    found = mapped(posteriors(KWT1, yes=0.8, no=0.2), posteriors(BCRES2, yes=0.5, up=0.5, **zeros))
    assert found["yes"] == pytest.approx(0.65)
    assert found["no"] == pytest.approx(0.1)
    assert found["up"] == pytest.approx(0.25)
    assert sum(found.values()) == pytest.approx(1)


def test_the_unknown_is_divided_as_the_teacher_says_that_knows_more_words() -> None:
    found = mapped(posteriors(KWT1, unknown=0.9, silence=0.1), posteriors(BCRES2, bed=0.6, bird=0.1, dog=0.1, yes=0.2))
    unknown = (0.9 + 0.8) / 2
    assert found["bed"] == pytest.approx(unknown * 0.75)
    assert found[UNKNOWN] == pytest.approx(unknown * 0.25)
    assert found["yes"] == pytest.approx(0.1)
    assert found[SILENCE] == pytest.approx(0.05)


def test_nothing_is_lost_where_only_one_hears_another_word() -> None:
    found = mapped(posteriors(KWT1, unknown=1.0), posteriors(BCRES2, yes=1.0))
    assert found["yes"] == pytest.approx(0.5)
    assert found[UNKNOWN] == pytest.approx(0.5)


@pytest.fixture
def teacher(tmp_path: Path) -> Teacher:
    first = np.concatenate([posteriors(KWT1, yes=0.9), posteriors(KWT1, no=0.999), posteriors(KWT1, unknown=0.9)])
    second = np.concatenate([posteriors(BCRES2, yes=0.9), posteriors(BCRES2, no=0.999), posteriors(BCRES2, bed=0.9)])
    np.savez(
        tmp_path / "teacher.npz",
        names=["yes/a_nohash_0.wav", "yes/b_nohash_0.wav", "bed/a_nohash_0.wav"],
        kwt1=first.astype(np.float16), kwt1_labels=KWT1, bcres2=second.astype(np.float16), bcres2_labels=BCRES2,
    )  # fmt: skip
    recordings = [
        Recording(Path("words/bed/a_nohash_0.wav"), "bed", "training", "words"),
        Recording(Path("words/yes/b_nohash_0.wav"), "yes", "training", "words"),
        Recording(Path("voices/yes/a_nohash_0.wav"), "yes", "training", "voices"),
        Recording(Path("words/yes/a_nohash_0.wav"), "yes", "training", "words"),
        Recording(Path("words/yes/c_nohash_0.wav"), "yes", "training", "words"),
    ]
    return read_teacher(tmp_path / "teacher.npz", recordings, LABELS)


def test_each_recording_gets_its_own_posteriors(teacher: Teacher) -> None:
    found, weight = teacher.of(np.arange(5))
    assert found[3].argmax() == LABELS.index("yes")
    assert found[0].argmax() == LABELS.index("bed")
    assert found[[0, 3]].sum(1) == pytest.approx([1, 1], abs=1e-5)
    assert weight[[0, 3]].tolist() == [1, 1]
    assert not found[2].any(), "only real recordings have a teacher"
    assert not found[4].any()


def test_a_label_that_no_teacher_believes_counts_half(teacher: Teacher) -> None:
    found, weight = teacher.of(np.array([1, 4, -1]))
    assert not found.any()
    assert weight.tolist() == [0.5, 1, 1]


def test_without_a_teacher_there_is_nothing() -> None:
    found, weight = Teacher(5).of(np.array([3, -1]))
    assert found.shape == (2, 5)
    assert not found.any()
    assert weight.tolist() == [1, 1]


def test_a_file_that_is_no_teacher_is_reported(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", names=["a"])
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "text.npz", "missing.npz"):
        with pytest.raises(DataError, match=name):
            read_teacher(tmp_path / name, [], LABELS)
