"""The command line, as its own process where that is what a user would see."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech import listen

if os.name == "posix":
    import pty

posix = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals and POSIX signals")
DEADLINE_S = 120.0
"""How long a busy machine gets for what takes a second."""
LISTEN = [sys.executable, "-m", "speech.listen"]
SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LISTEN, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, **options)  # type: ignore[call-overload]


def raw(path: Path, rate: int) -> bytes:
    samples, own = soundfile.read(path, dtype="int16")
    assert own == rate
    return samples.astype("<i2").tobytes()


def words(output: str) -> list[str]:
    return [json.loads(line)["word"] for line in output.splitlines()]


def test_the_demo_prints_exactly_what_is_spoken() -> None:
    begin = time.monotonic()
    done = run("--demo", "--json")
    length_s = soundfile.info(listen.DEMO).duration
    assert words(done.stdout) == SPOKEN
    assert done.returncode == 0
    assert time.monotonic() - begin > length_s - 0.5, "the demo must be paced like a microphone"
    assert f"heard {length_s:.1f} s, 10 commands" in done.stderr


def test_lines_for_people_hold_time_word_and_confidence() -> None:
    lines = run("--file", str(listen.DEMO)).stdout.splitlines()
    assert [line.split()[2] for line in lines] == SPOKEN
    times = [float(line.split()[0]) for line in lines]
    assert times == sorted(times)
    assert all(0 < float(line.split()[3]) <= 1 for line in lines)


def test_json_lines_keep_the_contract() -> None:
    for line in run("--file", str(listen.DEMO), "--json").stdout.splitlines():
        found = json.loads(line)
        assert list(found) == ["word", "start_s", "end_s", "confidence", "at_s"]
        assert 0 <= found["start_s"] < found["end_s"] <= found["at_s"] < found["end_s"] + 0.75


def test_several_files_are_distinguished_and_one_bad_one_does_not_stop_the_rest(tmp_path: Path) -> None:
    demo, missing = str(listen.DEMO), str(tmp_path / "missing.wav")
    done = run("--json", "--seconds", "3", "--file", demo, missing, demo)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["word"] for f in found] == ["yes", "no"] * 2
    assert {f["file"] for f in found} == {demo}
    assert done.stderr.splitlines()[0] == f"error: no such file: {missing}"
    assert done.returncode == 1


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_stdin_at_any_rate_hears_what_a_file_holds(tmp_path: Path, rate: int) -> None:
    import soxr

    samples, own = soundfile.read(listen.DEMO)
    path = tmp_path / "demo.wav"
    soundfile.write(path, soxr.resample(samples, own, rate), rate, subtype="PCM_16")
    from_file = run("--json", "--file", str(path))
    piped = subprocess.run(
        [*LISTEN, "--stdin", "--rate", str(rate), "--json"],
        input=raw(path, rate) + b"\0",
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert piped.returncode == 0
    without_time = [
        {key: value for key, value in json.loads(line).items() if key != "time"} for line in piped.stdout.splitlines()
    ]
    assert without_time == [json.loads(line) for line in from_file.stdout.splitlines()]
    found = words(from_file.stdout)
    if rate > 8000:
        assert found == SPOKEN
    else:  # the upper half of the band is missing, and with it what tells many words: see the model card
        assert len(found) >= 4
        assert "note: recorded at 8000 Hz" in from_file.stderr
        assert b"note: recorded at 8000 Hz" in piped.stderr
        assert found == [word for word in SPOKEN if word in found]


@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT"])
def test_stereo_at_44100_hz_is_heard(tmp_path: Path, subtype: str) -> None:
    import soxr

    samples, own = soundfile.read(listen.DEMO)
    path = tmp_path / "stereo.wav"
    stereo = np.stack([soxr.resample(samples, own, 44100)] * 2, 1)
    soundfile.write(path, stereo, 44100, subtype=subtype)
    assert words(run("--json", "--file", str(path)).stdout) == SPOKEN


def test_words_limits_what_is_reported() -> None:
    assert words(run("--json", "--file", str(listen.DEMO), "--words", "off, yes").stdout) == ["yes", "off"]
    options = ("--words", "left,right,stop", "--threshold", "0.8")  # the README's
    assert words(run("--json", "--file", str(listen.DEMO), *options).stdout) == ["left", "right", "stop"]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentence that ends the demo recording, then its commands from the first on."""
    samples, rate = soundfile.read(listen.DEMO)
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    soundfile.write(path, np.concatenate([samples[-4 * rate :], samples]), rate)
    return path


def test_a_command_right_after_talk_is_rejected(talk: Path) -> None:
    heard = words(run("--json", "--file", str(talk)).stdout)
    assert heard == SPOKEN[1:], "it is heard again after two seconds"
    assert words(run("--json", "--file", str(talk), "--after-talk", "0").stdout) == SPOKEN
    assert words(run("--json", "--file", str(talk), "--after-talk", "5").stdout) == SPOKEN[3:]


def test_the_former_name_of_after_talk_is_still_understood(talk: Path) -> None:
    assert words(run("--json", "--file", str(talk), "--pause", "0").stdout) == SPOKEN
    assert not re.search(r"--pause(?!-file)", run("--help").stdout)


def test_rejected_lines_tell_the_reason(talk: Path) -> None:
    done = run("--json", "--rejected", "--file", str(talk), "--words", "yes,no,up,down", "--seconds", "16")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    reported = [(line["reason"], line["word"]) for line in lines if "rejected" in line]
    assert reported == [
        ("too long", ""),
        ("after talk", "yes"),
        *[("not asked for", w) for w in SPOKEN[4:]][: len(reported) - 2],
    ]
    assert len(reported) >= 5
    assert [line["word"] for line in lines if "rejected" not in line] == ["no", "up", "down"]
    fields = ["rejected", "reason", "word", "start_s", "end_s", "confidence", "at_s"]
    assert all(list(line) == fields and line["rejected"] is True for line in lines if "rejected" in line)
    assert [line["at_s"] for line in lines] == sorted(line["at_s"] for line in lines), "each when it is decided"
    unsure = run("--json", "--rejected", "--file", str(listen.DEMO), "--threshold", "1", "--words", "yes").stdout
    assert json.loads(unsure.splitlines()[0])["reason"] == "unsure"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--words", "yes,loud", "--demo"], 2, "'loud'"),
        (["--words", "", "--demo"], 2, "does not know"),
        (["--threshold", "7", "--demo"], 2, "threshold=7.0"),
        (["--threshold", "x", "--demo"], 2, "invalid float"),
        (["--after-talk", "nan", "--demo"], 2, "after_talk_s=nan"),
        (["--after-talk", "-1", "--demo"], 2, "after_talk_s=-1.0"),
        (["--after-talk", "3601", "--demo"], 2, "after_talk_s=3601.0"),
        (["--rejected", "--demo"], 2, "--rejected belongs to --json"),
        (["--demo", "--stdin"], 2, "not allowed with"),
        (["--demo", "--device", "1"], 2, "not allowed with"),
        (["--rate", "8000", "--demo"], 2, "--rate belongs to --stdin"),
        (["--realtime", "--demo"], 2, "--realtime belongs to --file"),
        (["--no-reconnect", "--demo"], 2, "--no-reconnect belongs to the microphone"),
        (["--actions", "no/such.toml", "--demo"], 2, "no/such.toml: No such file"),
        (["--seconds", "-1", "--demo"], 2, "--seconds must be positive"),
        (["--stdin", "--rate", "10"], 1, "sample rate of 10 Hz"),
        (["--model", "no/such.onnx", "--demo"], 1, "no model at no/such.onnx"),
        (["--file", "tests"], 1, "is a folder"),
    ],
)
def test_wrong_usage_ends_in_one_clear_line(arguments: list[str], status: int, message: str) -> None:
    done = run(*arguments, stdin=subprocess.DEVNULL)
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("content", [b"", b"this is no audio", b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_broken_files_end_in_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    done = run("--file", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "broken.wav" in line


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fake.onnx"
    path.write_bytes(b"not a model")
    done = run("--model", str(path), "--demo")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "is not an ONNX model" in line


def test_nan_samples_end_in_one_clear_line(tmp_path: Path) -> None:
    samples = np.zeros(16000)
    samples[9000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    done = run("--file", str(tmp_path / "nan.wav"))
    assert done.returncode == 1
    assert "NaN" in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(kind: signal.Signals) -> None:
    with subprocess.Popen([*LISTEN, "--demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert "listening" in process.stderr.readline()
        assert "yes" in process.stdout.readline()
        process.send_signal(kind)
        rest = process.stderr.read()
        assert process.wait(DEADLINE_S) == 0
    assert rest.startswith("heard ")
    assert len(rest.splitlines()) == 1


def test_a_closed_pipe_ends_it_quietly() -> None:
    with subprocess.Popen(
        [*LISTEN, "--file", str(listen.DEMO)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 0
        assert b"Traceback" not in process.stderr.read()


def test_lines_come_while_the_audio_still_runs() -> None:
    data = raw(listen.DEMO, 16000)
    with subprocess.Popen([*LISTEN, "--stdin", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(data[: 2 * 16000 * 2])
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["word"] == "yes"  # stdin is still open
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0


def test_a_long_file_does_not_grow_the_memory(tmp_path: Path, tone_bundle: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for _ in range(15):
            file.write(np.zeros(60 * 16000, np.int16))
    script = (
        "import resource, sys; from speech.listen import main; status = main(sys.argv[1:]); "
        "print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak_mb(*seconds: str) -> float:
        arguments = ["--model", str(tone_bundle), "--file", str(path), *seconds]
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        status, peak_kb = map(int, done.stdout.split())
        assert status == 0
        return peak_kb / 1024

    assert peak_mb() < peak_mb("--seconds", "60") + 10  # as float32, 15 minutes are 58 MB


def test_no_portaudio_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for arguments in ([], ["--wait"], ["--list-devices"]):
        assert listen.main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "apt-get install libportaudio2" in line


def test_a_terminal_for_stdin_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(SystemExit) as stop:
        listen.main(["--stdin"])
    assert stop.value.code == 2
    assert "from a pipe" in capsys.readouterr().err


def test_listening_needs_none_of_the_training_stack() -> None:
    script = (
        "import sys; from speech.listen import main; from speech import Recognizer, Listener, Detection, Prediction; "
        "assert main(['--file', sys.argv[1]]) == 0; "
        "heavy = {'torch', 'torchaudio', 'lightning', 'librosa', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(listen.DEMO)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_free() -> None:
    script = "import sys, speech; sys.exit(bool({'numpy', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], env=dict(os.environ)).returncode == 0


def with_terminal(*arguments: str, columns: int = 80) -> tuple[str, str, int]:
    """stdout, what a terminal for stderr was sent, and the exit status."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([*LISTEN, *arguments], stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        sent: list[bytes] = []

        def drain() -> None:
            with suppress(OSError):  # how Linux says that the other end is closed
                while data := os.read(ours, 4096):
                    sent.append(data)

        reader = threading.Thread(target=drain)
        reader.start()
        assert process.stdout
        output = process.stdout.read().decode()
        status = process.wait(DEADLINE_S)
        reader.join(10)
        os.close(ours)
    return output, b"".join(sent).decode(), status


ERASE = "\r\x1b[K"


@posix
def test_a_terminal_gets_a_status_line_that_vanishes() -> None:
    output, sent, status = with_terminal("--demo", "--json", "--seconds", "3.2")
    assert status == 0
    assert words(output) == ["yes", "no"], "stdout is clean"
    drawn = [text for text in sent.split(ERASE) if text.startswith("[")]
    assert 3 <= len(drawn) <= 42, "at most ten a second; a busy machine has time for fewer"
    assert all(re.fullmatch(r"\[[# ]{20}\] [ -]\d\d? dB(  \w+ \d\.\d\d)*", text.rstrip()) for text in drawn), drawn
    assert any("##########" in text for text in drawn), "the words are loud"
    assert any("[      " in text for text in drawn), "the pauses are not"
    assert re.search(r"yes \d\.\d\d  no \d\.\d\d", drawn[-1])
    *_, before, summary = sent.split(ERASE)
    assert before.startswith("[")
    assert summary == "heard 3.2 s, 2 commands\r\n", "the status line is gone before"


@posix
def test_the_status_line_tells_why_a_command_was_not_reported(talk: Path) -> None:
    _, sent, _ = with_terminal("--file", str(talk), "--realtime", "--seconds", "6", "--words", "yes,no")
    drawn = [text for text in sent.split(ERASE) if text.startswith("[")]
    assert re.search(r"\(yes \d\.\d\d: after talk\)$", drawn[-1].rstrip())
    assert "too long" not in sent, "talk is no command"


@posix
def test_a_narrow_terminal_is_not_overrun() -> None:
    _, sent, _ = with_terminal("--demo", "--seconds", "2.5", columns=24)
    drawn = [text for text in sent.split(ERASE) if text.startswith("[")]
    assert drawn
    assert max(map(len, drawn)) == 23


@posix
@pytest.mark.parametrize(("arguments", "expected"), [(["--quiet"], ""), (["--quiet", "--words", "loud"], "error: ")])
def test_quiet_leaves_only_errors(arguments: list[str], expected: str) -> None:
    output, sent, _ = with_terminal("--demo", "--seconds", "2", "--json", *arguments)
    assert sent.startswith(expected)
    assert len(sent.splitlines()) == bool(expected)
    assert words(output) == ([] if expected else ["yes"])


def test_without_a_terminal_there_is_no_status_line() -> None:
    done = run("--demo", "--seconds", "2", "--json")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["listening", "heard"]
    assert "\x1b" not in done.stdout + done.stderr
    quiet = run("--file", str(listen.DEMO), "--quiet", "--json")
    assert (len(quiet.stdout.splitlines()), quiet.stderr) == (10, "")


def test_words_set_off_actions(tmp_path: Path) -> None:
    note = tmp_path / "note"
    script = f"import os; open({str(note)!r}, 'a').write(os.environ['SPEECH_WORD'] + ' ')"
    actions = tmp_path / "actions.toml"
    command = json.dumps([sys.executable, "-S", "-c", script])
    actions.write_text(f"[left]\nrun = {command}\n[off]\nrun = {command}\n")
    done = run("--file", str(listen.DEMO), "--actions", str(actions))
    assert done.returncode == 0, done.stderr
    assert sorted(note.read_text().split()) == ["left", "off"], "it waits for the last one"


@posix
def test_what_hangs_is_ended_with_the_program(tmp_path: Path) -> None:
    actions, note = tmp_path / "actions.toml", tmp_path / "pid"
    actions.write_text(f"[yes]\nrun = ['sh', '-c', 'echo $$ > {note}; exec sleep 1000']\ntimeout_s = inf\n")
    with subprocess.Popen(
        [*LISTEN, "--demo", "--actions", str(actions)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert "yes" in process.stdout.readline()
        while not note.exists() or not note.read_text():
            time.sleep(0.05)
        process.terminate()
        process.send_signal(signal.SIGINT)  # a second one does not disturb the end
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
    assert "action yes: ended early" in errors
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_actions_are_checked_before_anything_is_listened_to(tmp_path: Path) -> None:
    actions = tmp_path / "actions.toml"
    actions.write_text("[left]\nrun = ['true']\n")
    done = run("--actions", str(actions), "--words", "yes,no")
    assert done.returncode == 2
    assert done.stderr == f"error: {actions}: [left] is not one of the words: yes, no\n"


def test_results_that_can_not_be_written_end_in_one_clear_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*LISTEN, "--file", str(listen.DEMO)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: can't read the input or write the results: No space left on device"
    assert "Traceback" not in done.stderr


@posix
def test_nobody_who_reads_stderr_is_no_reason_to_stop() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*LISTEN, "--file", str(listen.DEMO)], stdout=subprocess.PIPE, stderr=theirs, timeout=DEADLINE_S
    )
    os.close(theirs)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 10


def test_an_ignored_interrupt_stays_ignored() -> None:
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from speech import listen; listen.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, "--demo", "--seconds", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr
        assert b"listening" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=DEADLINE_S)
        assert b"yes" in out, "as one that a shell put in the background"


def test_thresholds_of_single_words_are_taken_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.toml"
    path.write_text("[thresholds]\nleft = 0.999\ngo = 0.999\n")
    found = words(run("--file", str(listen.DEMO), "--json", "--thresholds", str(path)).stdout)
    assert found == [word for word in SPOKEN if word not in ("left", "go")]
    path.write_text("[thresholds]\nlet = 0.9\nLeft = 0.999\n")
    done = run("--file", str(listen.DEMO), "--json", "--thresholds", str(path))
    assert words(done.stdout) == [word for word in SPOKEN if word != "left"]
    assert f"note: {path}: the model does not know 'let'; it knows" in done.stderr


def test_a_grammar_is_checked_at_the_start(tmp_path: Path) -> None:
    done = run("--file", str(listen.DEMO), "--grammar", "(left | rihgt)+")
    assert done.returncode == 2
    assert "column 9: 'rihgt' is not a word of the model" in done.stderr
    done = run("--file", str(listen.DEMO), "--grammar", "left | right")
    assert done.returncode == 2
    assert "recognises sequences" in done.stderr


@pytest.mark.parametrize(
    ("log", "model", "message"),
    [
        ("left left stop\nyes\nlfet", "connected", "log.txt, line 3: 'lfet' is not a word of the model"),
        ("", "connected", "log.txt: no words"),
        (None, "connected", "log.txt: No such file or directory"),
        (
            "left left stop",
            "commands",
            "a language model needs a bundle that recognises sequences, such as --model connected",
        ),
    ],
)
def test_a_wrong_language_model_ends_in_one_line(tmp_path: Path, log: str | None, model: str, message: str) -> None:
    if log is not None:
        (tmp_path / "log.txt").write_text(log)
    done = run("--file", str(listen.DEMO), "--model", model, "--language-model", str(tmp_path / "log.txt"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert message in done.stderr


def test_the_language_model_of_a_log_is_heard_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was said before raises the confidence of the same words, and lowers that of others."""
    (tmp_path / "log.txt").write_text(100 * "yes\n")
    demo = ["--model", "connected", "--file", str(listen.DEMO), "--json"]
    confidences = []
    for option in ([], ["--language-model", str(tmp_path / "log.txt")]):
        assert listen.main([*demo, *option]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        confidences.append({one["word"]: one["confidence"] for one in found})
    without, with_it = confidences
    assert set(with_it) <= set(without) == set(SPOKEN)
    assert with_it["yes"] > without["yes"]
    assert all(with_it[word] < without[word] for word in with_it if word != "yes")


def test_the_shipped_bundle_for_sequences_hears_the_demo() -> None:
    demo = ("--model", "connected", "--file", str(listen.DEMO), "--json")
    assert words(run(*demo).stdout) == SPOKEN
    assert words(run(*demo, "--grammar", "left | (yes no) | stop").stdout) == ["yes", "no", "left", "stop"]
