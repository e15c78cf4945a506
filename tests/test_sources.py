"""What is piped or named on the command line, as a user's shell would do it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_listen import with_terminal

from speech import listen
from speech.sound.sources import limited, number_or_name

LISTEN = [sys.executable, "-m", "speech.listen"]
SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]
posix = pytest.mark.skipif(os.name != "posix", reason="descriptors, names and pipes of POSIX")


def heard(output: str | bytes) -> list[str]:
    return [json.loads(line)["word"] for line in output.splitlines()]


def pipe_in(data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*LISTEN, "--json", *arguments], input=data, capture_output=True, timeout=300)


def demo_as(container: str, subtype: str | None = None, channels: int = 1) -> bytes:
    samples, rate = soundfile.read(listen.DEMO)
    file = io.BytesIO()
    soundfile.write(file, np.stack([samples] * channels, 1), rate, subtype, format=container)
    return file.getvalue()


@pytest.mark.parametrize(
    ("container", "arguments"), [("WAV", ["--file", "-"]), ("FLAC", ["--stdin"]), ("MP3", ["--stdin"])]
)
def test_a_container_on_standard_input_is_recognised(container: str, arguments: list[str]) -> None:
    done = pipe_in(demo_as(container), *arguments)
    assert heard(done.stdout) == SPOKEN, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("subtype", "channels", "arguments"),
    [
        ("PCM_16", 2, ["--channels", "2"]),
        ("FLOAT", 1, ["--format", "f32le", "--rate", "16000"]),
        ("PCM_24", 2, ["--format", "s24le", "--channels", "2"]),
    ],
)
def test_raw_samples_are_what_is_said_they_are(subtype: str, channels: int, arguments: list[str]) -> None:
    done = pipe_in(demo_as("RAW", subtype, channels), "--stdin", *arguments)
    assert heard(done.stdout) == SPOKEN, done.stderr
    assert done.returncode == 0


def test_a_stream_in_odd_pieces_loses_nothing() -> None:
    """The last word, too, when half a sample follows it."""
    samples, _ = soundfile.read(listen.DEMO, dtype="int16", frames=13 * 16000)
    data = samples.astype("<i2").tobytes() + b"\1"
    with subprocess.Popen([*LISTEN, "--stdin", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for begin, end in ((0, 1), (1, 4098), (4098, len(data))):
            process.stdin.write(data[begin:end])
            process.stdin.flush()
            time.sleep(0.1)
        process.stdin.close()
        assert heard(process.stdout.read()) == SPOKEN
        assert process.wait(300) == 0


def test_a_piped_wav_is_heard_while_it_still_comes() -> None:
    data = demo_as("WAV")
    with subprocess.Popen([*LISTEN, "--stdin", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(data[: 44 + 2 * 16000 * 2])
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["word"] == "yes"  # it is still open
        process.stdin.close()
        assert process.wait(300) == 0


@posix
@pytest.mark.parametrize("begun_with", [b"", b"RIFF\xff\xff\xff\xffWAVE", b"\0\0", b"fLaC"])
def test_a_signal_ends_it_while_it_waits_for_audio(begun_with: bytes) -> None:
    """Also where libsndfile's C code waits."""
    with subprocess.Popen(
        [*LISTEN, "--stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(begun_with)
        process.stdin.flush()
        assert b"listening" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
        assert b"Traceback" not in process.stderr.read()


def test_nothing_on_standard_input_is_reported() -> None:
    done = pipe_in(b"", "--stdin")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "error: standard input holds no audio"


@posix
def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen([*LISTEN, "--json", "--file", str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        path.write_bytes(demo_as("WAV"))
        assert heard(process.stdout.read()) == SPOKEN
        assert process.wait(300) == 0


def test_raw_files_do_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a.raw", "b.pcm", "c.m4a"):
        (tmp_path / name).write_bytes(demo_as("RAW", "PCM_16"))
    (tmp_path / "c.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(1000))
    names = [str(tmp_path / name) for name in ("a.raw", "b.pcm", "c.m4a")]
    done = subprocess.run([*LISTEN, "--json", "--file", *names, str(listen.DEMO)], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1
    assert heard(done.stdout) == SPOKEN
    assert ["--stdin --rate" in line for line in errors] == [True, True, False]
    assert "ffmpeg -i " in errors[2]
    assert "Traceback" not in done.stderr


@posix
@pytest.mark.parametrize(
    ("encoding", "name"), [("ascii", b"gru\xdf.flac"), ("utf-8", b"gru\xdf.flac"), ("cp1252", "日本.flac".encode())]
)
def test_names_that_can_not_be_printed_are_heard(tmp_path: Path, encoding: str, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    with open(path, "wb") as file:
        file.write(listen.DEMO.read_bytes())
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    arguments: list[bytes | str] = [*LISTEN, "--seconds", "2", "--file", path, path + b".missing"]
    done = subprocess.run(arguments, capture_output=True, env=environment)
    assert done.returncode == 1
    assert b" yes " in done.stdout
    assert b"Traceback" not in done.stderr
    as_json = subprocess.run([*arguments, "--json"], capture_output=True, env=environment)
    assert os.fsencode(json.loads(as_json.stdout)["file"]) == path


@posix
@pytest.mark.parametrize(
    ("closed", "arguments", "status"),
    [
        ("2>&-", ["--file", str(listen.DEMO)], 0),
        ("2>&-", ["--file", "no/such.wav"], 1),
        ("2>&-", ["--threshold", "7"], 2),
        ("2>&-", ["--rate", "7"], 2),
        (">&-", ["--file", str(listen.DEMO)], 0),
        ("<&-", ["--file", str(listen.DEMO)], 0),
        ("<&-", ["--stdin"], 1),
        ("<&- >&- 2>&-", ["--file", str(listen.DEMO)], 0),
    ],
)
def test_closed_streams_are_no_reason_to_fail(closed: str, arguments: list[str], status: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *LISTEN, *arguments], capture_output=True, text=True
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "error" not in done.stdout
    if closed in ("2>&-", "<&-") and not status:
        assert len(done.stdout.splitlines()) == len(SPOKEN)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("listen", ["--file", "no/such.wav"]), ("calibrate", ["--audio", "no/such.wav"]), ("soak", ["--model", "none"])],
)
def test_a_window_without_a_console_needs_no_streams(function: str, arguments: list[str]) -> None:
    script = (
        "import sys; sys.stdin = sys.stdout = sys.stderr = None; "
        f"from speech.{function} import main; sys.exit(main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--seconds", "nan", "--demo"], 2, "--seconds must be positive"),
        (["--device", "²"], 1, ""),
        (["--device", "9" * 5000], 1, ""),
        (["--format", "s17le", "--stdin"], 2, "'s17le'"),
        (["--format", "s16le", "--demo"], 2, "--format belongs to --stdin"),
        (["--channels", "0", "--stdin"], 2, "from 1 to 64"),
        (["--grammar", "(" * 300 + "left", "--model", "connected", "--demo"], 2, "more than 100 nested parentheses"),
        (["--grammar", "left " * 1000 + "lfet", "--model", "connected", "--demo"], 2, "'lfet' is not a word"),
    ],
)
def test_odd_settings_end_in_one_line(arguments: list[str], status: int, message: str) -> None:
    done = subprocess.run([*LISTEN, *arguments], input=b"", capture_output=True, timeout=300)
    assert done.returncode == status
    assert message in done.stderr.decode().splitlines()[-1]
    assert b"Traceback" not in done.stderr


def test_without_an_end_means_all() -> None:
    done = pipe_in(demo_as("WAV"), "--stdin", "--seconds", "inf")
    assert heard(done.stdout) == SPOKEN


@posix
def test_a_long_file_shows_how_far_it_is(tmp_path: Path) -> None:
    samples, rate = soundfile.read(listen.DEMO)
    path = tmp_path / "long.flac"
    soundfile.write(path, np.concatenate([samples, np.zeros(600 * rate)]), rate)
    output, sent, status = with_terminal("--json", "--file", str(path))
    assert status == 0
    assert heard(output) == SPOKEN
    assert re.search(r"\[#+ +\] \d+/617 s", sent)
    assert "dB" not in sent, "no level beside it"
    assert sent.endswith("heard 617.0 s, 10 commands\r\n")
    assert re.search(r"\r\x1b\[Kheard|\rheard", sent), "the bar is gone before"
    _, sent, _ = with_terminal("--json", "--file", str(path), "--quiet", "--seconds", "70")
    assert sent == ""


def test_the_version_is_reported() -> None:
    from importlib.metadata import version

    done = subprocess.run([*LISTEN, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"speech-listen {version('speech-commands-offline')}\n")


def test_a_stream_is_cut_at_a_sample() -> None:
    blocks = [np.arange(10, dtype=np.float32) + 10 * n for n in range(4)]
    assert np.concatenate(list(limited(blocks, 2.5, 10))).tolist() == list(range(25))
    assert len(list(limited(blocks, 2.0, 10))) == 2, "nothing is waited for that is not needed"
    for endless in (None, float("inf"), 1e300):
        assert len(np.concatenate(list(limited(blocks, endless, 10)))) == 40


def test_only_waiting_ends_by_the_clock() -> None:
    waiting, sound = np.zeros(0, np.float32), np.zeros(10, np.float32)
    assert [len(block) for block in limited([sound, waiting, sound], 0.03, 1000)] == [10, 0, 10]

    def slow() -> Iterator[np.ndarray]:
        yield sound
        time.sleep(0.05)
        yield from (waiting, sound)

    assert [len(block) for block in limited(slow(), 0.03, 1000)] == [10]
    assert [len(block) for block in limited(slow(), None, 1000)] == [10, 0, 10]


def test_digits_name_a_device_by_number() -> None:
    assert [number_or_name(text) for text in (None, "3", "headset", "²", "٣", "-1", "9" * 5000)] == [
        None, 3, "headset", "²", "٣", "-1", "9" * 5000,
    ]  # fmt: skip
