"""The wheel in environments of its own: types, a frozen program, other interpreters, the oldest dependencies."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from speech.listen import DEMO

ROOT = Path(__file__).parents[1]
UV = os.environ.get("UV") or shutil.which("uv")
SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]

pytestmark = pytest.mark.skipif(not UV, reason="needs uv, as in the README's test command")


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def install(folder: Path, interpreter: object, *what: object) -> Path:
    """A fresh environment with that in it -> its interpreter.  Outside the checkout: its versions do not count."""
    run(UV, "venv", "--python", interpreter, folder, cwd=folder.parent)
    run(UV, "pip", "install", "--python", python_of(folder), *what, cwd=folder.parent)
    return python_of(folder)


def hears_the_demo(*program: object) -> None:
    done = run(*program, "--file", DEMO, "--json", cwd=Path(DEMO.anchor))
    assert [json.loads(line)["word"] for line in done.stdout.splitlines()] == SPOKEN


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--wheel", "--out-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and what it needs to listen."""
    return install(tmp_path_factory.mktemp("live") / "env", sys.executable, wheel)


def test_the_wheel_holds_what_belongs_to_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("py.typed", "demo.flac", "models/commands.onnx", "models/connected.onnx", "models/MODEL_CARD.md"):
        assert f"speech/{wanted}" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"speech"}


def test_a_live_install_brings_no_training_stack(installed: Path) -> None:
    listed = json.loads(run(UV, "pip", "list", "--format", "json", "--python", installed, cwd=installed.parent).stdout)
    names = {package["name"] for package in listed}
    assert "onnxruntime" in names
    assert not names & {"torch", "torchaudio", "lightning", "librosa", "scipy", "matplotlib", "numba"}
    hears_the_demo(installed, "-m", "speech.listen")


APP = """
from speech import Detection, Listener, Prediction, Recognizer
from speech.sound.microphone import Microphone
import numpy as np

recognizer = Recognizer.load()
reveal_type(recognizer.classify(np.zeros(16000), 16000))
listener = Listener(recognizer, words=["left"])
reveal_type(listener.feed(np.zeros(100)))
for detection in listener.listen([]):
    reveal_type(detection.start_s)
WRONG
"""


def test_an_application_is_checked_against_the_types(installed: Path, tmp_path: Path) -> None:
    app, config = tmp_path / "app.py", tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = True\n")
    check = [sys.executable, "-m", "mypy", "--config-file", config, "--python-executable", installed, app]
    app.write_text(APP.replace("WRONG", ""))
    reported = run(*check, cwd=tmp_path).stdout
    revealed = [
        line.rpartition("Revealed type is ")[2].strip('"') for line in reported.splitlines() if "Revealed" in line
    ]
    assert [name.replace("builtins.", "") for name in revealed] == [
        "speech.results.Prediction", "list[speech.results.Detection]", "float",
    ]  # fmt: skip
    app.write_text(APP.replace("WRONG", "listener.feeed(1)\nRecognizer.load(path=3)"))
    done = subprocess.run([str(part) for part in check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert '"Listener" has no attribute "feeed"' in done.stdout
    assert 'Argument "path" to "load"' in done.stdout


def test_a_frozen_program_finds_its_models(wheel: Path, tmp_path: Path) -> None:
    python = install(tmp_path / "env", sys.executable, wheel, "pyinstaller>=6")
    script = tmp_path / "app.py"
    script.write_text("import sys\nfrom speech.listen import main\nsys.exit(main())\n")
    run(python, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", script, cwd=tmp_path)
    program = tmp_path / "dist/app/app"
    shutil.rmtree(tmp_path / "env")
    hears_the_demo(program)
    hears_the_demo(program, "--model", "connected")
    assert "listening to demo.flac" in run(program, "--demo", "--seconds", "1", cwd=tmp_path).stderr
    run(program, "--list-devices", cwd=tmp_path)  # by the same program, started as the process for PortAudio


def interpreter(version: str) -> Path | None:
    """Another Python of this machine, if there is one."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]
    for path in filter(None, found):
        with_version = subprocess.run([path, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
        if with_version.stdout.startswith(version):
            return Path(path)
    return None


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_every_python_that_is_declared(wheel: Path, tmp_path: Path, version: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]
    found = interpreter(version)
    if not found:
        pytest.skip(f"no Python {version} here")
    hears_the_demo(
        install(tmp_path / "env", found, wheel), "-W", "error::DeprecationWarning:speech", "-m", "speech.listen"
    )


def test_the_oldest_dependencies_that_are_declared(wheel: Path, tmp_path: Path) -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    python = install(tmp_path / "env", interpreter("3.11") or sys.executable, "--resolution", "lowest-direct", *needed)
    run(UV, "pip", "install", "--python", python, "--no-deps", wheel, cwd=tmp_path)
    hears_the_demo(python, "-m", "speech.listen")
    hears_the_demo(python, "-m", "speech.listen", "--model", "connected")
    piped = [str(python), "-m", "speech.listen", "--stdin", "--json"]
    done = subprocess.run(piped, input=DEMO.read_bytes(), cwd=tmp_path, capture_output=True, timeout=60)
    assert [json.loads(line)["word"] for line in done.stdout.splitlines()] == SPOKEN
