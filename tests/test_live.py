"""The live protocol: what it counts, and that it hears what a Listener hears."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure
from ten import KEYWORDS

from recipes import evaluate
from recipes.data.recordings import Recording
from recipes.metrics import Rate, Share
from recipes.protocols.live import (
    LATE,
    NO_UTTERANCE,
    WRONG,
    Condition,
    Live,
    Point,
    Setting,
    decide,
    evaluate_live,
    plot_live,
    read_stream,
    run_live,
    score,
    without_commands,
)
from recipes.protocols.scenes import Placed, Recordings, blocks
from recipes.protocols.words import Evaluation, Mistake
from recipes.report import write_report
from speech.errors import ConfigError
from speech.listen import DEMO
from speech.listener import Listener, thresholds_for
from speech.recognizer import Recognizer
from speech.results import Examined, Reason, SpokenWord
from speech.segment import ListenerConfig, utterances_of
from speech.sound.files import read

RATE = 16000
PLACED = [Placed("yes", 1.0, 1.5), Placed("no", 3.0, 3.4), Placed("yes", 5.0, 5.5)]
NO_AUDIO = np.zeros(0, np.float32)


def heard(word: str, at_s: float) -> Examined:
    return Examined(NO_AUDIO, at_s - 0.8, at_s, {}, (SpokenWord(word, at_s - 0.5, at_s - 0.2, 0.9),), None)


def rejected(reason: Reason, start_s: float, end_s: float) -> Examined:
    return Examined(NO_AUDIO, start_s, end_s + 0.25, {}, (SpokenWord("go", start_s, end_s, 0.4),), reason)


@pytest.mark.parametrize(
    ("examined", "missed", "false_alarms", "latencies", "causes"),
    [
        ([heard("yes", 1.7), heard("no", 3.5), heard("yes", 5.4)], 0, 0, (0.2, 0.1, -0.1), {}),
        ([heard("yes", 1.7), heard("yes", 2.0)], 2, 1, (0.2,), {NO_UTTERANCE: 2}),  # a second detection of one word
        ([heard("no", 1.7), heard("no", 3.5)], 2, 1, (0.1,), {WRONG: 1, NO_UTTERANCE: 1}),
        ([heard("yes", 2.26), heard("yes", 0.9)], 3, 2, (), {NO_UTTERANCE: 3}),  # before the word, and after its time
        ([heard("no", 4.2)], 3, 1, (), {NO_UTTERANCE: 3}),
        ([], 3, 0, (), {NO_UTTERANCE: 3}),
        ([rejected(Reason.UNSURE, 1.1, 1.4), rejected(Reason.TOO_LONG, 2, 6)], 3, 0, (), {"unsure": 1, "too long": 2}),
    ],
)  # fmt: skip
def test_hits_misses_and_false_alarms(
    examined: list[Examined],
    missed: int,
    false_alarms: int,
    latencies: tuple[float, ...],
    causes: dict[str, int],
) -> None:
    condition = score(PLACED, examined, "clean")
    assert (condition.misses.hits, condition.misses.total) == (missed, 3)
    assert condition.false_alarms == false_alarms
    assert condition.latencies_s == pytest.approx(latencies)
    assert len(condition.judged) == sum(len(e.detections) for e in examined)
    assert sum(right for _, right in condition.judged) == 3 - missed
    assert condition.causes == causes


def test_a_command_that_is_decided_too_late_is_missed() -> None:
    late = Examined(NO_AUDIO, 2.9, 4.2, {}, (SpokenWord("no", 3.0, 3.4, 0.9),), None)
    assert score(PLACED, [late], "clean").causes == {LATE: 1, NO_UTTERANCE: 2}
    assert score(PLACED, [heard("no", 3.4 + 0.74)], "clean").misses.hits == 2


@pytest.fixture(scope="module")
def demo() -> np.ndarray:
    """Ten commands and a sentence."""
    return read(DEMO, RATE)


@pytest.fixture(scope="module")
def stream(demo: np.ndarray) -> np.ndarray:
    """Five commands, a sentence and five commands, in noise."""
    said = np.concatenate([demo[: 7 * RATE], demo[13 * RATE :], demo[: 7 * RATE]])
    return (said + 0.004 * np.random.default_rng(0).standard_normal(len(said))).astype(np.float32)


@pytest.mark.parametrize("model", ["commands", "connected"])
def test_decisions_are_those_of_a_listener(stream: np.ndarray, model: str) -> None:
    recognizer = Recognizer.load(model)
    once = read_stream(recognizer, np.array_split(stream, 7), ListenerConfig(), KEYWORDS)
    outcomes = set()
    for threshold, after_talk_s in ((0.5, 2.0), (0.97, 2.0), (0.5, 0.0), (0.9, 10.0)):
        config = ListenerConfig(after_talk_s=after_talk_s)
        thresholds = dict.fromkeys(KEYWORDS, threshold)
        reported: list[Examined] = []
        listener = Listener(recognizer, KEYWORDS, threshold, config, on_utterance=reported.append)
        detections = list(listener.listen(blocks(stream)))
        examined = decide(once, thresholds, config)
        assert [d for e in examined for d in e.detections] == detections
        assert [e.rejection for e in examined] == [e.rejection for e in reported]
        outcomes.add(len(detections))
    assert len(outcomes) > 2, "the settings must matter"


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, demo: np.ndarray) -> Recordings:
    """The demo cut into its ten words and its sentence; noise, events, and a recording with three commands."""
    folder, config = tmp_path_factory.mktemp("spoken"), ListenerConfig()
    found = utterances_of(demo, config, 60.0)
    listened = list(Listener(Recognizer.load(), KEYWORDS).listen([demo]))
    assert len(found) == len(listened) + 1 == 11
    margin = RATE // 4
    pieces = [demo[u.start - margin : u.end + margin] for u in found]
    rng = np.random.default_rng(0)
    kinds = [(d.word, "words", piece) for d, piece in zip(listened, pieces, strict=False)]
    kinds += [("", "speech", pieces[-1]), ("", "noise", 0.01 * rng.standard_normal(3 * RATE))]
    kinds += [("", "events", np.zeros(RATE)), ("", "events", demo[: 4 * RATE])]
    kinds += [("on", "home", pieces[8]), ("red", "home", pieces[0])]
    recordings = []
    for number, (word, source, audio) in enumerate(kinds):
        path = folder / f"{number}{source}.wav"
        soundfile.write(path, audio, RATE)
        recordings.append(Recording(path, word, "validation", source))
    return Recordings(recordings)


@pytest.fixture(scope="module")
def result(spoken: Recordings) -> Live:
    return evaluate_live(
        Recognizer.load(), spoken, "validation", KEYWORDS, 10, thresholds=(0.5, 0.9999), after_talk_s=(2, 0)
    )


def test_the_protocol_hears_commands_where_they_are(result: Live) -> None:
    default, deaf_never = result.settings
    assert (default.after_talk_s, deaf_never.after_talk_s) == (2, 0)
    misses = [{c.name: c.misses.hits for c in o.conditions} for o in result.settings]
    assert [set(m) for m in misses] == [set(misses[0])] * 2
    assert misses[0]["clean"] == misses[1]["clean"] == 0
    assert misses[1]["0.6 s after talk"] <= 1
    assert misses[0]["0.6 s after talk"] >= 9
    causes = {c.name: c.causes for c in default.conditions}
    assert causes["0.6 s after talk"] is not None
    assert causes["0.6 s after talk"]["after talk"] >= 9
    latencies = {c.name: c.latencies_s for c in deaf_never.conditions}
    assert 0.15 < np.median(latencies["clean"]) < 0.4
    assert "room" not in misses[0], "the data hold none"


def test_alarms_are_counted_by_source_and_recording(result: Live) -> None:
    alarms = {a.source: a for a in result.settings[1].alarms}
    assert list(alarms) == ["speech", "noise", "events", "other words at home"]
    assert [d.word for _, d in alarms["events"].found] == ["yes", "no", "up"]
    assert {name.split("/")[1] for name, _ in alarms["events"].found} == {"13events.wav"}
    assert [d.start_s for _, d in alarms["events"].found] == pytest.approx([0.75, 1.96, 3.31], abs=0.06)
    assert [d.word for _, d in alarms["other words at home"].found] == ["yes"]
    assert not alarms["speech"].found
    assert not alarms["noise"].found
    assert alarms["events"].rate.hours == pytest.approx(5 / 3600)


def test_the_curve_repeats_the_decision(result: Live, spoken: Recordings) -> None:
    for outcome in result.settings:
        assert [p.threshold for p in outcome.curve] == [0.5, 0.9999]
        low, high = outcome.curve
        assert all(low.misses[name].hits <= high.misses[name].hits for name in low.misses)
        assert low.misses["clean"].hits == 0 < high.misses["clean"].hits
        assert low.sounds == low.alarms["noise"] + low.alarms["events"]
        assert low.sounds.count == 3 > high.sounds.count
    recognizer = Recognizer.load()
    run, config = run_live(recognizer, spoken, "validation", KEYWORDS, 10, ["clean", "events"]), ListenerConfig()
    point = run.point(0.9, config)
    own = thresholds_for(recognizer, KEYWORDS, 0.9)
    assert point.misses == {c.name: c.misses for c in run.conditions(own, config)}


def test_a_scene_that_is_not_there_is_named(spoken: Recordings) -> None:
    with pytest.raises(ConfigError, match="no scene 'loud'; there are: clean, "):
        run_live(Recognizer.load(), spoken, "validation", KEYWORDS, 10, ["loud"])


def test_alarms_need_recordings(spoken: Recordings) -> None:
    silence = without_commands(Recognizer.load(), spoken, "testing", "speech", ListenerConfig(), KEYWORDS)
    assert not silence.names
    assert silence.alarms([]).rate.hours == 0


@pytest.mark.parametrize(("counts", "kept"), [([3, 1, 2, 1, 0], 0.8), ([0, 0], 0.5), ([9, 8], None)])
def test_the_budget_is_kept_from_a_threshold_on(counts: list[int], kept: float | None) -> None:
    points = [Point(t, {}, {"speech": Rate(n, 1.0)}) for t, n in zip((0.5, 0.6, 0.7, 0.8, 0.9), counts, strict=False)]
    point = Setting(2.0, [], [], points).within_budget
    assert (point.threshold if point else None) == kept


def test_the_table_shows_all_and_intervals(result: Live) -> None:
    printed = str(result)
    for outcome in result.settings:
        assert f"within {outcome.after_talk_s:g} s after talk" in printed
        for condition in outcome.conditions:
            assert f"{condition.name:18}missed  {condition.misses}" in printed
        for alarms in outcome.alarms:
            assert str(alarms.rate) in printed
    share, rate = Share(3, 10), Rate(2, 0.5)
    assert "30.00 %  [10.8, 60.3]  3/10" in str(share)
    assert "4.00 per hour  [0.5, 14.4]  2 in 0.50 h" in str(rate)


def test_the_command_measures_what_is_asked_for(
    spoken: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Recordings, "load", lambda root, part: spoken)
    target = tmp_path / "figures.json"
    arguments = ["--data.root", str(tmp_path), "--protocol", "live", "--part", "validation", "--curve"]
    wanted = ["--scenes", "clean", "events", "--after-talk", "1", "0", "--commands", "10", "--json", str(target)]
    assert evaluate.main([*arguments, *wanted]) == 0
    figures = json.loads(target.read_text())["live"]
    assert [o["after_talk_s"] for o in figures["settings"]] == [1, 0]
    for setting in figures["settings"]:
        assert [c["name"] for c in setting["conditions"]] == ["clean"]
        assert [a["source"] for a in setting["alarms"]] == ["events"]
        assert setting["alarms"][0]["rate"]["count"] == 3
        assert setting["curve"] == []
    assert "3 in 0.00 h" in capsys.readouterr().out


def test_what_was_not_measured_is_not_drawn_as_no_alarms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, drawn = {"clean": Share(1, 10)}, []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(figure) or save(figure, path))
    for alarms in ({"speech": Rate(0, 0.4)}, {"events": Rate(2, 0.1)}, {}):
        curve = [Point(threshold, shares, alarms) for threshold in (0.5, 0.9)]
        setting = Setting(1.8, [Condition("clean", shares["clean"], 0, ())], [], curve)
        plot_live(Live("testing", {"yes": 0.7}, [setting]), tmp_path / "live.png")
        lines = {axes.get_xlabel(): [x for x in axes.lines if x.get_label() == "clean"] for axes in drawn[-1].axes}
        for kind, names in (("speech", {"speech"}), ("noise and events", {"noise", "events"})):
            measured = bool(names & set(alarms))
            (label,) = (label for label in lines if kind in label)
            assert len(lines[label]) == measured
            assert ("not measured" in label) is not measured
        assert ("     -" in str(setting)) is ("events" not in alarms or "speech" not in alarms)
        assert "latency -" in str(setting), "nothing was recognised"


def test_a_report_needs_nothing_beside_it(result: Live, tmp_path: Path) -> None:
    picture = tmp_path / "live.png"
    plot_live(result, picture)
    clip = np.sin(np.arange(RATE) / 10).astype(np.float32)
    confusion = np.array([[3, 1], [0, 4]])
    words = Evaluation(
        "<two> words", ("yes", "_unknown_"), ("yes",), confusion, [Mistake("a<b>.wav", "yes", "no", 0.9, clip)]
    )
    measured = [(result, [picture]), (words, [])]
    page = write_report(tmp_path / "new", Path("commands.onnx"), Recognizer.load().info, measured).read_text()
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
    assert page.count("after talk are rejected") == 2
    assert "noise, events" in page
