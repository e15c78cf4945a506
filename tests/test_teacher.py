"""The teacher against the files it is read from, run by ONNX Runtime, and where its embeddings lie in time."""

import numpy as np
import onnxruntime
import pytest
import torch

from speech.errors import ConfigError
from speech.training import teacher
from speech.training.networks import Encoder, NetworkConfig
from speech.training.teacher import PAD, STEP_S, SpeechEmbedding, around_embeddings, find_teacher

RATE = 16000


def theirs(waveform: np.ndarray) -> np.ndarray:
    """Each embedding by itself, from windows of 76 frames cut out one after another."""
    mel, network = (
        onnxruntime.InferenceSession(str(find_teacher() / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("melspectrogram", "embedding_model")
    )
    (frames,) = mel.run(None, {"input": (32767 * waveform[None]).astype(np.float32)})
    frames = frames.reshape(-1, 32) / 10 + 2
    windows = np.stack([frames[i : i + 76] for i in range(0, len(frames) - 75, 8)])[..., None]
    (embeddings,) = network.run(None, {network.get_inputs()[0].name: windows})
    return embeddings.reshape(len(windows), 96)


@pytest.mark.parametrize("seconds", [0.8, 1.48, 3.0])
def test_all_windows_at_once_are_each_by_itself(seconds: float) -> None:
    rng = np.random.default_rng(0)
    waveform = (rng.standard_normal(round(seconds * RATE)) * np.linspace(1e-4, 0.2, round(seconds * RATE))).astype("f4")
    with torch.no_grad():
        ours = SpeechEmbedding()(torch.from_numpy(np.stack([waveform, 0.1 * waveform])))[0].numpy()
    expected = theirs(waveform)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_the_encoders_state_is_taken_where_the_embedding_lies() -> None:
    step_s, first_s = Encoder.timing(NetworkConfig(), 0.01, 0.025)
    assert step_s == STEP_S
    times = first_s + step_s * torch.arange(23)[None, :, None]
    found = around_embeddings(times, 9)[0, :, 0]
    assert len(found) == 9
    # An embedding's middle is that of its 76 frames of 512 samples every 160.
    middles = ((75 * 160 + 512) / 2 - PAD) / RATE + 0.08 * torch.arange(9)
    assert (found - middles).abs().max() < 0.003
    assert around_embeddings(times[:, :9], 9).shape[1] == 3, "no more than the encoder has steps for"


def test_it_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install openwakeword"):
        SpeechEmbedding()
