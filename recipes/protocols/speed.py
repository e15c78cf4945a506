"""Speed of a bundle: CPU time per second of audio, and time from process start to the first result."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
from onnx import TensorProto, helper, numpy_helper

from speech.recognizer import Recognizer

FRAMES, INPUTS, UNITS = 98, 40, 256


@dataclass(frozen=True)
class Speed:
    """Medians of one run; bundle and reference are measured alternately."""

    ms_per_second: float
    """CPU milliseconds for one second of audio on one thread, features included."""
    reference_ms: float
    """The same for the reference: one LSTM of 256 units over 98 frames of 40 values in ONNX Runtime."""
    start_s: float
    """Seconds from start to end of the process `speech.listen --file` on a one-second file."""
    imports_s: float
    """The same for a process that only imports numpy and onnxruntime."""

    def __str__(self) -> str:
        return (
            "speed, medians of one run\n"
            f"  one second of audio, one thread   {self.ms_per_second:6.2f} ms = "
            f"{self.ms_per_second / self.reference_ms:.2f} x the reference LSTM(256) at {self.reference_ms:.2f} ms\n"
            f"  process start to result           {self.start_s:6.2f} s  = "
            f"{self.start_s / self.imports_s:.2f} x importing numpy and onnxruntime at {self.imports_s:.2f} s"
        )


def reference_session() -> onnxruntime.InferenceSession:
    """One forward LSTM layer with random weights, on one thread."""
    rng = np.random.default_rng(0)
    shapes = {"W": (1, 4 * UNITS, INPUTS), "R": (1, 4 * UNITS, UNITS)}
    weights = [numpy_helper.from_array(0.05 * rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    tensor = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    nodes = [helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=UNITS)]
    ends = [tensor("x", shape=(FRAMES, 1, INPUTS))], [tensor("y", shape=(FRAMES, 1, 1, UNITS))]
    graph = helper.make_graph(nodes, "reference", *ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def cpu_ms(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return 1000 * (time.process_time() - begin)


def wall_s(command: list[str]) -> float:
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.monotonic() - begin


def evaluate_speed(bundle: Path, runs: int = 300, starts: int = 7) -> Speed:
    """Measure bundle and reference alternately: decoding `runs` times, process starts `starts` times."""
    recognizer = Recognizer.load(bundle)
    rng, info = np.random.default_rng(0), recognizer.info
    waveform = 0.1 * rng.standard_normal(info.sample_rate_hz).astype(np.float32)
    reference, frames = reference_session(), rng.standard_normal((FRAMES, 1, INPUTS)).astype(np.float32)

    ours, theirs = (
        partial(recognizer.classify, waveform, info.sample_rate_hz),
        partial(reference.run, None, {"x": frames}),
    )
    pairs = np.array([(cpu_ms(ours), cpu_ms(theirs)) for _ in range(runs + 10)])[10:]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "second.wav"
        soundfile.write(file, waveform, info.sample_rate_hz)
        listen = [sys.executable, "-m", "speech.listen", "--model", str(bundle), "--file", str(file)]
        imports = [sys.executable, "-c", "import numpy, speech, onnxruntime"]
        times = np.array([(wall_s(listen), wall_s(imports)) for _ in range(starts + 1)])[1:]
    return Speed(*np.median(pairs, axis=0).tolist(), *np.median(times, axis=0).tolist())
