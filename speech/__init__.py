"""Offline speech-command recognition.

    from speech import Recognizer, Listener

The names are imported on first use, so that `import speech` is fast.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # each as itself: that exports it to type checkers
    from speech.background import listen_async as listen_async
    from speech.background import listen_in_background as listen_in_background
    from speech.errors import SpeechError as SpeechError
    from speech.grammar import Grammar as Grammar
    from speech.grammar import NGram as NGram
    from speech.listener import Listener as Listener
    from speech.own.words import OwnWords as OwnWords
    from speech.recognizer import Recognizer as Recognizer
    from speech.results import Detection as Detection
    from speech.results import Examined as Examined
    from speech.results import Prediction as Prediction
    from speech.results import Reason as Reason
    from speech.results import Rejection as Rejection
    from speech.results import SpokenWord as SpokenWord
    from speech.segment import ListenerConfig as ListenerConfig
    from speech.sound.echo import EchoCanceller as EchoCanceller
    from speech.sound.microphone import Microphone as Microphone

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
"""ONNX Runtime from 1.29 on reads this at its import.  Without it, it writes a device id into the home and sends events
to its maker.  Every module that imports it lies in this package, so this line runs first."""

__version__ = "0.2.0"

_NAMES = {
    "background": ("listen_async", "listen_in_background"),
    "errors": ("SpeechError",),
    "grammar": ("Grammar", "NGram"),
    "listener": ("Listener",),
    "own.words": ("OwnWords",),
    "recognizer": ("Recognizer",),
    "results": ("Detection", "Examined", "Prediction", "Reason", "Rejection", "SpokenWord"),
    "segment": ("ListenerConfig",),
    "sound.echo": ("EchoCanceller",),
    "sound.microphone": ("Microphone",),
}
_HOME = {name: f"speech.{module}" for module, names in _NAMES.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'speech' has no attribute {name!r}")
