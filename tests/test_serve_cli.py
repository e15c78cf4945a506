"""`python -m speech.serve` as a program."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="needs the extra `serve`")

from websockets.sync.client import connect

from speech.serve import cli

TIMEOUT_S = 120


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server, where it says that it serves, and the lines before that."""
    command = [sys.executable, "-m", "speech.serve", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        while not (found := re.match(r"serving at (\S+); Ctrl-C ends", line := process.stderr.readline())):
            assert line, lines
            lines.append(line)
        yield process, found[1], lines
    finally:
        process.kill()
        process.wait(TIMEOUT_S)


@pytest.mark.parametrize(
    ("door", "kind"),
    [(["page", "--port", "0"], signal.SIGINT), (["wyoming", "--uri", "tcp://127.0.0.1:0"], signal.SIGTERM)],
    ids=["page", "wyoming"],
)
def test_a_signal_ends_it_quietly_with_clients_and_while_the_broker_refuses(
    door: list[str], kind: signal.Signals
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # not listening, so it refuses
        with serving(*door, "--quiet", "--mqtt", f"127.0.0.1:{closed.getsockname()[1]}") as (process, url, _):
            place = re.sub(r"^\w+://|/$", "", url)
            host, port = place.split(":")
            with connect(f"ws://{place}/socket") if door[0] == "page" else socket.create_connection((host, int(port))):
                process.send_signal(kind)
                assert process.wait(TIMEOUT_S) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""


def test_a_second_signal_ends_what_does_not_end() -> None:
    code = """
import asyncio, sys
from speech.serve import cli
from speech.serve.page import PageServer
async def never(*_):
    print("ending", flush=True)
    while True:
        try: await asyncio.sleep(1)
        except asyncio.CancelledError: pass
PageServer.__aexit__ = never
sys.exit(cli.main(["page", "--port", "0"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert "serving" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "ending\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == -signal.SIGTERM
    finally:
        process.kill()


def test_beyond_loopback_the_address_holds_a_token_and_a_note_speaks_of_microphones() -> None:
    with serving("page", "--host", "0.0.0.0", "--port", "0") as (_, url, lines):
        assert any("https" in line for line in lines), lines
        found = re.fullmatch(r"http://[^/]+:(\d+)/#([\w-]{20,})", url)
        assert found, url
        port, token = int(found[1]), found[2]
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/socket", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
        assert connection.getresponse().status == 401
        address, headers = f"ws://127.0.0.1:{port}/socket", {"Authorization": f"Bearer {token}"}
        with connect(address, additional_headers=headers) as client:
            assert json.loads(client.recv())["type"] == "ready"


def test_behind_a_proxy_on_this_machine_a_token_is_needed_too(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--name", "speech.example.org", "--trusted-proxy", "127.0.0.1", "--base-path", "/speech"]
    arguments = cli.parse(["page", "--port", "0", *options])
    access = cli.page_server(arguments, cli.Console()).access
    assert re.fullmatch(r"https://speech\.example\.org/speech/#[\w-]{20,}", access.url)
    assert "microphone" not in capsys.readouterr().err


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        status = cli.main(arguments)
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "command"),
        (["page", "--port", "70000"], "--port"),
        (["page", "--certificate", "a.pem"], "belong together"),
        (["page", "--certificate", "a.pem", "--key", "b.pem"], "can't be used"),
        (["page", "--base-path", "speech"], "--base-path"),
        (["page", "--trusted-proxy", "1.2.3"], "--trusted-proxy expects"),
        (["page", "--threshold", "7"], "0..1"),
        (["page", "--words", "computer"], "computer"),
        (["page", "--words", ""], "does not know"),
        (["page", "--wake", "computer"], "computer"),
        (["page", "--wake-for", "3"], "--wake"),
        (["page", "--grammar", "yes"], "sequences"),
        (["page", "--after-talk", "-1"], "after_talk_s"),
        (["page", "--max-clients", "0"], "--max-clients"),
        (["page", "--mqtt-user", "me"], "--mqtt"),
        (["page", "--mqtt", "host:x"], "--mqtt"),
        (["wyoming", "--uri", "http://127.0.0.1"], "--uri expects"),
        (["wyoming", "--uri", "tcp://0.0.0.0:10400"], "--allow"),
        (["wyoming", "--uri", "tcp://0.0.0.0:10400", "--allow", "x/y"], "--allow expects"),
    ],
    ids=str,
)
def test_wrong_usage_is_status_2_and_says_why(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, stderr = result(capsys, *arguments, *(["--no-own"] if arguments else []))
    assert status == 2, stderr
    assert said in stderr


def test_what_goes_wrong_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, said in (
            (["page", "--model", "/no/such.onnx"], "no model at"),
            (["page", "--host", "192.0.2.1", "--quiet"], "can't serve there"),
            (["page", "--port", str(taken.getsockname()[1])], "error: can't serve there: "),
            (["wyoming", "--uri", "unix:///no/such/folder/speech.sock"], "can't serve there"),
        ):
            status, stderr = result(capsys, *arguments, "--no-own")
            assert status == 1, stderr
            assert said in stderr
            assert [line for line in stderr.splitlines() if line != cli.MICROPHONE] == [stderr.splitlines()[-1]]


def test_without_the_extra_one_line_says_what_to_install() -> None:
    code = f"""
import sys
for name in {cli.PACKAGES!r}: sys.modules[name] = None  # an import fails
from speech.serve import cli
find = cli.find_spec
for missing in cli.PACKAGES:
    cli.find_spec = lambda name: None if name == missing else find(name) if name not in cli.PACKAGES else True
    assert cli.main(["page"]) == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.stderr.splitlines() == [f"error: {cli.EXTRA}"] * len(cli.PACKAGES)
    assert "pip install '.[serve]'" in cli.EXTRA, "no registry has it under a name"


def test_listening_imports_nothing_of_the_extra() -> None:
    code = f"import sys, speech.listen; print([name for name in {cli.PACKAGES!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_word_of_the_thresholds_that_was_forgotten_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.toml"
    file.write_text("[thresholds]\nyes = 0.9\nno = 0.8\n")
    arguments = cli.parse(["page", "--thresholds", str(file), "--no-own"])
    made = cli.make_factory(arguments, cli.Console(), has_grammar=False)
    assert isinstance(made.threshold, dict)
    made.threshold["gone"] = 0.5
    assert made.thresholds()["yes"] == 0.9
    assert made.listener(lambda _: None).thresholds["no"] == 0.8
