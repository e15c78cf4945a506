"""What the live half reads out of a bundle, against the LSTM written from its equations."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from speech.errors import BundleError
from speech.model.export import Scorer
from speech.model.features import MFCC
from speech.model.lstm import LSTM
from speech.model.networks import NETWORKS, Network, NetworkConfig
from speech.trace import Trace, Tracer

RATE = 16000
CONFIG = NetworkConfig(channels=(4, 6, 8), width=14, hidden=10)
Untrained = Callable[[str, NetworkConfig], tuple[Path, Network]]


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(untrained: Untrained) -> tuple[Path, Network]:
    return untrained("classification", CONFIG)


@pytest.fixture(scope="module")
def network(bundle: tuple[Path, Network]) -> Network:
    return bundle[1]


@pytest.fixture(scope="module")
def seen(bundle: tuple[Path, Network], waveform: np.ndarray) -> Trace:
    return Tracer(bundle[0]).trace(waveform)


def test_the_gates_are_those_of_the_equations(network: Network, seen: Trace, waveform: np.ndarray) -> None:
    twin = NETWORKS["classification"](5, CONFIG, "equations").eval()
    twin.load_state_dict(network.state_dict())
    lstm = twin.encoder.lstm
    assert isinstance(lstm, LSTM)
    with torch.no_grad():
        expected = lstm.gates(twin.encoder.steps(MFCC()(torch.from_numpy(waveform)[None])))
    assert [gates.name for gates in seen.gates] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for ours, theirs in zip(seen.gates, expected, strict=True):
        for name in ("forget", "input", "output"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name)[0], atol=1e-5)


def test_features_attention_and_scores_are_those_of_torch(network: Network, seen: Trace, waveform: np.ndarray) -> None:
    with torch.no_grad():
        features = MFCC()(torch.from_numpy(waveform)[None])
        attention = network.outputs(features)["attention"]
        scores = Scorer(network).eval()(torch.from_numpy(waveform)[None])
    np.testing.assert_allclose(seen.features, features[0], atol=1e-3)
    np.testing.assert_allclose(seen.attention, attention[0], atol=1e-5)
    np.testing.assert_allclose(seen.scores, scores[0], atol=1e-5)


def test_times_are_the_middles(seen: Trace) -> None:
    assert len(seen.frame_s) == len(seen.features)
    assert len(seen.step_s) == len(seen.gates[0].forget) == seen.attention.shape[1]
    np.testing.assert_allclose(seen.frame_s[:2], [0.0125, 0.0225], atol=1e-6)
    np.testing.assert_allclose(seen.step_s[:2], [0.0125, 0.0525], atol=1e-6)


def test_sequences_have_gates_but_no_attention(untrained: Untrained, waveform: np.ndarray) -> None:
    path, _ = untrained("ctc", replace(CONFIG, layers=1))
    seen = Tracer(path).trace(waveform)
    assert [gates.name for gates in seen.gates] == ["l0", "l0_reverse"]
    assert seen.attention.shape == (0, len(seen.step_s))
    assert seen.scores.shape == (len(seen.step_s), 5)


def test_a_bundle_without_an_lstm_is_refused(tone_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no LSTM"):
        Tracer(tone_bundle)


def test_nothing_of_the_training_stack_is_loaded() -> None:
    import subprocess
    import sys

    code = "import sys, speech.trace; print([m for m in ('torch', 'lightning', 'librosa') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
