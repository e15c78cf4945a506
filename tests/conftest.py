"""Fixtures for several tests: synthesised audio, and small bundles whose answers are known."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sound_room import Room

from speech import listen
from speech.bundle import FORMAT, BundleInfo
from speech.console import SIGNALS

if TYPE_CHECKING:
    from recipes.protocols.scenes import Recordings
    from speech.model.networks import Network, NetworkConfig

RATE = 16000

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: more threads cost more than they gain
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job of a shell; children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

FIRST = (
    "test_microphone", "test_notebooks", "test_connected", "test_recipes", "test_ddp", "test_compare", "test_code",
    "test_installed", "test_features", "test_fuzz", "test_pages",
)  # fmt: skip
"""Files with the longest tests.  They start first, so that no process is left alone at the end."""
APART = ("test_ddp", "test_compare", "test_code", "test_listen", "test_serve_cli")
"""Files whose tests may run in several processes.  All others run in one process, which sets up fixtures once."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell pytest-xdist which tests belong together, and which start first."""
    for item in items:
        if item.path.stem not in APART:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_developer(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The programs that tests start find no own words and no calibrated thresholds in the user's folders."""
    for kind in ("DATA", "CONFIG"):
        os.environ[f"XDG_{kind}_HOME"] = str(tmp_path_factory.mktemp(f"{kind}_home"))


@dataclass(frozen=True)
class Done:
    """What speech.listen printed and returned."""

    status: object
    out: str
    err: str

    @property
    def found(self) -> list[dict[str, Any]]:
        """The objects of --json."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def words(self) -> list[str]:
        return [one["word"] for one in self.found if "rejected" not in one]


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A program that runs in this process leaves no signal handlers behind."""
    handlers = {kind: signal.getsignal(kind) for kind in SIGNALS}
    yield
    for kind, handler in handlers.items():
        signal.signal(kind, handler)


@pytest.fixture
def run_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """run_listen(*arguments, stdin=b"") in this process: for what is not about processes."""

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        (tmp_path / "stdin").write_bytes(stdin)
        with open(tmp_path / "stdin") as file:
            monkeypatch.setattr(sys, "stdin", file)
            capsys.readouterr()
            try:
                status: object = listen.main([str(argument) for argument in arguments])
            except SystemExit as end:
                status = end.code
        return Done(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tone() -> Callable[[float, float], np.ndarray]:
    """tone(pitch_hz, seconds): a sine of amplitude 0.5 at 16 kHz."""

    def make(pitch_hz: float, seconds: float) -> np.ndarray:
        time = np.arange(round(seconds * RATE)) / RATE
        return (0.5 * np.sin(2 * np.pi * pitch_hz * time)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def info() -> BundleInfo:
    return BundleInfo(
        format=FORMAT,
        head="classification",
        labels=("low", "high", "_unknown_", "_silence_"),
        sample_rate_hz=RATE,
        window_s=1.0,
        threshold=0.6,
    )


@pytest.fixture(scope="session")
def tone_bundle(tmp_path_factory: pytest.TempPathFactory, info: BundleInfo) -> Path:
    """A bundle that tells a tone under 1 kHz (`low`) from a higher one (`high`), by zero crossings.

    A window with less than 0.25 s of sound is `_silence_`.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: object) -> object:
        return numpy_helper.from_array(np.array(value), name)

    f32, i64 = np.float32, np.int64
    constants = [
        constant("quiet", f32(0.001)),
        constant("starts", np.array([0], i64)),
        constant("ends", np.array([-1], i64)),
        constant("ones", np.array([1], i64)),
        constant("last", np.array([2**31], i64)),
        constant("axis", np.array([1], i64)),
        constant("zero", f32(0)),
        constant("opposite", f32(-1e-9)),  # less than the rounding of a filter leaves in silence
        constant("needed", f32(0.25 * RATE)),
        constant("border", f32(2 * 1000 / RATE)),
        constant("scale", f32(20)),
        constant("tiny", f32(1)),
        constant("gain", f32(400)),
    ]
    node = helper.make_node
    nodes = [
        node("Abs", ["waveform"], ["magnitude"]),
        node("Greater", ["magnitude", "quiet"], ["loud"]),
        node("Cast", ["loud"], ["loud_f"], to=TensorProto.FLOAT),
        node("ReduceSum", ["loud_f", "axis"], ["sounding"], keepdims=1),
        node("Slice", ["waveform", "starts", "ends", "axis"], ["before"]),
        node("Slice", ["waveform", "ones", "last", "axis"], ["after"]),
        node("Mul", ["before", "after"], ["product"]),
        node("Less", ["product", "opposite"], ["crossing"]),
        node("Cast", ["crossing"], ["crossing_f"], to=TensorProto.FLOAT),
        node("ReduceSum", ["crossing_f", "axis"], ["crossings"], keepdims=1),
        node("Add", ["sounding", "tiny"], ["divisor"]),
        node("Div", ["crossings", "divisor"], ["rate"]),
        node("Sub", ["rate", "border"], ["over"]),
        node("Mul", ["over", "gain"], ["high_logit"]),
        node("Neg", ["high_logit"], ["low_logit"]),
        node("Sub", ["needed", "sounding"], ["lacking"]),
        node("Sign", ["lacking"], ["silent"]),
        node("Mul", ["silent", "scale"], ["silence_logit"]),
        node("Mul", ["sounding", "zero"], ["unknown_logit"]),
        node("Concat", ["low_logit", "high_logit", "unknown_logit", "silence_logit"], ["logits"], axis=1),
        node("Clip", ["logits", "low_clip", "high_clip"], ["clipped"]),
        node("Add", ["clipped", "bias"], ["biased"]),
        node("Softmax", ["biased"], ["scores"], axis=1),
    ]
    constants += [
        constant("low_clip", f32(-12)),
        constant("high_clip", f32(12)),
        constant("bias", np.array([[0, 0, 0, 6]], f32)),
    ]
    graph = helper.make_graph(
        nodes,
        "tones",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["batch", "time"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, info.as_metadata())
    onnx.checker.check_model(model)
    path = tmp_path_factory.mktemp("bundle") / "tones.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def sequence_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a CTC head that hears tones in steps of 40 ms.

    About 300 Hz is `low`, about 2 kHz `high`, about 4 kHz `_unknown_`.
    """
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 18]>
        tones (float[B, T] waveform) => (float[B, S, 4] scores)
        <float quiet = {0.01}, float opposite = {-1e-9}, float least = {0.01},
         int64[1] one = {1}, int64[1] first = {0}, int64[1] last = {-1}, int64[1] end = {1073741824},
         float[4, 1] loud_weight = {14, 14, 14, -30}, float[4, 1] bias = {-8, -8, -8, 12},
         float[4, 1] centre = {0.0375, 0.25, 0.5, 0}, float[4, 1] slope = {-160, -160, -160, 0}>
        {
            samples = Unsqueeze (waveform, one)
            magnitude = Abs (samples)
            is_loud = Greater (magnitude, quiet)
            loud = Cast <to = 1> (is_loud)
            share = AveragePool <kernel_shape = [640], strides = [640]> (loud)
            two = Add (one, one)
            before = Slice (samples, first, last, two)
            after = Slice (samples, one, end, two)
            product = Mul (before, after)
            is_crossing = Less (product, opposite)
            crossing = Cast <to = 1> (is_crossing)
            rest = Slice (loud, first, one, two)
            padded = Concat <axis = 2> (crossing, rest)
            crossings = AveragePool <kernel_shape = [640], strides = [640]> (padded)
            some = Max (share, least)
            rate = Div (crossings, some)
            distance = Sub (rate, centre)
            far = Abs (distance)
            tonal = Mul (far, slope)
            sounding = Mul (share, loud_weight)
            sum = Add (tonal, sounding)
            logits = Add (sum, bias)
            rows = Transpose <perm = [0, 2, 1]> (logits)
            scores = Softmax <axis = -1> (rows)
        }
    """)
    info = BundleInfo(
        format=FORMAT, head="ctc", labels=("low", "high", "_unknown_", "_blank_"), sample_rate_hz=RATE, window_s=3.0,
        threshold=0.6, step_s=0.04, offset_s=0.02,
    )  # fmt: skip
    onnx.helper.set_model_props(model, info.as_metadata())
    path = tmp_path_factory.mktemp("bundle") / "sequences.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set of `recipes.material.toy_corpus`, each module's own."""
    from recipes.material.toy_corpus import make_corpus

    return make_corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recordings(root: Path) -> "Recordings":
    from recipes.protocols.scenes import Recordings

    return Recordings.load(root)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str, NetworkConfig], tuple[Path, Network]]":
    """untrained(head, config): the bundle of a network with random weights, and that network."""
    import torch

    from speech.bundle import BLANK, SILENCE, UNKNOWN
    from speech.model.export import Scorer, bundle_info, export
    from speech.model.features import FEATURES
    from speech.model.networks import NETWORKS

    def make(head: str, config: "NetworkConfig") -> "tuple[Path, Network]":
        labels = ["yes", "no", "stop", UNKNOWN, SILENCE if head == "classification" else BLANK]
        torch.manual_seed(0)
        network = NETWORKS[head](len(labels), config, "torch").eval()
        notes = {"labels": labels, "features": FEATURES, "network": asdict(config), "head": head}
        path = tmp_path_factory.mktemp("untrained") / f"{head}.onnx"
        export(Scorer(network).eval(), bundle_info(notes, 0.7, {}, {}), path)
        return path, network

    return make


@pytest.fixture(scope="module")
def shared_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    room = Room(tmp_path_factory.mktemp("sound"))
    yield room
    room.kill()


@pytest.fixture
def room(shared_room: Room) -> Room:
    """A sound server with its one sink."""
    shared_room.ready()
    return shared_room
