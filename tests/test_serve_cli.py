"""`python -m speech.serve` as a program."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest

pytest.importorskip("websockets", reason="needs the extra `serve`")

from websockets.sync.client import connect

from speech.serve import cli

TIMEOUT_S = 30


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and where it says that it serves."""
    command = [sys.executable, "-m", "speech.serve", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.match(r"serving at (\S+); Ctrl-C ends", line)
        assert found, line
        yield process, found[1]
    finally:
        process.kill()
        process.wait(TIMEOUT_S)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "door", [["page", "--port", "0"], ["wyoming", "--uri", "tcp://127.0.0.1:0"]], ids=["page", "wyoming"]
)
def test_a_signal_ends_it_quietly(door: list[str], kind: signal.Signals) -> None:
    with serving(*door) as (process, _):
        process.send_signal(kind)
        assert process.wait(TIMEOUT_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_signal_ends_it_with_a_client_connected() -> None:
    with serving("page", "--port", "0") as (process, url):
        address = url.removeprefix("http://").rstrip("/")
        with connect(f"ws://{address}/socket") as socket:
            assert json.loads(socket.recv())["type"] == "ready"
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT_S) == 0


def test_beyond_loopback_the_address_holds_a_token() -> None:
    with serving("page", "--host", "0.0.0.0", "--port", "0") as (_, url):
        found = re.fullmatch(r"http://[^/]+:(\d+)/#([\w-]{20,})", url)
        assert found, url
        port, token = int(found[1]), found[2]
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/socket", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
        assert connection.getresponse().status == 401
        with connect(
            f"ws://127.0.0.1:{port}/socket", additional_headers={"Authorization": f"Bearer {token}"}
        ) as socket:
            assert json.loads(socket.recv())["type"] == "ready"


def result(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "speech.serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "command"),
        (["page", "--port", "70000"], "--port"),
        (["page", "--certificate", "a.pem"], "belong together"),
        (["page", "--certificate", "a.pem", "--key", "b.pem"], "can't be used"),
        (["page", "--threshold", "7"], "0..1"),
        (["page", "--words", "computer"], "computer"),
        (["page", "--grammar", "yes"], "sequences"),
        (["page", "--after-talk", "-1"], "after_talk_s"),
        (["page", "--max-clients", "0"], "--max-clients"),
        (["page", "--mqtt-user", "me"], "--mqtt"),
        (["page", "--mqtt", "host:x"], "--mqtt"),
        (["wyoming", "--uri", "http://127.0.0.1"], "--uri expects"),
        (["wyoming", "--uri", "tcp://0.0.0.0:10400"], "--allow"),
        (["wyoming", "--uri", "tcp://0.0.0.0:10400", "--allow", "x"], "--allow expects"),
    ],
    ids=str,
)
def test_wrong_usage_is_status_2_and_says_why(arguments: list[str], said: str) -> None:
    status, stderr = result(*arguments)
    assert status == 2, stderr
    assert said in stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["page", "--model", "/no/such.onnx"], "no model at"),
        (["page", "--host", "192.0.2.1"], "can't serve there"),
        (["wyoming", "--uri", "unix:///no/such/folder/speech.sock"], "can't serve there"),
    ],
    ids=str,
)
def test_what_goes_wrong_is_one_line_and_status_1(arguments: list[str], said: str) -> None:
    status, stderr = result(*arguments)
    assert status == 1, stderr
    assert said in stderr
    assert len(stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_one_line() -> None:
    with serving("page", "--port", "0") as (_, url):
        port = url.rstrip("/").rpartition(":")[2]
        status, stderr = result("page", "--port", port)
        assert status == 1
        assert stderr.startswith("error: can't serve there: ")
        assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize("missing", cli.PACKAGES)
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None  # an import fails
from speech.serve import cli
find = cli.find_spec
cli.find_spec = lambda name: None if name == {missing!r} else find(name)
sys.exit(cli.main(["page"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: {cli.EXTRA}"]
    assert "speech-commands-offline[serve]" in cli.EXTRA


def test_listening_imports_nothing_of_the_extra() -> None:
    code = f"import sys, speech.listen; print([name for name in {cli.PACKAGES!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
