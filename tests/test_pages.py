"""What the README and the docs show is true: each command is read with its values, and those that listen run."""

import contextlib
import importlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech import listen
from speech.bundle import DEFAULT_MODEL
from speech.sound.files import Block, read, read_blocks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "speech/models/MODEL_CARD.md"]
INSTALLED = {"speech-listen": "speech.listen", "speech-teach": "speech.teach", "speech-serve": "speech.serve.cli"}
SPOKEN = {"yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"}


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each command of ours in the code of a page, the module first."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    blocks = [" ".join(code.split()) for code in inline]
    blocks += re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) + re.findall(r"^ {4}(\S.*)$", text, re.M)
    for line in "\n".join(blocks).splitlines():
        lexer = shlex.shlex(line.split(" #")[0], posix=True, punctuation_chars="|;&")
        lexer.whitespace_split = True
        try:
            parts = " ".join("\0" if set(word) <= set("|;&") else word.replace(" ", "\1") for word in lexer).split("\0")
        except ValueError:
            continue  # no shell
        for part in parts:
            words = [word.replace("\1", " ") for word in part.split()]
            while words and words[0] not in (*INSTALLED, "python"):
                words.pop(0)
            if words and words[0] in INSTALLED:
                yield [INSTALLED[words[0]], *words[1:]]
            elif words[:2] == ["python", "-m"] and words[2].partition(".")[0] in ("speech", "recipes"):
                yield words[2:]


ALL = list({tuple(command): command for page in PAGES for command in commands(page)}.values())
"""In the order of the pages, each once."""


def test_the_pages_show_commands() -> None:
    assert len(ALL) > 50
    assert {command[0] for command in ALL} > {"speech.listen", "speech.teach", "speech.serve.cli", "recipes.train"}
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 100


@pytest.mark.parametrize("command", [c for c in ALL if c[1:]], ids=" ".join)
def test_what_is_shown_is_no_wrong_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The program's own parser reads it; where it has none, its help has the options."""
    module, *arguments = command
    if arguments == ["--json"] and module == "speech.teach":
        arguments.append("lamp")  # named in passing
    program = importlib.import_module(module)
    if hasattr(program, "parse") and "--help" not in arguments:
        try:
            program.parse(arguments)
        except SystemExit:
            pytest.fail(capsys.readouterr().err)
        return
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        program.main(["--help"])
    for word in arguments:
        if word.startswith("--"):
            assert re.search(rf"(?<![\w-]){re.escape(word.partition('=')[0])}\b", text.getvalue()), word
        if word.endswith(".yaml") and "configs" in word:
            assert (ROOT / word).is_file()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    for kind in ("DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    demo = read(listen.DEMO, 16000)
    for name in (
        "a.wav",
        "b.mp3",
        "b.wav",
        "DIR/c.flac",
        "toy/SpeechCommands/speech_commands_v0.02/lamp/alice_nohash_0.wav",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(name, demo[: 2 * 16000], 16000)
    noise = np.random.default_rng(0).normal(0, 1e-3, 61 * 16000)
    soundfile.write("evening.wav", noise, 16000)
    Path("runs/lamp").mkdir(parents=True)
    Path("runs/lamp/smoke.onnx").symlink_to(DEFAULT_MODEL)
    Path("mine.toml").write_text("[thresholds]\nleft = 0.8\n")
    Path("log.txt").write_text("left left stop\nyes\n")
    toml = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs/listen.md").read_text("utf-8"), re.M | re.S)
    Path("actions.toml").write_text(toml[0])
    Path("bin").mkdir()
    Path("bin/xdotool").write_text("#!/bin/sh\necho $* >> pressed.txt\n")
    Path("bin/xdotool").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    soundfile.write("demo.raw", np.stack([read(listen.DEMO, 48000)] * 2, 1), 48000, "PCM_32")
    return tmp_path


def on_the_demo(module: str, arguments: list[str]) -> list[str] | None:
    """The command with a recording in the microphone's place; None if it needs a microphone or a day."""
    if arguments == ["--json"] and module == "speech.teach":
        return None
    needs_more = {"--check", "--from", "--list-devices", "--help", "--wait"} & {*arguments}
    if needs_more or module not in ("speech.listen", "speech.teach", "speech.calibrate"):
        return None
    if "DIR/lamp" in arguments:
        return None  # for another machine; here the word was forgotten before it was exported
    if module == "speech.listen":
        if "--demo" in arguments:
            return [*arguments, "--seconds", "2"]
        has_source = {"--file", "--stdin"} & {*arguments}
        return arguments if has_source else [*arguments, "--file", str(listen.DEMO)]
    if module == "speech.teach" and arguments and not arguments[0].startswith("--") and "--files" not in arguments:
        return [argument for argument in arguments if argument not in ("--times", "10")] + ["--files", "a.wav"]
    return arguments or None


def test_the_commands_that_listen_run_in_the_order_of_the_pages(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_run = 0
    for module, *shown in ALL:
        arguments = on_the_demo(module, shown)
        if arguments is None:
            continue
        n_run += 1
        with open("demo.raw" if "--format" in arguments else listen.DEMO) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            status = importlib.import_module(module).main(arguments)
        captured = capsys.readouterr()
        assert status == 0, f"{module} {arguments}: {captured.err}"
        if module == "speech.listen":
            wanted = set(SPOKEN)
            for option, value in pairwise(arguments):
                if option in ("--words", "--grammar"):
                    wanted &= set(re.findall(r"\w+", value))
            found = set(re.findall(r"[a-z]+", re.sub(r'"rejected".*|\S*/', "", captured.out))) & SPOKEN
            assert found <= wanted, arguments
            assert found or {"--wake", "runs/lamp/smoke.onnx"} & {*arguments}, arguments  # own words like "yes" by then
    assert n_run > 20
    assert Path("pressed.txt").read_text() == "key Left\n"


class FakeMicrophone:
    """Plays the demo recording."""

    wait = False

    def __init__(self, **_: object) -> None: ...
    def __enter__(self) -> "FakeMicrophone":
        return self

    def __exit__(self, *_: object) -> None: ...
    def discard(self) -> None: ...
    def close(self) -> None: ...
    def blocks(self, rate_hz: int) -> Iterator[Block]:
        return read_blocks(listen.DEMO, rate_hz)


def python_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize(
    ("page", "n"), [(page, n) for page in ("README.md", "docs/python.md") for n in range(len(python_of(page)))]
)
def test_the_python_of_the_pages_runs(
    page: str, n: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("speech.background", "speech.sound.microphone"):
        monkeypatch.setattr(f"{module}.Microphone", FakeMicrophone)
    samples = read(listen.DEMO, 44100)[: 2 * 44100]
    exec(compile(python_of(page)[n], page, "exec"), {"samples": samples, "print": print})
    if "stop()" not in python_of(page)[n]:
        assert any(word in capsys.readouterr().out for word in SPOKEN)
