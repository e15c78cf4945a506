"""Offline speech-command recognition.

    from speech import Recognizer, Listener

The names are imported on first use, so that `import speech` is fast.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech.background import listen_async, listen_in_background
    from speech.errors import SpeechError
    from speech.listener import Listener
    from speech.own.words import OwnWords
    from speech.recognizer import Recognizer
    from speech.results import Detection, Examined, Prediction, Reason, Rejection, SpokenWord
    from speech.segment import ListenerConfig

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
"""ONNX Runtime from 1.29 on reads this at its import.  Without it, it writes a device id into the home and sends events
to its maker.  Every module that imports it lies in this package, so this line runs first."""

__version__ = "0.2.0"

__all__ = [
    "Detection",
    "Examined",
    "Listener",
    "ListenerConfig",
    "OwnWords",
    "Prediction",
    "Reason",
    "Recognizer",
    "Rejection",
    "SpeechError",
    "SpokenWord",
    "__version__",
    "listen_async",
    "listen_in_background",
]

_HOME = {
    "Detection": "speech.results",
    "Examined": "speech.results",
    "Listener": "speech.listener",
    "ListenerConfig": "speech.segment",
    "OwnWords": "speech.own.words",
    "Prediction": "speech.results",
    "Reason": "speech.results",
    "Recognizer": "speech.recognizer",
    "Rejection": "speech.results",
    "SpeechError": "speech.errors",
    "SpokenWord": "speech.results",
    "listen_async": "speech.background",
    "listen_in_background": "speech.background",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'speech' has no attribute {name!r}")
