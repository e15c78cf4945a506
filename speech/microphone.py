"""A sound device as a context manager that yields blocks."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech.audio import Block, as_mono, resample_stream
from speech.errors import DeviceError

BLOCK_S = 0.04
PATIENCE_S = 3.0
"""Seconds without a block after which the device counts as gone."""
BACKLOG_S = 10.0
"""Seconds of audio kept while nobody asks for it."""


@dataclass(frozen=True)
class InputDevice:
    """A device that can record."""

    number: int
    name: str
    channels: int
    sample_rate_hz: int
    """The device's own rate."""
    is_default: bool


def sounddevice() -> ModuleType:
    """The PortAudio binding, loaded only when a device is wanted.

    Raises:
        DeviceError: when the PortAudio library is missing; says how to install it.
    """
    try:
        import sounddevice as module
    except OSError as error:
        raise DeviceError(
            "the PortAudio library is missing: install it (Debian, Ubuntu: apt-get install libportaudio2; "
            "Fedora: dnf install portaudio); --file and --stdin work without it"
        ) from error
    found: ModuleType = module
    return found


def list_devices() -> list[InputDevice]:
    """All devices that can record, by number.  Raises DeviceError without PortAudio or a sound system."""
    module = sounddevice()
    try:
        devices, default = module.query_devices(), module.default.device[0]
    except module.PortAudioError as error:
        raise DeviceError(f"the sound system can't be asked for devices: {error.args[0]}") from error
    return [
        InputDevice(n, found["name"], found["max_input_channels"], round(found["default_samplerate"]), n == default)
        for n, found in enumerate(devices)
        if found["max_input_channels"] > 0
    ]


def choose(device: int | str | None) -> InputDevice:
    """The device of a number, the one whose name contains a text (case ignored), or the default one.

    Raises:
        DeviceError: none or several fit.
    """
    devices = list_devices()
    if not devices:
        raise DeviceError("no input device: plug in a microphone, or use --file or --stdin")
    if device is None:
        fitting = [d for d in devices if d.is_default] or devices[:1]
    elif isinstance(device, int):
        fitting = [d for d in devices if d.number == device]
    else:
        exact = [d for d in devices if d.name.lower() == device.lower()]
        fitting = exact or [d for d in devices if device.lower() in d.name.lower()]
    if len(fitting) != 1:
        problem = "no input device" if not fitting else f"{len(fitting)} input devices"
        raise DeviceError(f"{problem} for {device!r}; --list-devices shows them")
    return fitting[0]


class Microphone:
    """An open input device.

    Captures at the device's own rate (many refuse 16 kHz) and yields mono blocks at the rate asked for.

        with Microphone() as microphone:
            for block in microphone.blocks(16000): ...

    Args:
        device: number, part of a name, or None for the default.
    Raises:
        DeviceError: on entering, when there is no such device or it can't be opened; while reading, when it
            stops delivering.
    """

    def __init__(self, device: int | str | None = None) -> None:
        self._wanted = device
        self.overflows = 0
        """Times that the driver or the backlog lost samples."""

    def __enter__(self) -> "Microphone":
        self.device = choose(self._wanted)
        rate = self.device.sample_rate_hz
        self._queue: queue.Queue[NDArray[np.float32]] = queue.Queue(round(BACKLOG_S / BLOCK_S))
        self._stream = self._open(sounddevice(), rate)
        return self

    def _open(self, module: ModuleType, rate: int) -> Any:
        channels = sorted({1, min(2, self.device.channels)})  # some hardware refuses to record in mono
        for n_channels in channels:
            try:
                stream = module.InputStream(
                    samplerate=rate,
                    blocksize=round(BLOCK_S * rate),
                    device=self.device.number,
                    channels=n_channels,
                    dtype="float32",
                    callback=self._callback,
                )
                stream.start()
                return stream
            except (module.PortAudioError, ValueError) as error:
                if n_channels == channels[-1]:
                    raise DeviceError(f"can't record from {self.device.name!r}: {error.args[0]}") from error
        raise AssertionError("unreachable")

    def _callback(self, samples: NDArray[np.float32], n_frames: int, time: Any, status: Any) -> None:
        self.overflows += bool(status.input_overflow)
        try:
            self._queue.put_nowait(samples.copy())
        except queue.Full:
            self.overflows += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close(ignore_errors=True)

    def blocks(self, sample_rate_hz: int) -> Iterator[Block]:
        """Mono blocks (time,) at `sample_rate_hz`, without end."""
        return resample_stream(self._captured(), self.device.sample_rate_hz, sample_rate_hz)

    def _captured(self) -> Iterator[Block]:
        while True:
            try:
                yield as_mono(self._queue.get(timeout=PATIENCE_S))
            except queue.Empty:
                raise DeviceError(f"{self.device.name!r} stopped delivering audio: was it unplugged?") from None
