"""As much of `sounddevice` as is used, in the hands of a test; what is a process otherwise is a thread here."""

import os
import queue
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from speech.sound import devices, microphone


class FakeStream:
    """An input stream that delivers when it is told to."""

    def __init__(self, **options: Any) -> None:
        self.closed, self.thread = False, threading.current_thread()
        self.__dict__.update(options)

    def start(self) -> None: ...


class FakeProcess(devices.Process):
    """A thread that answers a request, as the process does."""

    def __init__(self, request: devices.Request | None, fake: "FakePortAudio") -> None:
        self._fake, self._killed = fake, False
        fake.seen = list(fake.devices)  # a new process looks for devices
        reading, writing = os.pipe()
        self._process: Any = SimpleNamespace(
            stdout=os.fdopen(reading, "rb"),
            kill=self._kill,
            wait=lambda _: None,
            stdin=SimpleNamespace(close=lambda: 0),
        )
        self._answers = queue.Queue(round(devices.BACKLOG_S / devices.BLOCK_S))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._thread = threading.Thread(target=self._answer, args=[request, os.fdopen(writing, "wb")], daemon=True)
        self._thread.start()

    def _answer(self, request: devices.Request | None, out: Any) -> None:
        with suppress(BrokenPipeError, SystemExit), out:
            devices.answer(request, out)

    def _kill(self) -> None:
        self._thread.name = "killed"
        for stream in self._fake.streams:
            if stream.thread is self._thread:
                stream.closed = True
                stream.finished_callback()  # type: ignore[attr-defined]


class FakePortAudio:
    """`devices` may change, but is seen only by a new process or after a restart."""

    class PortAudioError(Exception):
        pass

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.devices = [self.device("Built-in", 16000), self.device("USB Mic: Audio (hw:1,0)", 16000)]
        self.host_apis = ["ALSA"]
        self.default = SimpleNamespace(device=[0, 0])
        self.streams: list[FakeStream] = []
        self.refusal: Exception | None = None
        self.channels_refused: tuple[int, ...] = ()
        self.n_restarts = 0
        self._initialized = 1
        self.seen = list(self.devices)
        monkeypatch.setattr(devices, "sounddevice", self._module)
        for module in (devices, microphone):
            monkeypatch.setattr(module, "Process", lambda request: FakeProcess(request, self))
        for name, value in (("POLL_S", 0.01), ("PATIENCE_S", 0.3)):
            monkeypatch.setattr(microphone, name, value)
        monkeypatch.setattr(devices, "RETRY_S", 0.02)

    def _module(self) -> "FakePortAudio":
        if threading.current_thread().name == "killed":
            raise SystemExit
        return self

    @staticmethod
    def device(name: str, rate: float, channels: int = 1, host_api: int = 0) -> dict[str, Any]:
        return {"name": name, "max_input_channels": channels, "default_samplerate": rate, "hostapi": host_api}

    def query_devices(self) -> list[dict[str, Any]]:
        return self.seen

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": name} for name in self.host_apis]

    def RawInputStream(self, **options: Any) -> FakeStream:
        if self.refusal or options["channels"] in self.channels_refused:
            raise self.refusal or self.PortAudioError("Invalid number of channels", -9998)
        self.streams.append(FakeStream(**options))
        return self.streams[-1]

    def _terminate(self) -> None:
        self._initialized -= 1

    def _initialize(self) -> None:
        self._initialized += 1
        self.n_restarts += 1
        self.seen = list(self.devices)

    def deliver(self, n_blocks: int = 1, overflow: bool = False, value: Any = 0.25) -> None:
        """Blocks of one value to the stream that was opened last."""
        stream: Any = self.streams[-1]
        samples = np.full((stream.blocksize, stream.channels), value, np.float32)
        for _ in range(n_blocks):
            stream.callback(samples, len(samples), None, SimpleNamespace(input_overflow=overflow))
