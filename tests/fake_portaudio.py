"""As much of `sounddevice` as is used, in the hands of a test."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeStream:
    """An input stream that delivers when it is told to."""

    def __init__(self, **options: Any) -> None:
        self.closed, self.closing = False, threading.Event()
        self.closing.set()
        self.__dict__.update(options)

    def start(self) -> None: ...

    def close(self) -> None:
        self.closing.wait(20)
        self.closed = True


class FakePortAudio:
    """`devices` may change, but is seen only after a restart."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        self.devices = [self.device("Built-in", 16000), self.device("USB Mic: Audio (hw:1,0)", 16000)]
        self.host_apis = ["ALSA"]
        self.default = SimpleNamespace(device=[0, 0])
        self.streams: list[FakeStream] = []
        self.refusal: Exception | None = None
        self.channels_refused: tuple[int, ...] = ()
        self.played: FakeStream | None = None
        self.n_restarts = 0
        self._initialized = 1
        self._seen = list(self.devices)

        class Input(FakeStream):
            def __init__(stream, **options: Any) -> None:
                if self.refusal or options["channels"] in self.channels_refused:
                    raise self.refusal or self.PortAudioError("Invalid number of channels", -9998)
                super().__init__(**options)
                self.streams.append(stream)

        class Output(FakeStream): ...  # each fake has its own, as all objects of the process are looked at

        self.RawInputStream = self.InputStream = Input
        self.RawOutputStream = self.OutputStream = Output

    @staticmethod
    def device(name: str, rate: float, channels: int = 1, host_api: int = 0) -> dict[str, Any]:
        return {"name": name, "max_input_channels": channels, "default_samplerate": rate, "hostapi": host_api}

    def query_devices(self) -> list[dict[str, Any]]:
        return self._seen

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": name} for name in self.host_apis]

    def get_stream(self) -> FakeStream:
        if self.played is None:
            raise RuntimeError("play()/rec()/playrec() was not called yet")
        return self.played

    def stop(self) -> None:
        assert self.played
        self.played.close()

    def _exit_handler(self) -> None: ...

    def _terminate(self) -> None:
        assert all(stream.closed for stream in self.streams), "PortAudio ends with a stream open"
        self._initialized -= 1

    def _initialize(self) -> None:
        self._initialized += 1
        self.n_restarts += 1
        self._seen = list(self.devices)

    def deliver(self, n_blocks: int = 1, overflow: bool = False, value: Any = 0.25) -> None:
        """Blocks of one value to the stream that was opened last."""
        stream: Any = self.streams[-1]
        samples = np.full((stream.blocksize, stream.channels), value, np.float32)
        for _ in range(n_blocks):
            stream.callback(samples, len(samples), None, SimpleNamespace(input_overflow=overflow))
