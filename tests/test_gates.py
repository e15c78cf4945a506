"""What the live half reads out of a bundle, against the LSTM written from its equations."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.metrics import TWELVE
from speech.bundle import BLANK, UNKNOWN
from speech.errors import BundleError
from speech.gates import Trace, Tracer
from speech.training import export
from speech.training.features import MFCC, FeatureConfig
from speech.training.lstm import LSTM
from speech.training.networks import Head, Network, NetworkConfig, build_network

RATE = 16000
CONFIG = NetworkConfig(channels=12, stacking_channels=14, hidden=10, layers=2, blocks=1, attention_heads=2)
FEATURES = FeatureConfig()


def save(head: Head, config: NetworkConfig, target: Path) -> Network:
    """Write the bundle of an untrained network; that network, with the LSTM from its equations."""
    labels = TWELVE if head == "classification" else (*TWELVE[:10], UNKNOWN, BLANK)
    torch.manual_seed(0)
    network = build_network(head, FEATURES.n_mfcc, len(labels), config, "torch")
    notes = {"labels": labels, "features": asdict(FEATURES), "network": asdict(config), "head": head}
    export.export(export.Scorer(MFCC(FEATURES), network).eval(), export.bundle_info(notes, 0.7, {}, {}), target)
    twin = build_network(head, FEATURES.n_mfcc, len(labels), config, "equations")
    twin.load_state_dict(network.state_dict())
    return twin.eval()


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return save("classification", CONFIG, tmp_path_factory.getbasetemp() / "gates.onnx")


@pytest.fixture(scope="module")
def seen(network: Network, waveform: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return Tracer(tmp_path_factory.getbasetemp() / "gates.onnx").trace(waveform)


def test_the_gates_are_those_of_the_equations(network: Network, seen: Trace, waveform: np.ndarray) -> None:
    lstm = network.encoder.lstm
    assert isinstance(lstm, LSTM)
    with torch.no_grad():
        expected = lstm.gates(network.encoder.steps(MFCC(FEATURES)(torch.from_numpy(waveform)[None])))
    assert [gates.name for gates in seen.gates] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for ours, theirs in zip(seen.gates, expected, strict=True):
        for name in ("forget", "input", "output"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name)[0], atol=1e-5)


def test_features_attention_and_scores_are_those_of_torch(network: Network, seen: Trace, waveform: np.ndarray) -> None:
    features = MFCC(FEATURES)(torch.from_numpy(waveform)[None])
    _, attention = network.pooled(features)
    np.testing.assert_allclose(seen.features, features[0], atol=1e-3)
    np.testing.assert_allclose(seen.attention, attention[0].detach(), atol=1e-5)
    np.testing.assert_allclose(seen.scores, torch.softmax(network(features), 1)[0].detach(), atol=1e-5)


def test_times_are_the_middles(seen: Trace) -> None:
    assert len(seen.frame_s) == len(seen.features)
    assert len(seen.step_s) == len(seen.gates[0].forget) == seen.attention.shape[1]
    np.testing.assert_allclose(seen.frame_s[:2], [0.0125, 0.0225], atol=1e-6)
    np.testing.assert_allclose(seen.step_s[:2], [0.0525, 0.0925], atol=1e-6)


def test_sequences_have_gates_but_no_attention(waveform: np.ndarray, tmp_path: Path) -> None:
    save("ctc", replace(CONFIG, layers=1), tmp_path / "a.onnx")
    seen = Tracer(tmp_path / "a.onnx").trace(waveform)
    assert [gates.name for gates in seen.gates] == ["l0", "l0_reverse"]
    assert seen.attention.shape == (0, len(seen.step_s))
    assert seen.scores.shape == (len(seen.step_s), 12)


def test_a_bundle_without_an_lstm_is_refused(tone_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no LSTM"):
        Tracer(tone_bundle)
