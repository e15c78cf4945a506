"""The command line; as its own process where signals, pipes, terminals or imports are the point."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from conftest import Done

from speech import listen
from speech.console import ERASE, counted
from speech.segment import ListenerConfig
from speech.sound.sources import limited, number_or_name

if os.name == "posix":
    import pty

posix = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals, pipes and signals of POSIX")
DEADLINE_S = 300.0
"""How long a busy machine gets for what takes a second."""
LISTEN = [sys.executable, "-m", "speech.listen"]
SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]
DEMO = ["--json", "--file", str(listen.DEMO)]
Run = Callable[..., Done]


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [*LISTEN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, **options)  # type: ignore[call-overload]


def demo_as(container: str, subtype: str | None = None, channels: int = 1, rate: int = 16000) -> bytes:
    samples, own = soundfile.read(listen.DEMO)
    file = io.BytesIO()
    samples = np.stack([soxr.resample(samples, own, rate)] * channels, 1)
    soundfile.write(file, samples, rate, subtype, format=container)
    return file.getvalue()


# What is printed.


def test_people_read_lines_and_programs_json(run_listen: Run) -> None:
    lines = run_listen("--file", listen.DEMO).out.splitlines()
    assert [line.split()[2] for line in lines] == SPOKEN
    done = run_listen(*DEMO)
    assert (done.status, done.words) == (0, SPOKEN)
    assert done.err.splitlines() == ["heard 17.0 s, 10 commands"]
    for line, found in zip(lines, done.found, strict=True):
        assert list(found) == ["word", "start_s", "end_s", "confidence", "at_s"]
        assert 0 <= found["start_s"] < found["end_s"] <= found["at_s"] < found["end_s"] + 0.75
        assert float(line.split()[0]) == pytest.approx(found["start_s"], abs=0.006)
        assert float(line.split()[3]) == pytest.approx(found["confidence"], abs=0.006)
    assert run_listen(*DEMO, "--quiet").err == ""
    assert counted(1, "command") == "1 command"


def test_what_comes_in_real_time_has_the_clock_time(run_listen: Run) -> None:
    before = datetime.now().astimezone()
    (found,) = run_listen(*DEMO, "--realtime", "--seconds", "1.8").found
    passed_s = (datetime.fromisoformat(found["time"]) - before).total_seconds()
    assert found["at_s"] < passed_s < DEADLINE_S, "paced like a microphone"


def test_several_files_are_distinguished_and_one_bad_one_does_not_stop_the_rest(
    run_listen: Run, tmp_path: Path
) -> None:
    demo, missing, folder = str(listen.DEMO), str(tmp_path / "missing.wav"), tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a/demo.FLAC").write_bytes(listen.DEMO.read_bytes())
    (folder / "notes.txt").write_text("no audio")
    (tmp_path / "empty").mkdir()
    done = run_listen("--json", "--seconds", "3", "--file", demo, missing, tmp_path / "empty", folder)
    assert done.words == ["yes", "no"] * 2
    assert [found["file"] for found in done.found] == [demo] * 2 + [str(folder / "a/demo.FLAC")] * 2
    assert done.err.splitlines()[:2] == [
        f"error: no such file: {missing}",
        f"error: no audio files in {tmp_path}/empty",
    ]
    assert done.status == 1


def test_rejected_lines_tell_the_reason(run_listen: Run, talk: Path) -> None:
    done = run_listen("--json", "--rejected", "--file", talk, "--words", "yes,no,up,down", "--seconds", "16")
    rejected = [found for found in done.found if "rejected" in found]
    reported = [(found["reason"], found["word"]) for found in rejected]
    others = [("not asked for", word) for word in SPOKEN[4:]]
    assert reported == [("too long", ""), ("after talk", "yes"), *others[: len(reported) - 2]]
    assert len(reported) >= 5
    assert done.words == ["no", "up", "down"]
    fields = ["rejected", "reason", "word", "start_s", "end_s", "confidence", "at_s"]
    assert all(list(found) == fields and found["rejected"] is True for found in rejected)
    assert [found["at_s"] for found in done.found] == sorted(found["at_s"] for found in done.found)
    unsure = run_listen(*DEMO, "--rejected", "--threshold", "1", "--words", "yes").found
    assert unsure[0]["reason"] == "unsure"


# What is heard, and with which settings.


def test_words_may_be_written_in_any_case(run_listen: Run) -> None:
    assert run_listen(*DEMO, "--words", " OFF, Yes").words == ["yes", "off"]
    wake = run_listen(*DEMO, "--wake", "Left", "--wake-for", "2").words
    assert wake == ["left", "right"], "right begins 1.4 s after left, and stop later"


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentence that ends the demo recording, then its commands from the first on."""
    samples, rate = soundfile.read(listen.DEMO)
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    soundfile.write(path, np.concatenate([samples[-4 * rate :], samples]), rate)
    return path


@pytest.mark.parametrize(
    ("options", "first"), [([], 1), (["--after-talk", "0"], 0), (["--after-talk", "5"], 3), (["--pause", "0"], 0)]
)
def test_a_command_right_after_talk_is_rejected(run_listen: Run, talk: Path, options: list[str], first: int) -> None:
    """--pause is the option's name until version 0.1."""
    assert run_listen("--json", "--file", talk, *options).words == SPOKEN[first:]


def test_the_help_tells_the_defaults(run_listen: Run) -> None:
    text = " ".join(run_listen("--help").out.split())
    assert f"commands are rejected (default: {ListenerConfig.after_talk_s} s)" in text
    assert f"a command may begin (default: {ListenerConfig.wake_for_s} s)" in text
    assert not re.search(r"--pause(?!-file)", text)


@pytest.mark.parametrize(
    ("container", "subtype", "channels", "rate", "options"),
    [
        ("WAV", None, 1, 16000, ["--file", "-"]),
        ("FLAC", None, 1, 16000, ["--stdin", "--seconds", "inf"]),
        ("MP3", None, 1, 16000, ["--stdin"]),
        ("WAV", "FLOAT", 2, 44100, ["--stdin"]),
        ("RAW", "PCM_16", 2, 16000, ["--stdin", "--channels", "2"]),
        ("RAW", "PCM_16", 1, 44100, ["--stdin", "--rate", "44100"]),
        ("RAW", "FLOAT", 1, 16000, ["--stdin", "--format", "f32le"]),
        ("RAW", "PCM_24", 2, 16000, ["--stdin", "--format", "s24le", "--channels", "2"]),
    ],
)
def test_standard_input_is_what_it_is_said_to_be(
    run_listen: Run, container: str, subtype: str | None, channels: int, rate: int, options: list[str]
) -> None:
    odd = b"\0" if container == "RAW" else b""  # part of a sample
    done = run_listen("--json", *options, stdin=demo_as(container, subtype, channels, rate) + odd)
    assert (done.status, done.words) == (0, SPOKEN), done.err


def test_half_of_the_band_is_noted(run_listen: Run, tmp_path: Path) -> None:
    (tmp_path / "telephone.wav").write_bytes(demo_as("WAV", rate=8000))
    done = run_listen("--json", "--file", tmp_path / "telephone.wav")
    assert "note: recorded at 8000 Hz" in done.err
    assert len(done.words) >= 4, "what tells many words is in the upper half"
    piped = run_listen("--json", "--stdin", "--rate", "8000", stdin=demo_as("RAW", "PCM_16", rate=8000))
    assert (piped.words, "note: recorded at 8000 Hz" in piped.err) == (done.words, True)


def test_thresholds_of_single_words_are_taken_from_a_file(run_listen: Run, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.toml"
    path.write_bytes("\ufeff[thresholds]\nLeft = 0.999\ngo = 0.999\nlet = 0.9\n".encode())
    done = run_listen(*DEMO, "--thresholds", path)
    assert done.words == [word for word in SPOKEN if word not in ("left", "go")]
    assert f"note: {path}: the model does not know 'let'; it knows" in done.err


def test_the_language_model_of_a_log_is_heard_with(run_listen: Run, tmp_path: Path) -> None:
    """What was said before raises the confidence of the same words, and lowers that of others."""
    (tmp_path / "log.txt").write_text(100 * "yes\n")
    sequences = [*DEMO, "--model", "connected"]
    without, with_it = (
        {found["word"]: found["confidence"] for found in run_listen(*sequences, *options).found}
        for options in ([], ["--language-model", tmp_path / "log.txt"])
    )
    assert set(with_it) <= set(without) == set(SPOKEN)
    assert with_it["yes"] > without["yes"]
    assert all(with_it[word] < without[word] for word in with_it if word != "yes")


def test_a_grammar_limits_sequences(run_listen: Run, tmp_path: Path) -> None:
    (tmp_path / "grammar.txt").write_bytes("\ufeffleft | (yes no) | stop  # mine\r\n".encode())
    for grammar in ("left | (yes no) | stop", tmp_path / "grammar.txt"):
        done = run_listen(*DEMO, "--model", "connected", "--grammar", grammar)
        assert done.words == ["yes", "no", "left", "stop"]


def test_without_a_home_it_listens_all_the_same(
    run_listen: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "nowhere")
    for kind in ("DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", "relative")
    assert run_listen(*DEMO).words == SPOKEN
    assert [path.name for path in tmp_path.iterdir()] == ["stdin"], "no folder named ~ or relative"


def test_words_set_off_actions(run_listen: Run, tmp_path: Path) -> None:
    note, actions = tmp_path / "note", tmp_path / "actions.toml"
    script = f"import os; open({str(note)!r}, 'a').write(os.environ['SPEECH_WORD'] + ' '); print('done')"
    command = json.dumps([sys.executable, "-S", "-c", script])
    actions.write_text(f"\ufeff[Left]\nrun = {command}\n[off]\nrun = {command}\n", "utf-8")
    done = run_listen(*DEMO, "--actions", actions)
    assert done.status == 0, done.err
    assert sorted(note.read_text().split()) == ["left", "off"], "it waits for the last one"
    assert {"action left: done", "action off: done"} <= set(done.err.splitlines())


# Wrong usage and errors.


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--words", "yes,loud", "--demo"], 2, "'loud'"),
        (["--words", "", "--demo"], 2, "does not know"),
        (["--wrds", "yes", "--demo"], 2, "unrecognized arguments: --wrds yes; did you mean --words?"),
        (["--zzzz", "--demo"], 2, "unrecognized arguments: --zzzz; --help shows all options"),
        (["--threshold", "7", "--demo"], 2, "threshold=7.0"),
        (["--threshold", "x", "--demo"], 2, "invalid float"),
        (["--threshold", "0.5", "--thresholds", "t.toml", "--demo"], 2, "not allowed with"),
        (["--after-talk", "nan", "--demo"], 2, "after_talk_s=nan"),
        (["--after-talk", "-1", "--demo"], 2, "after_talk_s=-1.0"),
        (["--after-talk", "3601", "--demo"], 2, "after_talk_s=3601.0"),
        (["--rejected", "--demo"], 2, "--rejected belongs to --json"),
        (["--demo", "--stdin"], 2, "not allowed with"),
        (["--demo", "--device", "1"], 2, "not allowed with"),
        (["--rate", "8000", "--demo"], 2, "--rate belongs to --stdin"),
        (["--format", "s16le", "--demo"], 2, "--format belongs to --stdin"),
        (["--realtime", "--demo"], 2, "--realtime belongs to --file"),
        (["--no-reconnect", "--demo"], 2, "--no-reconnect belongs to the microphone"),
        (["--actions", "no/such.toml", "--demo"], 2, "no/such.toml: No such file"),
        (["--seconds", "-1", "--demo"], 2, "--seconds must be positive"),
        (["--seconds", "nan", "--demo"], 2, "--seconds must be positive"),
        (["--file=--"], 2, "--file needs a value"),
        (["--format", "s17le", "--stdin"], 2, "'s17le'"),
        (["--channels", "0", "--stdin"], 2, "from 1 to 64"),
        (["--pause-file", "x" * 5000, "--demo"], 2, "xxx: File name too long"),
        (["--grammar", "(left | rihgt)+", "--demo"], 2, "column 9: 'rihgt' is not a word of the model"),
        (["--grammar", "left | right", "--demo"], 2, "recognises sequences"),
        (["--grammar", "missing.txt", "--model", "connected", "--demo"], 2, "missing.txt: No such file or directory"),
        (["--grammar", "(" * 300 + "left", "--model", "connected", "--demo"], 2, "more than 100 nested parentheses"),
        (["--grammar", "left " * 1000 + "lfet", "--model", "connected", "--demo"], 2, "'lfet' is not a word"),
        (["--language-model", __file__, "--model", "connected", "--demo"], 2, 'line 1: \'"""the\' is not a word of'),
        (["--language-model", os.devnull, "--model", "connected", "--demo"], 2, f"{os.devnull}: no words"),
        (["--language-model", "no/log.txt", "--model", "connected", "--demo"], 2, "no/log.txt: No such file"),
        (["--language-model", __file__, "--demo"], 2, "is not a word of"),
        (["--stdin", "--rate", "10"], 1, "sample rate of 10 Hz"),
        (["--stdin"], 1, "standard input holds no audio"),
        (["--device", "²"], 1, ""),
        (["--device", "9" * 5000], 1, ""),
        (["--model", "no/such.onnx", "--demo"], 1, "no model at no/such.onnx"),
        (["--model", __file__, "--demo"], 1, "is not an ONNX model"),
    ],
)
def test_wrong_usage_ends_in_one_clear_line(run_listen: Run, arguments: list[str], status: int, message: str) -> None:
    done = run_listen(*arguments, stdin=bytes(100) if "--rate" in arguments else b"")
    assert (done.status, done.out) == (status, "")
    assert message in done.err.splitlines()[-1]
    assert len(done.err.splitlines()) <= 2  # "listening to standard input"
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.wav", b"", "broken.wav"),
        ("broken.wav", b"this is no audio", "broken.wav"),
        ("broken.wav", b"RIFF\x24\x00\x00\x00WAVEfmt ", "broken.wav"),
        ("a.raw", bytes(2000), "--stdin --rate"),
        ("b.pcm", bytes(2000), "--stdin --rate"),
        ("c.m4a", b"\0\0\0\x20ftypM4A " + bytes(1000), "ffmpeg -i "),
    ],
)
def test_broken_files_end_in_one_clear_line(
    run_listen: Run, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = run_listen("--file", tmp_path / name)
    assert (done.status, done.out) == (1, "")
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line


def test_nan_samples_end_in_one_clear_line(run_listen: Run, tmp_path: Path) -> None:
    samples = np.zeros(16000)
    samples[9000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    done = run_listen("--file", tmp_path / "nan.wav")
    assert (done.status, "NaN" in done.err.splitlines()[0]) == (1, True)


def test_actions_are_checked_before_anything_is_listened_to(run_listen: Run, tmp_path: Path) -> None:
    actions = tmp_path / "actions.toml"
    actions.write_text("[left]\nrun = ['true']\n")
    done = run_listen("--actions", actions, "--words", "yes,no")
    assert (done.status, done.err) == (2, f"error: {actions}: [left] is not one of the words: yes, no\n")


def test_no_portaudio_says_what_to_install(monkeypatch: pytest.MonkeyPatch, run_listen: Run, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    for arguments in ([], ["--list-devices"]):
        done = run_listen(*arguments)
        assert (done.status, "apt-get install libportaudio2" in done.err) == (1, True)


def test_a_terminal_for_stdin_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(SystemExit, match="2"):
        listen.parse(["--stdin"])
    assert "from a pipe" in capsys.readouterr().err


# Processes: imports, pipes, closed streams, signals.


def test_the_version_comes_without_any_library_and_listening_without_the_training_stack() -> None:
    script = (
        "import sys; import speech; from speech.listen import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "early = {'numpy', 'onnxruntime', 'soundfile'} & set(sys.modules)\n"
        "from speech import Recognizer, Listener, Detection, Prediction\n"
        "assert main(['--file', sys.argv[1]]) == 0\n"
        "heavy = {'torch', 'torchaudio', 'lightning', 'librosa', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {early | heavy}' if early | heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(listen.DEMO)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from importlib.metadata import version

    assert done.stdout.splitlines()[0] == f"-c {version('speech-commands-offline')}".replace("-c", "speech-listen")


def test_a_long_file_does_not_grow_the_memory(tmp_path: Path, tone_bundle: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for _ in range(8):
            file.write(np.zeros(60 * 16000, np.int16))
    script = (
        "import resource, sys; from speech.listen import main\n"
        "for seconds in ('30', 'inf'):\n"
        "    assert main(['--model', sys.argv[1], '--file', sys.argv[2], '--seconds', seconds]) == 0\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", script, tone_bundle, path], capture_output=True, text=True, check=True)
    first_kb, second_kb = map(int, done.stdout.split())
    assert second_kb < first_kb + 10 * 1024, "as float32, 8 minutes are 31 MB"


def test_a_closed_pipe_ends_it_quietly() -> None:
    command = [*LISTEN, "--file", str(listen.DEMO)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.readline()
        running.stdout.close()
        assert running.wait(DEADLINE_S) == 0
        assert b"Traceback" not in running.stderr.read()


@posix
def test_results_that_can_not_be_written_end_in_one_clear_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run([*LISTEN, "--demo"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert "error: can't read the input or write the results: No space left on device" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("container", "head"), [("RAW", 0), ("WAV", 44)])
def test_lines_come_while_the_audio_still_runs_in_any_pieces(container: str, head: int) -> None:
    """The last word is heard too, when half a sample follows it."""
    data = demo_as(container, "PCM_16")[: 44 + 2 * 13 * 16000] + b"\1"
    with subprocess.Popen([*LISTEN, "--stdin", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin
        assert running.stdout
        first = head + 2 * 2 * 16000
        for begin, end in ((0, 1), (1, 4098), (4098, first)):
            running.stdin.write(data[begin:end])
            running.stdin.flush()
        assert json.loads(running.stdout.readline())["word"] == "yes"  # stdin is still open
        out, _ = running.communicate(data[first:], timeout=DEADLINE_S)
        assert [json.loads(line)["word"] for line in out.splitlines()] == SPOKEN[1:]
        assert running.returncode == 0


@posix
def test_a_named_pipe_is_read_once(run_listen: Run, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(demo_as("WAV"),))
    writer.start()
    assert run_listen("--json", "--file", path).words == SPOKEN
    writer.join(DEADLINE_S)


@posix
@pytest.mark.parametrize(("encoding", "name"), [("ascii", b"gru\xdf.flac"), ("cp1252", "日本.flac".encode())])
def test_names_that_can_not_be_printed_are_heard(tmp_path: Path, encoding: str, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    with open(path, "wb") as file:
        file.write(listen.DEMO.read_bytes())
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    for option in ("--quiet", "--json"):
        arguments: list[bytes | str] = [*LISTEN, option, "--seconds", "2", "--file", path, path + b".missing"]
        done = subprocess.run(arguments, capture_output=True, env=environment)
        assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
        if option == "--json":
            assert os.fsencode(json.loads(done.stdout)["file"]) == path
        else:
            assert b" yes " in done.stdout


@posix
@pytest.mark.parametrize(
    ("closed", "arguments", "status"),
    [
        ("2>&-", ["--file", str(listen.DEMO)], 0),
        ("2>&-", ["--rate", "7"], 2),
        (">&-", ["--file", str(listen.DEMO)], 0),
        ("<&-", ["--stdin"], 1),
        ("<&- >&- 2>&-", ["--file", "no/such.wav"], 1),
        ("2>/dev/full", ["--file", str(listen.DEMO)], 0),
    ],
)
def test_closed_streams_are_no_reason_to_fail(closed: str, arguments: list[str], status: int) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *LISTEN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "error" not in done.stdout
    if closed.startswith("2>") and not status:
        assert len(done.stdout.splitlines()) == len(SPOKEN)


def test_a_window_without_a_console_needs_no_streams() -> None:
    """Whichever program it starts."""
    script = (
        "import sys; sys.stdin = sys.stdout = sys.stderr = None; import speech.teach, speech.soak, speech.calibrate; "
        "from speech import listen, teach, soak, calibrate; missing = ['no/such.wav']; "
        "sys.exit(10 * (listen.main(['--file', *missing]), calibrate.main(['--audio', *missing]), "
        "soak.main(['--model', 'none']), teach.main(['lamp', '--files', *missing])).count(1))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (40, "", "")


@posix
@pytest.mark.parametrize("begun_with", [b"", b"RIFF\xff\xff\xff\xffWAVE"])
def test_a_signal_ends_it_while_it_waits_for_audio(begun_with: bytes) -> None:
    """Also where libsndfile's C code waits."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*LISTEN, "--stdin"], stdin=pipe, stdout=pipe, stderr=pipe) as running:
        assert running.stdin
        assert running.stderr
        running.stdin.write(begun_with)
        running.stdin.flush()
        assert b"listening" in running.stderr.readline()
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        assert running.wait(DEADLINE_S) == 0
        assert b"Traceback" not in running.stderr.read()


@posix
def test_a_signal_ends_it_with_what_hangs(tmp_path: Path) -> None:
    actions, note = tmp_path / "actions.toml", tmp_path / "pid"
    actions.write_text(f"[yes]\nrun = ['sh', '-c', 'echo $$ > {note}; exec sleep 1000']\ntimeout_s = inf\n")
    command = [*LISTEN, "--demo", "--actions", str(actions)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert "yes" in running.stdout.readline()
        while not note.exists() or not note.read_text():
            time.sleep(0.05)
        running.terminate()
        running.send_signal(signal.SIGINT)  # a second one does not disturb the end
        _, errors = running.communicate(timeout=DEADLINE_S)
        assert running.returncode == 0
    lines = errors.splitlines()
    assert [line.split()[0] for line in lines] == ["listening", "action", "heard"]
    assert lines[1] == "action yes: ended early"
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_an_ignored_interrupt_stays_ignored() -> None:
    """As in one that a shell put in the background."""
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from speech import listen; listen.main()"
    command = [sys.executable, "-c", script, "--demo", "--seconds", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stderr
        assert b"listening" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=DEADLINE_S)
        assert b"yes" in out


# Terminals.


def with_terminal(*arguments: object, columns: int = 80) -> tuple[str, list[str], str, int]:
    """stdout, the status lines that a terminal for stderr was sent, what followed the last one, and the exit status."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    command = [*LISTEN, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as running:
        os.close(theirs)
        sent: list[bytes] = []

        def drain() -> None:
            with suppress(OSError):  # how Linux says that the other end is closed
                while data := os.read(ours, 4096):
                    sent.append(data)

        reader = threading.Thread(target=drain)
        reader.start()
        assert running.stdout
        output = running.stdout.read().decode()
        status = running.wait(DEADLINE_S)
        reader.join(10)
        os.close(ours)
    parts = b"".join(sent).decode().split(ERASE)
    return output, [text for text in parts if text.startswith("[")], parts[-1], status


@posix
def test_a_terminal_gets_a_status_line_that_vanishes() -> None:
    output, drawn, last, status = with_terminal("--demo", "--json", "--seconds", "3.2")
    assert status == 0
    assert [json.loads(line)["word"] for line in output.splitlines()] == ["yes", "no"], "stdout is clean"
    assert 3 <= len(drawn) <= 42, "at most ten a second; a busy machine has time for fewer"
    assert all(re.fullmatch(r"\[[# ]{20}\] [ -]\d\d? dB(  \w+ \d\.\d\d)*", text.rstrip()) for text in drawn), drawn
    assert any("##########" in text for text in drawn), "the words are loud"
    assert any("[      " in text for text in drawn), "the pauses are not"
    assert re.search(r"yes \d\.\d\d  no \d\.\d\d", drawn[-1])
    assert last == "heard 3.2 s, 2 commands\r\n", "the status line is gone before"


@posix
def test_a_narrow_terminal_is_told_why_a_command_was_not_reported(talk: Path) -> None:
    _, drawn, _, _ = with_terminal("--file", talk, "--words", "yes,no", "--seconds", "6", "--realtime", columns=52)
    assert re.search(r"\(yes \d\.\d\d: after t", drawn[-1].rstrip())
    assert not any("too long" in text for text in drawn), "talk is no command"
    assert max(map(len, drawn)) <= 51


@posix
def test_a_long_file_shows_how_far_it_is(tmp_path: Path) -> None:
    samples, rate = soundfile.read(listen.DEMO)
    path = tmp_path / "long.flac"
    soundfile.write(path, np.concatenate([samples, np.zeros(60 * rate)]), rate)
    output, drawn, last, status = with_terminal("--json", "--file", path)
    assert (status, len(output.splitlines())) == (0, 10)
    assert any(re.match(r"\[#+ +\] \d+/77 s", text) for text in drawn)
    assert not any("dB" in text for text in drawn), "no level beside it"
    assert last == "heard 77.0 s, 10 commands\r\n"
    assert with_terminal("--json", "--file", path, "--quiet", "--seconds", "70")[1:3] == ([], "")
    _, _, error, status = with_terminal("--quiet", "--words", "loud")
    assert (error.startswith("error: "), len(error.splitlines()), status) == (True, 1, 2)


# Streams.


def test_a_stream_is_cut_at_a_sample_and_waiting_ends_by_the_clock() -> None:
    blocks = [np.arange(10, dtype=np.float32) + 10 * n for n in range(4)]
    assert np.concatenate(list(limited(blocks, 2.5, 10))).tolist() == list(range(25))
    assert len(list(limited(blocks, 2.0, 10))) == 2, "nothing is waited for that is not needed"
    for endless in (None, float("inf"), 1e300):
        assert len(np.concatenate(list(limited(blocks, endless, 10)))) == 40
    waiting, sound = np.zeros(0, np.float32), np.zeros(10, np.float32)

    def slow() -> Iterator[np.ndarray]:
        yield sound
        time.sleep(0.05)
        yield from (waiting, sound)

    assert [len(block) for block in limited(slow(), 0.03, 1000)] == [10]
    assert [len(block) for block in limited(slow(), 9.0, 1000)] == [10, 0, 10]


def test_digits_name_a_device_by_number() -> None:
    assert [number_or_name(text) for text in (None, "3", "headset", "²", "٣", "-1", "9" * 5000)] == [
        None, 3, "headset", "²", "٣", "-1", "9" * 5000,
    ]  # fmt: skip
