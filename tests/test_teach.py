"""`speech-teach` as a user meets it: from files, at a microphone, and what it says when something is wrong."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from sound_room import DEADLINE_S, Lines, Room, needs_sound

from speech import Listener, OwnWords, Recognizer, listen, teach
from speech.own.words import MOST_RECORDINGS
from speech.sound import microphone
from speech.sound.files import read, resample
from speech.sound.microphone import Microphone

RATE = 16000
PLACES_S = {"yes": (0.45, 1.55), "stop": (8.2, 9.4)}
"""Where the demo recording holds these words, with pauses."""


def repeated(word: str, n: int) -> list[np.ndarray]:
    """A word of the demo said n times, each a little faster or slower and louder or softer."""
    begin, end = (round(place_s * RATE) for place_s in PLACES_S[word])
    said = read(listen.DEMO, RATE)[begin:end]
    rates = [RATE, 16600, 15400, 16300, 15700][:n]
    return [gain * resample(said, rate, RATE) for rate, gain in zip(rates, (1, 0.8, 0.9, 1.1, 0.7), strict=False)]


def written(folder: Path, word: str, n: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{word} {number}.wav" for number in range(n)]
    for path, samples in zip(paths, repeated(word, n), strict=True):
        soundfile.write(path, samples, RATE)
    return [str(path) for path in paths]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "own"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """`speech-teach` with these arguments: exit status, lines on stdout, lines on stderr."""

    def call(*arguments: str) -> SimpleNamespace:
        try:
            status = teach.main([*arguments, "--own", str(home)])
        except SystemExit as ended:
            status = int(str(ended.code))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return SimpleNamespace(status=status, out=captured.out.splitlines(), err=captured.err.splitlines())

    return call


Run = Callable[..., SimpleNamespace]


def test_a_taught_word_is_heard_beside_the_models(
    run: Run, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = run("Jawohl", "--files", *written(tmp_path / "in", "yes", 5), "--json")
    assert taught.status == 0, taught.err
    reported = json.loads(taught.out[0])
    assert (reported["word"], reported["n_recordings"]) == ("jawohl", 5)
    assert "yes" in [confusion["word"] for confusion in reported["confusions"]], "it is the model's yes, after all"

    listener = Listener(Recognizer.load(own=OwnWords.load(home)))
    OwnWords.load(home).forget("jawohl")
    assert [d.word for d in listener.listen([read(listen.DEMO, RATE)[: 2 * RATE]])] == ["yes"]
    OwnWords.load(home).add("jawohl", repeated("yes", 5))
    assert [d.word for d in listener.listen([read(listen.DEMO, RATE)[: 2 * RATE]])] == ["jawohl"], "while it runs"

    def words(*arguments: str) -> list[str]:
        assert listen.main(["--file", str(listen.DEMO), "--json", "--quiet", *arguments]) == 0
        return [json.loads(line)["word"] for line in capsys.readouterr().out.splitlines()]

    alone = words("--no-own")
    assert alone[0] == "yes"
    assert words("--own", str(home)) == ["jawohl", *alone[1:]]
    assert words("--own", str(home), "--words", "jawohl,stop") == ["jawohl", "stop"]
    assert words("--own", str(home), "--wake", "Jawohl", "--wake-for", "4") == ["jawohl", *alone[1:4]]


def test_list_export_and_forget(run: Run, home: Path, tmp_path: Path) -> None:
    files = written(tmp_path / "in", "yes", 3)
    assert run("lamp", "--files", str(tmp_path / "in")).status == 0
    listed = run("--list")
    assert len(listed.out) == 1
    assert listed.out[0].split()[:3] == ["lamp", "3", "recordings"]
    assert run("--export", str(tmp_path / "out")).status == 0
    assert len(list((tmp_path / "out" / "lamp").glob("*.wav"))) == 3
    (tmp_path / "out" / "lamp" / "mine.txt").write_bytes(b"")
    assert run("lamp", "--files", *files[:2], "--add").status == 0
    assert run("--export", str(tmp_path / "out")).status == 0
    assert len(list((tmp_path / "out" / "lamp").glob("[0-9]*.wav"))) == 5, "not mixed with the older three"
    assert (tmp_path / "out" / "lamp" / "mine.txt").exists(), "what others put there stays"
    assert run("--list").out[0].split()[1] == "5"
    assert run("--forget", "Lamp").status == 0
    assert run("--list").out == []
    assert not list(home.rglob("*.wav"))
    gone = run("--forget", "lamp")
    assert (gone.status, gone.err) == (2, ["error: no own word 'lamp'; there are none"])
    assert run("lamp", "--files", str(tmp_path / "out" / "lamp")).status == 0, "what was exported can be taught again"


def test_one_recording_works_and_asks_for_more(run: Run, tmp_path: Path) -> None:
    taught = run("lamp", "--files", *written(tmp_path / "in", "yes", 1))
    assert taught.status == 0
    assert any("say it more often: speech-teach 'lamp' --add" in line for line in taught.out)


def test_another_word_among_the_recordings_is_left_out(run: Run, tmp_path: Path) -> None:
    files = written(tmp_path / "in", "stop", 1) + written(tmp_path / "in", "yes", 3)
    taught = run("lamp", "--files", *files, "--json")
    assert json.loads(taught.out[0])["n_recordings"] == 3
    assert "note: sounds like another word and is left out: recording 1 of 4; was 'lamp' said there?" in taught.err


@pytest.mark.parametrize("name", ["a/b", "🎉", "_unknown_", "..", ""])
def test_names_that_can_not_be_taught(run: Run, home: Path, name: str) -> None:
    refused = run(name, "--files", "nothing.wav")
    assert refused.status == 2
    assert len(refused.err) == 1
    assert "can't be the name" in refused.err[0]
    assert not home.exists()


def test_a_word_of_the_model_is_learnt_in_ones_own_voice(
    run: Run, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody whose `off` sounds like this `yes`: the recordings make it `off`."""
    assert run("Off", "--files", *written(tmp_path / "in", "yes", 5)).status == 0
    listen.main(["--file", str(listen.DEMO), "--json", "--quiet", "--own", str(home)])
    heard = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert heard[0]["word"] == "off"
    assert "off" in [one["word"] for one in heard[1:]], "and the model's own stays"


def test_recordings_that_were_trimmed_are_taken(run: Run, tmp_path: Path) -> None:
    paths = written(tmp_path / "in", "stop", 3)
    for path in paths:
        samples = read(Path(path), RATE)
        loud = np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max())
        soundfile.write(path, samples[loud[0] : loud[-1] + 1], RATE)
    taught = run("lamp", "--files", *paths, "--json")
    assert json.loads(taught.out[0])["n_recordings"] == 3
    assert taught.err == []


def test_what_listen_recorded_is_asked_about(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, played = tmp_path / "kept", []
    written(kept, "stop", 2)
    written(kept, "yes", 4)
    (kept / "yes 0.json").write_text("{}")
    monkeypatch.setattr(teach, "play", lambda waveform, console: not played.append(len(waveform)))

    def answered(*answers: str) -> SimpleNamespace:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{answer}\n" for answer in answers)))
        return run("lamp", "--from", str(kept), "--json")

    first = answered("n", "", "y", "Y", "yes", "q")
    assert (first.status, len(played)) == (0, 6)
    assert json.loads(first.out[0])["n_recordings"] == 3
    word = json.loads((home / "word-lamp" / "word.json").read_text())
    assert (len(word["recordings"]), len(word["refused"])) == (3, 1)
    second = answered("y", "n")
    assert any(line.startswith("2 utterances") for line in second.err), "what was answered is not asked again"
    assert json.loads(second.out[0])["n_recordings"] == 4, "the near miss comes before the other word"
    assert len(json.loads((home / "word-lamp" / "word.json").read_text())["refused"]) == 2
    assert answered().err[-1] == "error: no usable recording of 'lamp'; nothing was saved"


def test_a_full_word_is_refused_before_anybody_speaks(run: Run, home: Path) -> None:
    OwnWords.load(home).add("lamp", [repeated("yes", 1)[0]] * MOST_RECORDINGS)
    refused = run("lamp", "--add", "--times", "1")
    assert (refused.status, refused.err) == (2, ["error: 101 recordings of 'lamp'; it takes 1 to 100"])


def test_any_name_can_be_printed(run: Run, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("café", "--files", *written(tmp_path / "in", "yes", 1)).status == 0
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as ascii_only:
        monkeypatch.setattr("sys.stdout", ascii_only)
        assert teach.main(["--list", "--own", str(home)]) == 0
        ascii_only.flush()
        assert b"caf" in ascii_only.buffer.getvalue()


def test_files_that_hold_no_word(run: Run, home: Path, tmp_path: Path) -> None:
    silent, damaged, empty = tmp_path / "silent.wav", tmp_path / "damaged.wav", tmp_path / "folder"
    soundfile.write(silent, np.zeros(2 * RATE), RATE)
    damaged.write_bytes(b"RIFF????WAVE")
    empty.mkdir()
    for path, last in (
        (silent, "error: no usable recording of 'lamp'; nothing was saved"),
        (damaged, f"error: {damaged} can't be read as audio"),
        (empty, f"error: no audio files in {empty}"),
        (tmp_path / "missing.wav", f"error: no such file: {tmp_path / 'missing.wav'}"),
    ):
        failed = run("lamp", "--files", str(path))
        assert failed.status == 1
        assert failed.err[-1].startswith(last)
    assert not home.exists()
    (empty / "notes.txt").write_text("yes, three times")
    written(empty, "yes", 2)
    taught = run("lamp", "--files", str(empty), "--json")
    assert json.loads(taught.out[0])["n_recordings"] == 2
    assert "notes.txt" not in "".join(taught.err), "what is no audio is left out"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["lamp", "--list"],
        ["--times", "3"],
        ["lamp", "--files", "a.wav", "--times", "3"],
        ["lamp", "--times", "0"],
        ["lamp", "--files", "a.wav", "--from", "b"],
        ["--from", "b"],
        ["lamp", "--files", "a.wav", "--channel", "left"],
    ],
)
def test_wrong_usage(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).status == 2


class Spoken(Microphone):
    """A microphone at which these sounds are heard, and then whatever `end` does."""

    sounds: tuple[np.ndarray, ...] = ()
    end: BaseException = KeyboardInterrupt()

    def __init__(self, *arguments: object, **named: object) -> None:
        self._device = SimpleNamespace(name="a microphone", sample_rate_hz=RATE)

    @property
    def device(self) -> SimpleNamespace:  # type: ignore[override]
        return self._device

    def __enter__(self) -> "Spoken":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def blocks(self, sample_rate_hz: int) -> Iterator[np.ndarray]:
        room = 1e-4 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
        for sound in self.sounds:
            yield from np.array_split(np.concatenate([room, sound, room]).astype(np.float32), 60)
        raise self.end


def test_at_the_microphone_each_recording_is_counted_or_refused_with_a_reason(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yes, stop = repeated("yes", 3), repeated("stop", 1)[0]
    loud = np.clip(20 * yes[0], -1, 1)
    monkeypatch.setattr(Spoken, "sounds", (yes[0], loud, stop, yes[1], yes[2], yes[0]))
    monkeypatch.setattr(microphone, "Microphone", Spoken)
    taught = run("lamp", "--times", "3")
    assert taught.status == 0
    counts = [line.strip() for line in taught.err if line.startswith("  ")]
    assert counts == [
        "1 of 3",
        "1 of 3, not this one: too loud, the microphone clips: move further away, or lower its level",
        "1 of 3, not this one: unlike the others: say it again, the same way",
        "2 of 3",
        "3 of 3",
    ]
    assert any("left out: recording 2 of 4" in line for line in taught.err)
    assert len(list(home.rglob("*.wav"))) == 3


def test_a_device_that_is_not_there_is_one_line(run: Run, home: Path) -> None:
    for device in ("no such device", "\u00b2"):  # a digit that is no number
        refused = run("lamp", "--device", device)
        assert (refused.status, len(refused.err)) == (1, 1)
    assert not home.exists()


def test_ctrl_c_half_way_saves_nothing(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoken, "sounds", tuple(repeated("yes", 2)))
    monkeypatch.setattr(microphone, "Microphone", Spoken)
    stopped = run("lamp")
    assert (stopped.status, stopped.err[-1]) == (1, "interrupted; nothing was saved")
    assert not home.exists()


@needs_sound
def test_a_word_is_taught_at_a_real_microphone(room: Room, home: Path, tmp_path: Path) -> None:
    files = written(tmp_path / "in", "yes", 3)
    command = [sys.executable, "-m", "speech.teach", "lamp", "--times", "2", "--json", "--own", str(home)]
    with subprocess.Popen(
        command, env=room.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        results, reported = Lines(process.stdout), Lines(process.stderr)
        try:
            reported.until('Say "lamp" 2 times')
            for path in files:  # one may begin before the device delivers
                room.play(Path(path))
                if process.poll() is not None or any("2 of 2" in line for line in reported.now()):
                    break
            assert json.loads(results.until("lamp"))["n_recordings"] == 2
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
    assert len(list(home.rglob("*.wav"))) == 2
