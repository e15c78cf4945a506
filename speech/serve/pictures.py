"""Data of an utterance for the page to draw, small enough for a message: bytes in base64."""

from base64 import b64encode
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech.recognizer import SHORTEST_S
from speech.results import Examined
from speech.segment import SAMPLE_RATE_HZ
from speech.trace import Tracer

N_COLUMNS = 480
"""Columns of the drawn waveform; each gives the smallest and the largest of its samples."""
DEVIATIONS = 2.5
"""Standard deviations from the mean at which the colour scale of the MFCC ends."""

Values = NDArray[np.float32]


def picture_of(examined: Examined, tracer: Tracer | None) -> dict[str, Any]:
    """The fields of an `utterance` message.

    Args:
        examined: the utterance.
        tracer: tracer of the bundle that read it; None leaves out MFCC, attention and gates.
    """
    waveform = examined.waveform
    picture: dict[str, Any] = {
        "start_s": round(examined.start_s, 3),
        "end_s": round(examined.start_s + len(waveform) / SAMPLE_RATE_HZ, 3),
        "at_s": round(examined.at_s, 3),
        "scores": {label: round(score, 4) for label, score in examined.scores.items()},
        "waveform": coded(peaks(waveform)),
    }
    if tracer and len(waveform) >= SHORTEST_S * SAMPLE_RATE_HZ:
        trace = tracer.trace(waveform)
        picture["mfcc"] = image(standardised(trace.features), trace.frame_s)
        picture["attention"] = [image(scaled(head / head.max())[:, None], trace.step_s) for head in trace.attention]
        picture["gates"] = [
            {"name": gates.name}
            | {name: image(scaled(getattr(gates, name)), trace.step_s) for name in ("forget", "input", "output")}
            for gates in trace.gates
        ]
    return picture


def image(values: NDArray[np.uint8], middles_s: Values) -> dict[str, Any]:
    """A picture (columns, rows), with the middle of its first and last column in seconds.

    Args:
        middles_s: (columns,) middle of each column.
    """
    ends_s = [round(float(middles_s[n]), 4) for n in (0, -1)]
    return {"shape": values.shape, "middles_s": ends_s, "values": coded(values)}


def peaks(waveform: Values) -> NDArray[np.int8]:
    """(time,) in -1..1 -> (columns, 2), smallest and largest sample of each column, -127..127."""
    if not len(waveform):
        return np.zeros((0, 2), np.int8)
    columns = np.array_split(waveform, min(N_COLUMNS, len(waveform)))
    bounds = np.array([(column.min(), column.max()) for column in columns])
    return np.round(127 * np.clip(bounds, -1, 1)).astype(np.int8)


def standardised(mfcc: Values) -> NDArray[np.uint8]:
    """(frames, n_mfcc) -> the same, 0..255; each coefficient standardised over the frames."""
    deviation = np.maximum(mfcc.std(0), 1e-3)
    return scaled(0.5 + (mfcc - mfcc.mean(0)) / deviation / (2 * DEVIATIONS))


def scaled(values: Values) -> NDArray[np.uint8]:
    """0..1 -> 0..255; values outside are clipped."""
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)


def coded(values: NDArray[Any]) -> str:
    return b64encode(values.tobytes()).decode()
