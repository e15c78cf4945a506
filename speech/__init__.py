"""Offline speech-command recognition.

    from speech import Recognizer, Listener

The names load on first use, so that `import speech` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech.errors import SpeechError
    from speech.listener import Detection, Listener
    from speech.recognizer import Prediction, Recognizer

__all__ = ["Detection", "Listener", "Prediction", "Recognizer", "SpeechError"]

_HOME = {
    "Detection": "speech.listener",
    "Listener": "speech.listener",
    "Prediction": "speech.recognizer",
    "Recognizer": "speech.recognizer",
    "SpeechError": "speech.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'speech' has no attribute {name!r}")
