"""The checks that every commit passes: style, types, who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import speech

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md"), *ROOT.glob("speech/models/*.md")]
BENT = (
    r"passed over|was to be had|\btold (?:at|of|apart|in)\b|\bstands? for\b|\btaught on\b"
    r"|\bbehind (?:a|it|each|talk)\b"
)
"""Turns of phrase that a reader has to read twice."""


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["lint-imports"], ["codespell"]],
    ids=" ".join,
)
def test_checks_pass(command: list[str]) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_function_is_longer_than_sixty_lines() -> None:
    files = [*ROOT.glob("speech/**/*.py"), *ROOT.glob("recipes/**/*.py")]
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


def test_links_between_the_pages_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))]
    local = [(page, link) for page, link in links if "://" not in link]
    assert len(local) > 10
    for page, link in local:
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == speech.__version__


def test_the_prose_of_the_pages() -> None:
    done = subprocess.run(
        [BIN / "proselint", "check", "--config", "proselint.json", *PAGES], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_bent_phrases() -> None:
    texts = [(page, page.read_text("utf-8")) for page in PAGES]
    for path in [*ROOT.glob("speech/**/*.py"), *ROOT.glob("recipes/**/*.py")]:
        texts.append((path, path.read_text("utf-8")))
    assert len(texts) > 80
    lines = [(path.name, line.strip()) for path, text in texts for line in text.splitlines()]
    found = [f"{name}: {line}" for name, line in lines if re.search(BENT, line)]
    assert not found, "\n".join(found)
