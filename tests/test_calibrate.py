"""A room whose false alarms are known: bursts of tones, named by their pitch, the surer the further from 1 kHz."""

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ten import KEYWORDS

from speech import calibrate as module
from speech import listen
from speech.bundle import BundleInfo
from speech.calibrate import (
    FLOOR,
    HIGHEST,
    calibrate,
    from_files,
    from_microphone,
    just_over,
    main,
    parse,
    poisson_bound,
    raised,
)
from speech.console import Console
from speech.errors import ConfigError
from speech.listen import DEMO
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Detection
from speech.settings import load_thresholds
from speech.sound import microphone
from speech.sound.files import read

RATE = 16000
WORDS = ("low", "high")
Tone = Callable[[float, float], np.ndarray]


class Loud:
    """In the place of voice activity detection: a hop is speech when it is loud, so that tones are."""

    def reset(self) -> None: ...

    def push(self, hop: np.ndarray) -> float:
        return float(np.abs(hop).max() > 0.1)


class Pitches(Recognizer):
    """Names a tone `low` or `high` by its pitch."""

    def __init__(self, info: BundleInfo) -> None:
        super().__init__(None, info)

    def posteriors(self, waveform: np.ndarray) -> dict[str, float]:
        pitch_hz = np.abs(np.fft.rfft(waveform)).argmax() * RATE / len(waveform)
        sure = float(1 / (1 + np.exp(-abs(pitch_hz - 1000) / 20)))
        word = WORDS[int(pitch_hz > 1000)]
        return dict.fromkeys(self.info.labels, 0.0) | {word: sure, "_unknown_": 1 - sure}


@pytest.fixture(autouse=True)
def tones_are_speech(request: pytest.FixtureRequest, recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    if "demo" not in request.fixturenames:
        monkeypatch.setattr("speech.segment.VoiceActivity", Loud)
        monkeypatch.setattr(Recognizer, "load", lambda path=None: recognizer)


@pytest.fixture(scope="module")
def recognizer(info: BundleInfo) -> Recognizer:
    return Pitches(info)


@pytest.fixture(scope="module")
def room(tone: Tone) -> np.ndarray:
    """Two minutes: twenty bursts, the nearer to 1 kHz the less sure, alternately of either side."""
    pieces = []
    for n in range(20):
        pitch = 1000 + (-1) ** n * (15 + 4 * (n // 2))
        pieces += [np.zeros(3 * RATE, np.float32), tone(pitch, 0.5), np.zeros(5 * RATE // 2, np.float32)]
    return np.concatenate(pieces)


@pytest.fixture(scope="module")
def demo() -> np.ndarray:
    """Ten commands and a sentence."""
    return read(DEMO, RATE)


def streams_of(*waveforms: np.ndarray) -> list[list[np.ndarray]]:
    return [np.array_split(w, len(w) // 1600) for w in waveforms]


def alarm(word: str, confidence: float) -> Detection:
    return Detection(word, 0.0, 0.5, confidence, 0.6)


@pytest.mark.parametrize(
    ("count", "bound"), [(0, 2.9957), (1, 4.7439), (2, 6.2958), (7, 13.1481), (61, 75.4947), (1000, 1053.6031)]
)
def test_the_bound_is_the_exact_one(count: int, bound: float) -> None:
    """scipy.stats.chi2.ppf(0.95, 2 * (count + 1)) / 2"""
    assert poisson_bound(count) == pytest.approx(bound, abs=1e-4)
    assert poisson_bound(3, level=0.5) == pytest.approx(3.67206, abs=1e-4)


def test_thresholds_rise_just_over_what_is_too_much() -> None:
    alarms = [alarm("low", 0.7), alarm("low", 0.8), alarm("high", 0.95), alarm("high", 0.65)]
    base = {"low": 0.6, "high": 0.6}
    assert raised(base, alarms, 4) == base
    assert raised(base, alarms, 2) == {"low": 0.71, "high": 0.66}
    assert raised(base, alarms, 0) == {"low": 0.81, "high": 0.96}
    assert raised(base, [alarm("low", 1.0)], 0) == {"low": HIGHEST, "high": 0.6}
    assert raised({"low": 1.0}, [alarm("low", 1.0)], 0) == {"low": 1.0}, "never lower"


@pytest.mark.parametrize("confidence", [0.28, 0.29, 0.57, 0.58, 0.9, 0.987])
def test_just_over_is_over(confidence: float) -> None:
    assert confidence < just_over(confidence) <= confidence + 0.0101


@pytest.mark.parametrize("allow_lower", [False, True])
@pytest.mark.parametrize("per_hour", [1.0, 100.0, 250.0])
def test_one_pass_tells_what_the_thresholds_saved_bring(
    recognizer: Recognizer, room: np.ndarray, per_hour: float, allow_lower: bool
) -> None:
    before = list(Listener(recognizer).listen([room]))
    assert len(before) > 10, "the room must give cause"
    found = calibrate(recognizer, streams_of(room), per_hour, allow_lower=allow_lower)
    assert found.model_alarms == Counter(d.word for d in before)
    again = list(Listener(recognizer, threshold=found.thresholds).listen([room]))
    assert found.alarms == Counter(d.word for d in again)
    assert found.n_alarms <= per_hour * len(room) / RATE / 3600
    assert not found.stubborn
    for word in WORDS:
        assert (FLOOR if allow_lower else 0.6) <= found.thresholds[word] <= HIGHEST
    assert found.hours == pytest.approx(len(room) / RATE / 3600)
    assert found.upper_bound == pytest.approx(poisson_bound(found.n_alarms) / found.hours)


def test_each_stream_is_heard_once(recognizer: Recognizer, room: np.ndarray) -> None:
    streams = iter(map(iter, streams_of(room, room)))
    twice = calibrate(recognizer, streams, 1.0)
    assert twice.hours == pytest.approx(2 * len(room) / RATE / 3600)
    once = calibrate(recognizer, streams_of(room), 1.0)
    assert twice.model_alarms == {word: 2 * n for word, n in once.model_alarms.items()}


def test_a_quiet_room_changes_nothing_unless_lower_is_allowed(recognizer: Recognizer) -> None:
    hiss = (0.001 * np.random.default_rng(0).standard_normal(90 * RATE)).astype(np.float32)
    assert calibrate(recognizer, streams_of(hiss), 0.5).thresholds == {"low": 0.6, "high": 0.6}
    assert calibrate(recognizer, streams_of(hiss), 0.5, allow_lower=True).thresholds == dict.fromkeys(WORDS, FLOOR)


def test_a_threshold_makes_nobody_deaf_to_other_words(demo: np.ndarray) -> None:
    """Neither one of 1, nor one that was calibrated on the word itself."""
    recognizer, word = Recognizer.load(), "stop"
    heard = list(Listener(recognizer, KEYWORDS).listen([demo]))
    assert {d.word for d in heard} == set(KEYWORDS)
    others = [d for d in heard if d.word != word]
    assert list(Listener(recognizer, KEYWORDS, {word: 1.0}).listen([demo])) == others
    padded = np.concatenate([demo, np.zeros(50 * RATE, np.float32)])
    found = calibrate(recognizer, streams_of(padded), 1.0, [word])
    kept = [d for d in heard if d.word != word or d.confidence >= found.thresholds[word]]
    assert list(Listener(recognizer, KEYWORDS, found.thresholds).listen([demo])) == kept


def test_only_the_words_asked_for_count(recognizer: Recognizer, room: np.ndarray) -> None:
    found = calibrate(recognizer, streams_of(room), 1.0, words=["high"])
    assert list(found.thresholds) == ["high"]
    assert set(found.model_alarms) == {"high"}


def test_a_word_that_is_said_can_not_be_kept_quiet(recognizer: Recognizer, tone: Tone) -> None:
    said = np.concatenate([np.zeros(30 * RATE, np.float32), tone(300, 0.5), np.zeros(40 * RATE, np.float32)])
    found = calibrate(recognizer, streams_of(said), 0.5)
    assert found.stubborn == ["low"]
    assert found.thresholds == {"low": HIGHEST, "high": 0.6}


@pytest.fixture
def wav(tmp_path: Path, room: np.ndarray) -> Path:
    soundfile.write(tmp_path / "room.wav", room, RATE)
    return tmp_path / "room.wav"


def test_files_in_thresholds_out(
    wav: Path, tone_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recognizer: Recognizer
) -> None:
    target = tmp_path / "new" / "t.toml"
    arguments = ["--audio", str(wav), "--model", str(tone_bundle), "--budget", "100", "--output", str(target)]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert "saved to" in captured.err
    assert load_thresholds(target, WORDS) == printed["thresholds"]
    assert printed["rate"] <= 100
    assert printed["hours"] == pytest.approx(118 / 3600, rel=0.05)
    assert main(arguments) == 0
    assert "budget 100" in capsys.readouterr().out


def test_folders_are_searched_and_bad_files_skipped(
    wav: Path, tone_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = wav.parent / "evening" / "kitchen"
    deep.mkdir(parents=True)
    wav.rename(deep / "room.WAV")
    (deep / "notes.txt").write_text("not audio")
    (deep / "broken.flac").write_text("not audio either")
    target = tmp_path / "t.toml"
    options = ["--model", str(tone_bundle), "--budget", "100", "--output", str(target)]
    assert main(["--audio", str(deep.parent), *options]) == 1
    reported = capsys.readouterr().err
    assert sum("broken.flac" in line for line in reported.splitlines()) == 1
    assert "notes.txt" not in reported
    assert load_thresholds(target, WORDS), "the others count"


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [(20, 0.1, "only 20 s of audio"), (70, 0.0, "is the microphone muted?"), (None, 0, "no audio files in")],
)
def test_audio_that_says_nothing(
    seconds: int | None, level: float, words: str, tone_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "audio").mkdir()
    if seconds:
        noise = level * np.random.default_rng(0).standard_normal(seconds * RATE) / 10
        soundfile.write(tmp_path / "audio/a.wav", noise, RATE)
    target = tmp_path / "t.toml"
    assert main(["--audio", str(tmp_path / "audio"), "--model", str(tone_bundle), "--output", str(target)]) == 1
    reported = capsys.readouterr().err
    assert words in reported
    assert reported.count("\n") == 1
    assert not target.exists()


def test_what_a_short_quiet_evening_shows_is_reported(
    tone_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", 0.001 * np.random.default_rng(0).standard_normal(90 * RATE), RATE)
    arguments = ["--audio", str(tmp_path / "a.wav"), "--model", str(tone_bundle), "--output", str(tmp_path / "t")]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "at most 119.83" in captured.out  # -ln 0.05 in a fortieth of an hour
    assert "takes 6.0 h" in captured.err


def test_a_stubborn_word_is_reported(
    tone: Tone, tone_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", np.concatenate([np.zeros(70 * RATE, np.float32), tone(300, 0.5)]), RATE)
    arguments = ["--audio", str(tmp_path / "a.wav"), "--model", str(tone_bundle), "--output", str(tmp_path / "t")]
    assert main(arguments) == 1
    assert "even at 0.99: low" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks a table"),
        ("low = 0.5", "lacks a table"),
        ("[thresholds]\nlow = ", "not valid TOML"),
        ("[thresholds]\nlow = 0.5\nLow = 0.6", "'low' is there twice"),
        ("[thresholds]\nlow = 1.5", "must be a number in 0..1"),
        ("[thresholds]\nlow = nan", "must be a number in 0..1"),
        ("[thresholds]\nlow = true", "must be a number in 0..1"),
        ('[thresholds]\nlow = "0.5"', "must be a number in 0..1"),
        ("[thresholds]\n\udce9 = 1", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_thresholds_that_can_not_be_used(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "t.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=words) as caught:
        load_thresholds(tmp_path / "t.toml", WORDS)
    assert "\n" not in str(caught.value)


def test_words_that_the_model_lacks_are_a_note(tmp_path: Path) -> None:
    """A word that was forgotten since must not stop a program that starts with the machine."""
    notes: list[str] = []
    (tmp_path / "t.toml").write_text("[thresholds]\nmiddle = 0.5\nLOW = 0.7\n")
    assert load_thresholds(tmp_path / "t.toml", WORDS, tell=notes.append) == {"low": 0.7}
    assert notes == [f"note: {tmp_path / 't.toml'}: the model does not know 'middle'; it knows low, high"]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config/speech"


def test_what_was_calibrated_is_used_from_then_on_and_only_for_its_model(
    home: Path, demo: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", np.concatenate([demo, np.zeros(50 * RATE)]), RATE)
    assert main(["--audio", str(tmp_path / "a.wav"), "--words", "Stop"]) == 1  # it was said
    saved = home / "thresholds-commands.toml"
    assert load_thresholds(saved, ["stop"], Recognizer.load().info.key) == {"stop": HIGHEST}
    saved.write_text(saved.read_text().replace(f"= {HIGHEST}", "= 1"))
    capsys.readouterr()
    demo_file = ["--file", str(DEMO)]
    for options, hears_stop, reported in (
        ([], False, f"thresholds: {saved}\n"),
        (["--threshold", "0.5"], True, ""),
        (["--model", "connected"], True, ""),
        (["--model", "connected", "--thresholds", str(saved)], False, f"{saved} was calibrated for another model\n"),
    ):
        assert listen.main([*demo_file, *options]) == 0
        captured = capsys.readouterr()
        assert (" stop " in captured.out) == hears_stop
        assert reported in captured.err
    saved.write_text(saved.read_text().replace("model = ", "model = 'x' #"))
    assert listen.main(demo_file) == 0
    captured = capsys.readouterr()
    assert " stop " in captured.out
    assert "is not used: calibrated for another version of commands" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [["--audio", "a.wav", "--minutes", "3"], ["--budget", "0"], ["--budget", "nan"], ["--minutes", "0.5"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_strange_words_are_reported_before_anything_is_recorded(
    tone_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "from_microphone", None)
    assert main(["--model", str(tone_bundle), "--words", "low,loud"]) == 2
    assert "does not know 'loud'" in capsys.readouterr().err


class FakeMicrophone:
    """Plays the room and then Ctrl-C, as someone who has to leave."""

    audio: np.ndarray

    def __init__(self, device: object, tell: Callable[[str], None], channel: object) -> None:
        assert channel == 2
        self.device = type("Device", (), {"name": "Fake"})

    def __enter__(self) -> "FakeMicrophone":
        return self

    def __exit__(self, *_: object) -> None: ...

    def blocks(self, rate_hz: int) -> Iterator[np.ndarray]:
        yield from np.array_split(self.audio, 100)
        signal.raise_signal(signal.SIGINT)
        yield np.zeros(0, np.float32)
        raise AssertionError("Ctrl-C was ignored")


@pytest.mark.parametrize(
    ("minutes", "reported"), [("60", "ended after 2.0 min"), ("1.5", "listening on Fake for 1.5 min")]
)
def test_what_the_microphone_heard_before_ctrl_c_counts(
    minutes: str, reported: str, room: np.ndarray, tone_bundle: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    FakeMicrophone.audio = room
    monkeypatch.setattr(microphone, "Microphone", FakeMicrophone)
    target = tmp_path / "t.toml"
    arguments = ["--minutes", minutes, "--model", str(tone_bundle), "--budget", "100", "--output", str(target)]
    assert main([*arguments, "--json", "--channel", "right"]) == 0
    captured = capsys.readouterr()
    assert reported in captured.err
    assert json.loads(captured.out)["hours"] == pytest.approx(
        min(float(minutes) / 60, len(room) / RATE / 3600), rel=0.02
    )
    assert load_thresholds(target, WORDS)


def test_a_second_ctrl_c_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMicrophone.audio = np.zeros(100 * RATE, np.float32)
    monkeypatch.setattr(microphone, "Microphone", FakeMicrophone)
    before = signal.default_int_handler
    signal.signal(signal.SIGINT, before)
    blocks = from_microphone(parse(["--channel", "2"]), RATE, Console(quiet=True))
    next(blocks)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    blocks.close()
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_in_files_ends_in_one_line(
    wav: Path, tone_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Iterator[np.ndarray]:
        yield np.zeros(RATE, np.float32)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(module, "read_blocks", interrupted)
    arguments = ["--audio", str(wav), "--model", str(tone_bundle), "--output", str(tmp_path / "t.toml")]
    assert main(arguments) == 1
    assert capsys.readouterr().err == "interrupted; nothing was saved\n"


def test_paths_named_twice_count_once(wav: Path) -> None:
    assert len(list(from_files([str(wav), str(wav.parent)], RATE, print))) == 1
