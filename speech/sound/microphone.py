"""An input device as a context manager that yields blocks.  If the device disappears, it waits for its return."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import numpy as np

from speech import errors
from speech.errors import DeviceError
from speech.sound import channels
from speech.sound.devices import (
    BLOCK_S,
    OPEN_S,
    Captured,
    InputDevice,
    NoPortAudio,
    Process,
    Request,
    no_answer,
    now_s,
)
from speech.sound.files import Block, resample_stream

POLL_S = 0.1
PATIENCE_S = 3.0
"""Seconds without a block after which the device counts as gone, or the machine as having slept."""
GAP_S = 1.0
"""Seconds of silence inserted when a device returns, so that audio from before and after does not form one word."""
REPEAT_S = 10.0
"""Seconds between two warnings about lost audio."""
SILENT_S, SILENT_LEVEL = 5.0, 2**-15
"""Seconds of silence after which a warning is given, and the level that counts as silence: one step of 16 bits."""


class _Watch:
    """Warns of audio that was lost, and once of a device that delivers only silence.

    Audio is lost when the driver says so, when blocks are missing, and when none came for a while: the machine slept.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.n_losses, self._n_told, self._told_s, self._lost_s = 0, 0, -float("inf"), 0.0

    def begin(self, device: InputDevice) -> None:
        """The device was opened."""
        self._device, self._silent_s, self._loss_s = device, 0.0, -float("inf")
        self._last: Captured | None = None

    def check(self, block: Captured, mono: Block) -> None:
        """Examine the next block."""
        length_s = len(mono) / self._device.sample_rate_hz
        last, self._last = self._last, block
        if last:
            passed_s = (block.n_frames - last.n_frames) / self._device.sample_rate_hz
            slept_s = block.time_s - last.time_s - passed_s
            lost_s = passed_s - length_s + slept_s * (slept_s > PATIENCE_S)
            if lost_s > length_s / 2 or block.n_overflows > last.n_overflows:
                self.n_losses += block.time_s - self._loss_s > 1  # soon after another it is the same one
                self._loss_s, self._lost_s = block.time_s, self._lost_s + lost_s
        if self.n_losses > self._n_told and block.time_s - self._told_s >= REPEAT_S:
            self._n_told, self._told_s = self.n_losses, block.time_s
            seconds = f", {self._lost_s:.1f} s in all" if self._lost_s >= 0.05 else ""
            times = f"{self.n_losses} times so far{seconds}"
            self._tell(f"warning: audio was lost, {times}: the machine is too busy or slept")
        before_s, self._silent_s = self._silent_s, self._silent_s + length_s
        if np.ptp(mono) > 2 * SILENT_LEVEL:
            self._silent_s = 0.0 if before_s < SILENT_S else before_s
        elif before_s < SILENT_S <= self._silent_s:
            self._tell(
                f"warning: {self._device.name!r} has delivered nothing but silence for {SILENT_S:.0f} s: is it muted, "
                "or its level at zero?  Look in the sound settings, or choose another --device or --channel"
            )


class Microphone:
    """An input device; it can be used several times, one after the other.

    It captures at the device's own rate (many devices refuse 16 kHz) and yields mono blocks at the requested rate.

        with Microphone() as microphone:
            for block in microphone.blocks(16000): ...

    Several microphones may be open at the same time.

    Args:
        device: number, (part of) a name, or None for the default; see `devices.choose`.
        reconnect: if the device disappears, wait for it and open it again, by its name or as the default device.
        tell: takes one line about a device that disappeared, returned or is silent, or about lost audio; default:
            prints it on stderr.
        channel: channel of the device, from 1 on; `"mix"`: mean of all channels; `"best"`: see
            `channels.ChannelSelector`.
        wait: on entering, wait for a device that is not there yet.
    Raises:
        ConfigError: `channel` is not valid.
        DeviceError: on entering: the microphone is open already, or the device does not exist or can't be opened.
            While reading: the device stops delivering and `reconnect` is false.
    """

    def __init__(
        self,
        device: int | str | None = None,
        reconnect: bool = True,
        tell: Callable[[str], None] | None = None,
        channel: channels.Channel = "best",
        wait: bool = False,
    ) -> None:
        self._wanted, self._reconnect, self._tell, self.wait = device, reconnect, tell or errors.tell, wait
        self._channel = channels.check(channel)
        self._watch = _Watch(self._tell)
        self._device: InputDevice | None = None
        self._discarded_s = -float("inf")
        self._process: Process | None = None
        self._use: object = None  # a new one from each `__enter__` to `close`
        self._changing = threading.Lock()

    @property
    def device(self) -> InputDevice:
        """The device that is open, or that was open last."""
        if not self._device:
            raise DeviceError("the microphone has not been opened: use it in a `with` statement")
        return self._device

    @property
    def overflows(self) -> int:
        """Number of times that audio was lost, without those when the device was gone."""
        return self._watch.n_losses

    def __enter__(self) -> "Microphone":
        with self._changing:
            if self._use:
                raise DeviceError("this microphone is open already; use one Microphone for each `with` statement")
            use = self._use = object()
        try:
            self._open(use)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the microphone, from any thread; its blocks end."""
        with self._changing:
            process, self._use, self._process = self._process, None, None
        if process:
            process.stop()

    def blocks(self, sample_rate_hz: int) -> Iterator[Block]:
        """Mono blocks (time,) at `sample_rate_hz`, until the microphone is closed.

        While it waits for a lost device, and only then, it yields empty blocks, ten per second.  When the device is
        back, a second of silence comes first.

        Raises:
            DeviceError: outside of `with`, or the device stops delivering and `reconnect` is false.
        """
        if not self._use:
            raise DeviceError("the microphone is not open: use it in a `with` statement")
        return self._blocks(self._use, sample_rate_hz)

    def discard(self) -> None:
        """Replace the audio that was captured up to now, but not read yet, with silence."""
        self._discarded_s = now_s() + BLOCK_S  # with the block that is being captured

    def _open(self, use: object) -> None:
        try:
            found = self._start(use).get(OPEN_S)
            self._device = found if isinstance(found, InputDevice) else no_answer()
        except DeviceError as error:
            if not self.wait or isinstance(error, NoPortAudio):
                raise
            self._tell(f"{error}; waiting for it")
            for _ in self._search(use, None):
                pass

    def _start(self, use: object, lost: InputDevice | None = None, waits: bool = False) -> Process:
        """Start a process that records, in place of the one before."""
        request = Request(self._wanted, self._channel if isinstance(self._channel, int) else 1, lost, waits)
        with self._changing:
            if self._use is not use:
                raise DeviceError("the microphone is closed")
            if self._process:
                self._process.stop()
            self._process = Process(request)
            return self._process

    def _search(self, use: object, lost: InputDevice | None) -> Iterator[None]:
        """Start processes until one delivers audio or the microphone is closed; yields while it waits."""
        while self._use is use:
            with suppress(DeviceError):  # closed, or the process has ended
                process, end_s = self._start(use, lost, waits=True), time.monotonic() + OPEN_S
                while self._use is use and time.monotonic() < end_s:
                    yield None
                    found = process.get(POLL_S)
                    if isinstance(found, InputDevice):
                        self._device, end_s = found, time.monotonic() + PATIENCE_S
                    elif isinstance(found, Captured):
                        return

    def _blocks(self, use: object, sample_rate_hz: int) -> Iterator[Block]:
        while True:
            mono = self.reduced(self._captured(use), self.device)
            yield from filter(len, resample_stream(mono, self.device.sample_rate_hz, sample_rate_hz))
            if self._use is not use:
                return
            gone = f"{self.device.name!r} stopped delivering audio"
            if not self._reconnect:
                raise DeviceError(f"{gone}: was it unplugged?")
            self._tell(f"{gone}; waiting for it")
            for _ in self._search(use, self.device):
                yield np.zeros(0, np.float32)
            if self._use is not use:
                return
            self._tell(f"{self.device.name!r} is back, at {self.device.sample_rate_hz} Hz")
            yield np.zeros(round(GAP_S * sample_rate_hz), np.float32)

    def _captured(self, use: object) -> Iterator[Captured]:
        """Blocks until the device is gone, delivers none for `PATIENCE_S`, or the microphone is closed."""
        process, waited_s = self._process, 0.0
        with suppress(DeviceError):  # the process has ended
            while process and waited_s < PATIENCE_S and self._use is use:
                block = process.get(POLL_S)
                waited_s = 0.0 if block else waited_s + POLL_S  # not by the clock, which runs while this process sleeps
                if isinstance(block, Captured):
                    yield block

    def reduced(self, captured: Iterable[Captured], device: InputDevice) -> Iterator[Block]:
        """What a device has captured, as mono blocks (time,) at its rate."""
        self._watch.begin(device)
        selector = channels.ChannelSelector(self._channel, BLOCK_S)
        for block in captured:
            mono = selector.push(np.frombuffer(block.samples, np.float32).reshape(-1, block.channels))
            self._watch.check(block, mono)
            yield mono if block.time_s > self._discarded_s else np.zeros_like(mono)
