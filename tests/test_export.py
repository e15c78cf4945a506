"""Bundles of untrained networks against torch, and read back."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ten import TWELVE

from speech import Recognizer
from speech.bundle import BLANK, UNKNOWN
from speech.errors import BundleError, ConfigError
from speech.model import export
from speech.model.features import FEATURES
from speech.model.networks import NETWORKS, NetworkConfig

SMALL = NetworkConfig(channels=(4, 6, 8), width=8, hidden=8)
RICH = replace(SMALL, layers=3)
TOKENS = (*TWELVE[:10], UNKNOWN, BLANK)
LABELS: dict[str, tuple[str, ...]] = {"classification": TWELVE, "ctc": TOKENS}


@dataclass(frozen=True)
class Exported:
    """A network and its bundle."""

    head: str
    config: NetworkConfig
    scorer: export.Scorer
    path: Path

    def run(self, waveform: torch.Tensor) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(self.path)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"waveform": waveform.numpy()}), strict=True))


def notes_of(head: str, config: NetworkConfig) -> dict[str, Any]:
    return {
        "labels": list(LABELS[head]),
        "features": FEATURES,
        "network": asdict(config),
        "lstm": "torch",
        "head": head,
        "epoch": 1,
    }


def make(head: str, config: NetworkConfig) -> export.Scorer:
    """A network whose weights and running statistics are all different from those of a new one."""
    torch.manual_seed(0)
    network = NETWORKS[head](len(LABELS[head]), config, "torch").train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for _ in range(3):
            network(5 * torch.randn(4, 60, 40))
    return export.Scorer(network).eval()


@pytest.fixture(
    scope="module",
    params=[("classification", SMALL), ("classification", RICH), ("ctc", RICH)],
    ids=["words", "words, everything on", "sequences"],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    head, config = request.param
    scorer, path = make(head, config), tmp_path_factory.mktemp("bundle") / "a.onnx"
    scorer.temperature = 1.7
    scorer.shift({"yes": -1.0}, LABELS[head])
    export.export(scorer, export.bundle_info(notes_of(head, config), 0.7, {"temperature": 1.7}, {}), path)
    return Exported(head, config, scorer, path)


def waveforms(n: int, seconds: float) -> torch.Tensor:
    return 0.1 * torch.randn(n, round(16000 * seconds), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seconds", [0.2, 1.43])
def test_a_bundle_gives_what_torch_gives(exported: Exported, seconds: float) -> None:
    waveform = waveforms(3, seconds)
    scores = Recognizer.load(exported.path).scores(waveform.numpy())
    np.testing.assert_allclose(scores, exported.scorer(waveform).detach(), atol=1e-5)


def test_the_outputs_are_named_and_typed(exported: Exported) -> None:
    config, outputs = exported.config, exported.run(waveforms(2, 1.0))
    assert {value.dtype for value in outputs.values()} == {np.dtype(np.float32)}
    n_steps = 25
    assert outputs.pop("features").shape == (2, 98, 40)
    if exported.head == "ctc":
        assert outputs.pop("scores").shape == (2, n_steps, len(TOKENS))
    else:
        assert outputs.pop("scores").shape == (2, len(TWELVE))
        assert outputs.pop("embedding").shape == (2, 2 * config.hidden)
        attention = outputs.pop("attention")
        assert attention.shape == (2, 1, n_steps)
        np.testing.assert_allclose(attention.sum(2), 1, atol=1e-5)
    assert not outputs


def test_the_embedding_is_what_the_class_layer_sees(exported: Exported) -> None:
    if exported.head == "ctc":
        assert "embedding" not in exported.run(waveforms(1, 1.0))
        return
    outputs, network = exported.run(waveforms(2, 1.0)), exported.scorer.network
    logits = network.classes(torch.from_numpy(outputs["embedding"])) + exported.scorer.offsets
    np.testing.assert_allclose(outputs["scores"], torch.softmax(logits / 1.7, 1).detach(), atol=1e-5)


def test_a_bundle_gives_back_its_network(exported: Exported) -> None:
    again, notes = export.load_network(exported.path)
    assert notes["labels"] == list(LABELS[exported.head])
    assert NetworkConfig(**notes["network"]) == exported.config
    torch.testing.assert_close(again(waveforms(3, 1.0)), exported.scorer(waveforms(3, 1.0)))
    read = again.network.state_dict()
    for name, value in exported.scorer.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(read[name], value, atol=0, rtol=0)


def test_weights_with_equal_values_are_read_back(tmp_path: Path) -> None:
    """A new network has many, which the exporter would like to merge."""
    network = NETWORKS["classification"](len(TWELVE), RICH, "torch")
    scorer = export.Scorer(network).eval()
    export.export(scorer, export.bundle_info(notes_of("classification", RICH), 0.7, {}, {}), tmp_path / "a.onnx")
    again, _ = export.load_network(tmp_path / "a.onnx")
    torch.testing.assert_close(again(waveforms(1, 1.0)), scorer(waveforms(1, 1.0)))


def test_a_step_has_its_time_in_the_metadata(exported: Exported) -> None:
    info = Recognizer.load(exported.path).info
    assert info.step_s == pytest.approx(0.04)
    assert info.offset_s == pytest.approx(0.0125)  # half a window


def test_the_layer_over_words_stays_behind(tmp_path: Path) -> None:
    network = NETWORKS["classification"](len(TWELVE), RICH, "torch", n_words=500)
    state = {f"acoustic.{name}": value for name, value in network.state_dict().items()}
    torch.save({"speech": notes_of("classification", RICH), "state_dict": state}, tmp_path / "a.ckpt")
    scorer, _ = export.load_checkpoint(tmp_path / "a.ckpt")
    assert not [name for name in scorer.state_dict() if "words" in name]
    expected = export.Scorer(network).eval().logits(waveforms(1, 1.0))
    torch.testing.assert_close(scorer.logits(waveforms(1, 1.0)), expected)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    state = {f"acoustic.{name}": value for name, value in make("classification", SMALL).network.state_dict().items()}
    torch.save({"speech": notes_of("classification", RICH), "state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(BundleError, match=r"a\.ckpt is no checkpoint of this version"):
        export.load_checkpoint(tmp_path / "a.ckpt")


def test_a_bundle_of_another_make_is_refused(tone_bundle: Path) -> None:
    with pytest.raises(BundleError, match="can be trained further"):
        export.load_network(tone_bundle)


def test_a_bundle_that_differs_from_torch_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, target = make("classification", SMALL), tmp_path / "a.onnx"
    info = export.bundle_info(notes_of("classification", SMALL), 0.7, {}, {})
    assert export.export(scorer, info, target) <= export.TOLERANCE
    assert {p.key for p in onnx.load(target).metadata_props} == set(info.as_metadata())
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(BundleError, match="differ"):
        export.export(scorer, info, target)
    assert not target.exists()


def test_offsets_of_unknown_labels_are_named() -> None:
    with pytest.raises(ConfigError, match="offsets of maybe"):
        make("classification", SMALL).shift({"maybe": 1.0}, TWELVE)
