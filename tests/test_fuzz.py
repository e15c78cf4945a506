"""Malformed input of every kind: one line and an exit status, never a traceback, a crash, a hang or a wrong silence.

Two hundred command lines with a fixed seed, then hypothesis on what reads text, bytes and arrays.
"""

import io
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from speech import listen
from speech.actions import Actions
from speech.bundle import MODELS, BundleInfo
from speech.errors import SpeechError
from speech.grammar import Grammar
from speech.settings import load_thresholds
from speech.sound.containers import RawFormat
from speech.sound.files import as_mono, open_stream

WORDS = ("left", "right", "go", "stop")
SPOKEN = ["yes", "no"]
SECONDS = 3
MOST_S = 10.0
"""Of processor time: another program that is busy is no failure."""
PATIENCE_S = 180.0
"""Time after which a case hangs."""
FORMATS = {
    "wav": ("WAV", "PCM_16"), "float.wav": ("WAV", "FLOAT"), "adpcm.wav": ("WAV", "IMA_ADPCM"),
    "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"), "caf": ("CAF", "PCM_16"), "w64": ("W64", "PCM_16"), "au": ("AU", "PCM_16"),
}  # fmt: skip
LOG = "left left stop\ngo\n\nright right right\n"
GRAMMAR = "(left | right)+ | stop | go (one | two | three)?  # a comment\n"
ACTIONS = """[defaults]\ntimeout_s = 10\ncooldown_s = 1\n[left]\nrun = ["true", "left"]\n[stop]\nrun = "true"\n
shell = true\nmin_confidence = 0.9\n"""
THRESHOLDS = "# made by speech.calibrate\n[thresholds]\nleft = 0.85\nright = 0.5\nstop = 1\n"


@dataclass(frozen=True)
class Case:
    """One malformed input."""

    name: str
    argv: list[str]
    stdin: Path | None = None
    audio: bytes = field(default=b"", repr=False)
    """What was damaged, where that is a recording of `SPOKEN`."""
    is_right: bool = False
    """Whether it is only written in another way, and must be accepted."""


def damaged(data: bytes, rng: np.random.Generator, first: int = 0) -> bytes:
    """A few bits flipped, most of them near the beginning, a piece cut off, left out or zeroed."""
    changed = bytearray(data)
    kind = rng.integers(5)
    if kind < 3:
        n_bytes = len(data) if kind == 0 else min(len(data), 100)
        for place in rng.integers(first, max(first + 1, n_bytes), rng.integers(1, 8)):
            changed[place] ^= 1 << rng.integers(8)
        return bytes(changed)
    begin = int(rng.integers(first, len(data)))
    if kind == 3:
        return bytes(changed[:begin])
    end = min(len(data), begin + int(rng.integers(1, 2000)))
    return bytes(changed[:begin] + bytes(rng.integers(2) * (end - begin)) + changed[end:])


def audio_cases(folder: Path, rng: np.random.Generator) -> Iterator[Case]:
    samples, rate = soundfile.read(listen.DEMO, frames=SECONDS * 16000)
    for suffix, (container, subtype) in FORMATS.items():
        file = io.BytesIO()
        soundfile.write(file, samples, rate, subtype, format=container)
        for n in range(9):
            is_piped = n % 3 == 2
            path = folder / f"{n}.{suffix}"
            audio = damaged(file.getvalue(), rng, first=16 if is_piped else 0)  # with another mark it is raw
            path.write_bytes(audio)
            argv = ["--stdin"] if is_piped else ["--file", str(path)]
            yield Case(path.name, ["--json", *argv], path if is_piped else None, audio)


def bundle_cases(folder: Path, rng: np.random.Generator) -> Iterator[Case]:
    for n in range(21):
        data = (MODELS / ("commands.onnx" if n % 2 else "connected.onnx")).read_bytes()
        if n < 9:  # in the metadata, which lies at the end
            changed = bytearray(data)
            for place in rng.integers(len(data) - 3000, len(data), 2):
                changed[place] = rng.integers(256)
            data = bytes(changed)
        else:
            data = damaged(data, rng)
        path = folder / f"{n}.onnx"
        path.write_bytes(data)
        yield Case(path.name, ["--model", str(path), "--file", str(listen.DEMO), "--seconds", "2"])


def text_cases(folder: Path, rng: np.random.Generator) -> Iterator[Case]:
    demo = ["--file", str(listen.DEMO), "--seconds", "1"]
    kinds = [
        ("grammar", GRAMMAR, ["--model", "connected", "--grammar"]),
        ("log", LOG, ["--model", "connected", "--language-model"]),
        ("actions.toml", ACTIONS, ["--actions"]),
        ("thresholds.toml", THRESHOLDS, ["--thresholds"]),
    ]
    for suffix, text, arguments in kinds:
        for n in range(12):
            path = folder / f"{n}.{suffix}"
            is_right = n % 6 == 0
            if is_right:  # as an editor on Windows saves it
                path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
            else:
                path.write_bytes(damaged(text.encode(), rng))
            yield Case(path.name, [*arguments, str(path), *demo], is_right=is_right)


VALUES = [
    "", "-", "--", "0", "-1", "1", "0.5", "1e999", "-inf", "nan", "inf", "²", "0x10", "left", "left,", ",",
    "left,left", "left right", "/", ".", "/dev/null", "/dev/zero", "no/such", "a" * 300, "\udcff", "left\nright", "%s",
    "{}", "(", "[", "Left", " LEFT,Right", "\ufeffleft", "l\u2019eau", "\u0130", "cafe\u0301",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "a\u200db", "\u202eleft", "left.txt",
]  # fmt: skip
OPTIONS = [
    "--seconds", "--threshold", "--after-talk", "--words", "--model", "--grammar", "--language-model", "--thresholds",
    "--actions", "--wake", "--own", "--pause-file", "--channel",
    "--rate", "--format", "--channels", "--file", "--record", "--stdin", "--json", "--rejected", "--realtime",
    "--quiet",
]  # fmt: skip
FLAGS = {"--stdin", "--json", "--rejected", "--realtime", "--quiet"}


def command_line_cases(folder: Path, rng: np.random.Generator) -> Iterator[Case]:
    sound = folder / "sound.raw"
    sound.write_bytes(bytes(32000))
    for n in range(32):
        argv = [] if n % 2 else ["--stdin"]
        for option in rng.choice(OPTIONS, rng.integers(1, 4), replace=False):
            value = str(rng.choice(VALUES))
            if option == "--record":
                value = str(folder / "kept")
            argv += [str(option)] if option in FLAGS else [f"{option}={value}"]
        if "--stdin" not in argv and not any(a.startswith("--file") for a in argv):
            argv += ["--file", str(listen.DEMO), "--seconds", "1"]  # never the microphone
        yield Case(f"command line {argv}", argv, sound)


class Worker:
    """A process that runs cases; one that ends or hangs is a failure of the case."""

    def __init__(self) -> None:
        script = str(Path(__file__).parent / "fuzz_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def run(self, case: Case) -> dict[str, object]:
        assert self._process.stdin
        assert self._process.stdout
        request = {"argv": case.argv, "stdin": None if case.stdin is None else str(case.stdin)}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        if not ready:
            return {"status": "hangs", "output": "", "errors": "", "seconds": PATIENCE_S}
        line = self._process.stdout.readline()
        if not line:
            return {"status": f"crashed with {self._process.wait()}", "output": "", "errors": "", "seconds": 0.0}
        answer: dict[str, object] = json.loads(line)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def is_heard_by_libsndfile(audio: bytes) -> bool:
    """Whether the damaged file, read at once, is still the recording."""
    original, rate = soundfile.read(listen.DEMO, frames=SECONDS * 16000)
    try:
        found, found_rate = soundfile.read(io.BytesIO(audio))
    except (soundfile.LibsndfileError, ValueError):
        return False
    if found_rate != rate or found.ndim != 1 or not np.isfinite(found).all() or len(found) < 2.5 * rate:
        return False
    n_samples = min(len(found), len(original))
    products = np.fft.irfft(np.fft.rfft(found[:n_samples], 2**17) * np.fft.rfft(original[:n_samples], 2**17).conj())
    norm = np.linalg.norm(found[:n_samples]) * np.linalg.norm(original[:n_samples])
    return bool(norm and products.max() / norm > 0.97)


def problem(case: Case, answer: dict[str, object]) -> str | None:
    """What is wrong with an answer; None when nothing is."""
    status, output, errors = answer["status"], str(answer["output"]), str(answer["errors"])
    if status not in (0, 1, 2):
        return f"status {status}"
    if "Traceback" in errors or "Traceback" in output:
        return "a traceback"
    if float(str(answer["seconds"])) > MOST_S:
        return f"took {answer['seconds']} s"
    reported = [line for line in errors.splitlines() if "error: " in line]
    if bool(reported) != (status != 0):
        return f"status {status} with {reported}"
    if case.is_right and status != 0:
        return "refused"
    if any(len(line) > 1000 for line in reported):
        return "an error of more than 1000 characters"
    if case.audio and status == 0:
        found = [json.loads(line)["word"] for line in output.splitlines()]
        if found != SPOKEN and is_heard_by_libsndfile(case.audio):
            return f"a wrong silence: {found}"
    return None


@pytest.mark.skipif(sys.platform == "win32", reason="waits for a pipe with select")
def test_two_hundred_malformed_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(16)
    makers = (audio_cases, bundle_cases, text_cases, command_line_cases)
    cases = [case for make in makers for case in make(tmp_path, rng)]
    assert len(cases) == 200
    worker, problems, statuses = Worker(), [], []
    for case in cases:
        answer = worker.run(case)
        found = problem(case, answer)
        statuses.append(answer["status"])
        if found:
            problems.append(f"{case.name}: {found}\n{answer['errors']}")
            if answer["status"] not in (0, 1, 2, "traceback"):
                worker.end()
                worker = Worker()
    worker.end()
    assert not problems, "\n".join(problems)
    assert {0, 1, 2} == set(statuses)


def test_a_traceback_a_hang_and_a_wrong_silence_would_be_seen() -> None:
    fine = {"status": 0, "output": "", "errors": "", "seconds": 0.1}
    case = Case("demo", [], audio=listen.DEMO.read_bytes())
    assert problem(Case("", []), fine) is None
    assert "wrong silence" in str(problem(case, fine))
    assert problem(case, fine | {"output": '{"word": "yes"}\n{"word": "no"}\n'}) is None
    assert problem(Case("", [], is_right=True), fine | {"status": 2, "errors": "error: x"}) == "refused"
    for answer in ({"status": "traceback"}, {"status": 1}, {"errors": "error: x"}, {"seconds": 11.0}, {"status": -11}):
        assert problem(Case("", []), fine | answer), answer


many = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@many
@given(
    arrays.arrays(
        arrays.scalar_dtypes() | arrays.unicode_string_dtypes() | arrays.datetime64_dtypes(),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=70),
    )
    | st.lists(st.floats() | st.lists(st.floats(), max_size=3), max_size=5)
)
def test_any_array_is_mono_or_refused(samples: object) -> None:
    with suppress(SpeechError):
        mono = as_mono(samples)
        assert mono.ndim == 1
        assert len(mono)
        assert mono.dtype == np.float32
        assert np.isfinite(mono).all()


@many
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"RIFF", b"fLaC", b"FORM", b"caff", b".snd", b"\xff\xfb", b"ID3"])
)
def test_any_bytes_are_audio_or_refused(data: bytes, mark: bytes) -> None:
    file = io.BytesIO(mark + data)
    with suppress(SpeechError):
        for block in open_stream(file.read, "bytes", RawFormat()).blocks(16000):
            assert np.isfinite(block).all()


@many
@given(st.text(alphabet="left right|()*+?#\n\0é", max_size=200) | st.text(max_size=50))
def test_any_text_is_a_grammar_or_refused(text: str) -> None:
    with suppress(SpeechError):
        grammar = Grammar.parse(text, WORDS)
        assert grammar.words <= set(WORDS)
        grammar.repeated().longest_sentence(WORDS)


METADATA = BundleInfo(2, "classification", ("left", "right", "_unknown_", "_silence_"), 16000, 1.0, 0.6).as_metadata()


@many
@example({"speech.window_s": "1e-5"}, set())
@given(
    st.dictionaries(st.sampled_from(sorted(METADATA)), st.text(max_size=20) | json_values.map(json.dumps), max_size=3),
    st.sets(st.sampled_from(sorted(METADATA)), max_size=1),
)
def test_any_metadata_is_a_bundle_or_refused(changed: dict[str, str], missing: set[str]) -> None:
    metadata = {key: value for key, value in (METADATA | changed).items() if key not in missing}
    with suppress(SpeechError):
        info = BundleInfo.from_metadata(metadata)
        assert all(isinstance(word, str) for word in info.words)
        assert info.window > 0
        assert BundleInfo.from_metadata(info.as_metadata()) == info


toml_texts = st.builds(
    lambda mark, table, key, value: f"{mark}[{table}]\n{key} = {value}\n",
    st.sampled_from(["", "\ufeff", "\ufeff\ufeff"]),
    st.sampled_from(["thresholds", "left", "defaults", "x"]) | st.text(max_size=5),
    st.sampled_from(["left", "run", "shell", "timeout_s", "cooldown_s", "min_confidence"]) | st.text(max_size=5),
    st.sampled_from(["1", "0.5", "nan", "inf", "-1", "true", '"left"', '["true"]', "[]", "{}", "9" * 5000, "[" * 5000,
                     '"\\u0000"', "1979-05-27"]) | st.text(max_size=8),
)  # fmt: skip


@many
@example(b"left = " + b"[" * 5000)
@example(b"[left]\nrun = ['true']\ntimeout_s = " + b"9" * 400)
@example(bytes(1 << 21))
@given(st.binary(max_size=60) | toml_texts.map(lambda text: text.encode(errors="replace")))
def test_any_file_of_settings_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "settings.toml"
    path.write_bytes(data)
    with suppress(SpeechError):
        assert all(0 < value <= 1 for value in load_thresholds(path, WORDS, tell=str).values())
    with suppress(SpeechError):
        Actions.load(path, WORDS)
