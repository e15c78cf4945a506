"""The soak on a small bundle and a short day."""

import json

import pytest

from speech import soak
from speech.results import Detection
from speech.segment import ListenerConfig, utterances_of
from speech.sound.files import read, resample


def test_twenty_minutes_stay_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    status = soak.main(["--hours", "0.34", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert report["words_per_period"] == 20
    assert report["differing_periods"] == 0
    assert report["heard_hours"] == pytest.approx(report["hours"], abs=1 / 3600)
    assert report["cpu_quiet"] < report["cpu_talk"]


def test_somebody_talks_without_a_pause() -> None:
    begin, end = (at * soak.DEVICE_HZ for at in soak.TALK_S)
    talk = resample(soak.period(seed=0)[begin - 16000 : end + 16000], soak.DEVICE_HZ, 16000)
    found = utterances_of(talk, ListenerConfig(), 200)
    assert len(found) == 1, "one utterance from end to end"
    assert (found[0].end - found[0].start) / 16000 > 0.95 * (soak.TALK_S[1] - soak.TALK_S[0])


def test_what_is_counted_where() -> None:
    kinds = [soak.kind_at(second) for second in (0, 59, 60, 77, 79, 199, 200, 319, 320, 400, 419)]
    assert kinds == ["quiet", "quiet", "words", "words", "quiet", "quiet", "talk", "talk", "quiet", "words", "quiet"]
    assert len(read(soak.DEMO, 16000)) < 16000 * soak.DEMO_S


def test_a_difference_is_a_failure() -> None:
    first = [Detection("go", 1.0, 1.4, 0.9, 1.5), Detection("up", 3.0, 3.4, 0.9, 3.5)]
    later = [Detection("go", 601.0, 601.4, 0.9, 601.5), Detection("up", 603.02, 603.4, 0.9, 603.5)]
    assert not soak.differs(first, later, 600)
    assert soak.differs(first, later[:1], 600)
    assert soak.differs(first, later, 599.9)
    good = soak.Report(24, 24, 20, 0, 1.0, 0.01, 0.05)
    assert good.passed
    for field, value in (("differing_periods", 1), ("more_mb", 5.1), ("heard_hours", 23.999), ("words_per_period", 0)):
        bad = soak.Report(**{**good.__dict__, field: value})
        assert not bad.passed
        assert "FAILED" in str(bad)


def test_too_short_a_day_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as ended:
        soak.main(["--hours", "0.1"])
    assert ended.value.code == 2
