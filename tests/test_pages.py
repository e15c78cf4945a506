"""What the README and the docs show exists: programs, their options, files; and the README's listening commands run."""

import contextlib
import importlib
import io
import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from speech import listen

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "speech/models/MODEL_CARD.md",
]
INSTALLED = {"speech-listen": "speech.listen", "speech-teach": "speech.teach", "speech-serve": "speech.serve.cli"}


def commands(page: Path) -> list[list[str]]:
    """The arguments of each command of ours in the code blocks of a page, the module first; placeholders stay."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    blocks = [" ".join(code.split()) for code in inline]
    blocks += re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) + re.findall(r"^ {4}(\S.*)$", text, re.M)
    found = []
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
                found.append([INSTALLED[words[0]], *words[1:]])
            elif words[:2] == ["python", "-m"] and words[2].partition(".")[0] in ("speech", "recipes"):
                found.append(words[2:])
    return found


ALL = [pytest.param(command, id=f"{page.name}: {' '.join(command)}") for page in PAGES for command in commands(page)]


@cache
def help_of(module: str, *subcommand: str) -> str:
    program = importlib.import_module("speech.serve.cli" if module == "speech.serve" else module)
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        program.main([*subcommand, "--help"])
    return text.getvalue()


def test_the_pages_show_commands() -> None:
    assert len(ALL) > 50
    assert {command.values[0][0] for command in ALL} > {
        "speech.listen",
        "speech.teach",
        "speech.serve.cli",
        "recipes.train",
    }


@pytest.mark.parametrize("command", ALL)
def test_the_options_that_are_shown_exist(command: list[str]) -> None:
    module, *arguments = command
    subcommand = [word for word in arguments[:1] if word in ("page", "wyoming")]
    text = help_of(module, *subcommand)
    for word in arguments:
        if word.startswith("--"):
            assert re.search(rf"(?<![\w-]){re.escape(word.partition('=')[0])}\b", text), word
        if word.endswith(".yaml") and "configs" in word:
            assert (ROOT / word).is_file()


LISTENING = [c.values[0][1:] for c in ALL[: len(commands(PAGES[0]))] if c.values[0][0] == "speech.listen"]
SPOKEN = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
ELSEWHERE = {
    "--demo",
    "--file",
    "--stdin",
    "--device",
    "--list-devices",
    "--actions",
    "--record",
    "--thresholds",
    "--wake",
    "--version",
}
"""Options whose commands run in other tests, with the files or devices that they need."""


@pytest.mark.parametrize("arguments", [a for a in LISTENING if not ELSEWHERE & set(a)], ids=" ".join)
def test_the_readmes_listening_commands_run_on_the_demo(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert listen.main([*arguments, "--file", str(listen.DEMO)]) == 0
    out = capsys.readouterr().out
    heard = [word for line in out.splitlines() for word in re.findall(r"[a-z]+", line) if word in SPOKEN]
    wanted = set(SPOKEN)
    for option, value in pairwise(arguments):
        if option == "--words":
            wanted = set(value.split(","))
        if option == "--grammar":
            wanted = {"left", "right", "stop", "go"}
    assert heard
    assert set(heard) <= wanted
