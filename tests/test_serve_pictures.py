"""What the page is sent of an utterance, against the network that heard it."""

from base64 import b64decode
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("websockets", reason="needs the extra `serve`")

from ten import TWELVE

from speech.model import export
from speech.model.features import FEATURES
from speech.model.networks import NETWORKS, NetworkConfig
from speech.results import Examined
from speech.serve.pictures import N_COLUMNS, peaks, picture_of, standardised
from speech.trace import Tracer

RATE = 16000


@pytest.fixture(scope="module")
def tracer(tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    """Of an untrained network."""
    config = NetworkConfig(channels=(4, 6, 8), width=10, hidden=6)
    torch.manual_seed(0)
    network = NETWORKS["classification"](len(TWELVE), config, "torch")
    notes = {"labels": TWELVE, "features": FEATURES, "network": asdict(config), "head": "classification"}
    path: Path = tmp_path_factory.mktemp("bundle") / "untrained.onnx"
    export.export(export.Scorer(network).eval(), export.bundle_info(notes, 0.7, {}, {}), path)
    return Tracer(path)


def examined(length_s: float) -> Examined:
    waveform = 0.1 * np.random.default_rng(0).standard_normal(round(length_s * RATE))
    return Examined(waveform.astype(np.float32), 2.0, 3.5, {"yes": 0.91234567}, (), None)


def values(image: dict) -> np.ndarray:
    return np.frombuffer(b64decode(image["values"]), np.uint8).reshape(image["shape"])


def test_everything_is_drawn_where_it_is_in_time(tracer: Tracer) -> None:
    picture = picture_of(examined(1.2), tracer)
    trace = tracer.trace(examined(1.2).waveform)
    assert (picture["start_s"], picture["end_s"], picture["at_s"]) == (2.0, 3.2, 3.5)
    assert picture["scores"] == {"yes": 0.9123}
    assert picture["mfcc"]["shape"] == trace.features.shape
    assert picture["mfcc"]["middles_s"] == pytest.approx([0.0125, float(trace.frame_s[-1])], abs=1e-3)
    assert [gates["name"] for gates in picture["gates"]] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for gates, expected in zip(picture["gates"], trace.gates, strict=True):
        for name in ("forget", "input", "output"):
            np.testing.assert_allclose(values(gates[name]) / 255, getattr(expected, name), atol=0.003)
            assert gates[name]["middles_s"] == pytest.approx(
                [float(trace.step_s[0]), float(trace.step_s[-1])], abs=1e-3
            )
    for head, weights in zip(picture["attention"], trace.attention, strict=True):
        np.testing.assert_allclose(values(head)[:, 0] / 255, weights / weights.max(), atol=0.003)


def test_talk_that_was_not_read_has_nothing_to_draw(tracer: Tracer) -> None:
    picture = picture_of(examined(0), tracer)
    assert picture["waveform"] == ""
    assert "mfcc" not in picture


def test_without_a_look_inside_the_waveform_is_drawn() -> None:
    picture = picture_of(examined(1.0), None)
    assert len(b64decode(picture["waveform"])) == 2 * N_COLUMNS
    assert "mfcc" not in picture


def test_peaks_keep_to_their_range() -> None:
    waveform = np.sin(np.linspace(0, 50, 1000)).astype(np.float32)
    assert peaks(waveform).shape == (N_COLUMNS, 2)
    assert peaks(2 * waveform).max() == 127
    assert (peaks(waveform)[:, 0] <= peaks(waveform)[:, 1]).all()


def test_colours_show_each_coefficient_by_itself() -> None:
    mfcc = np.random.default_rng(0).standard_normal((500, 2)) * [100, 1] + [1000, 0]
    coloured = standardised(mfcc.astype(np.float32))
    np.testing.assert_allclose(coloured.mean(0), 127.5, atol=2)
    np.testing.assert_allclose(coloured.std(0), 255 / 5, rtol=0.05)
    assert (standardised(np.ones((5, 3), np.float32)) == 128).all()
