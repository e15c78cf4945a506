"""A sound device as a context manager that yields blocks, and is waited for when it goes away."""

import atexit
import glob
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech.audio import Block, as_mono, resample_stream
from speech.errors import DeviceError

BLOCK_S = 0.04
POLL_S = 0.1
PATIENCE_S = 3.0
"""Seconds without a block after which the device counts as gone."""
RETRY_S = 1.0
"""Seconds between two looks for a device that is gone."""
OPEN_S, CLOSE_S = 10.0, 2.0
"""Seconds that the sound system gets to open and to close the device; a hanging server takes longer."""
GAP_S = 1.0
"""Silence in place of the time in which the device was gone, so that no word is made of two halves."""
BACKLOG_S = 10.0
"""Seconds of audio kept while nobody asks for it."""
STRETCH_S, TOLERANCE_S = 2.0, 0.2
"""How the clock finds losses: compared from one stretch of audio to the next, those above the tolerance."""
REPEAT_S = 10.0
"""Seconds between two warnings about lost audio."""
UNAVAILABLE = -9985
"""PortAudio's code for a device that another program holds."""


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
        raise DeviceError(f"no input device: {_why_none()}, or use --file or --stdin")
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


def _why_none() -> str:
    nodes = glob.glob("/dev/snd/pcm*c")
    if nodes and not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
        return "you may not use the sound devices; add yourself to their group (sudo usermod -aG audio $USER)"
    return "plug in a microphone or start the sound server"


def _what_to_do(error: Exception) -> str:
    """PortAudio's reason why a device can't be opened, and the way out."""
    text, code, host = (*error.args, None, None)[:3]
    reason = host[2] if host and host[2] else text  # the host's own words say more
    if code == UNAVAILABLE or "busy" in reason.lower():
        return f"{reason}; another program may hold it: close that, or choose another --device"
    if "permission" in reason.lower():
        return f"{reason}; allow this program or user to use the microphone"
    return f"{reason}; --list-devices shows the others"


def _now_s() -> float:
    """A clock that goes on while the machine sleeps, where there is one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class _Task(threading.Thread):
    """A call into PortAudio, which may hang for half a minute when a sound server does."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except Exception as error:
            self._error = error

    def ended(self, timeout_s: float) -> bool:
        """Whether it is over after that time at most; raises what it raised."""
        self.join(timeout_s)
        if self._error:
            raise self._error
        return not self.is_alive()


class _Stream:
    """An open stream of one device, filled by PortAudio's own thread.  Raises DeviceError."""

    def __init__(self, device: InputDevice) -> None:
        self.device = device
        self.blocks: queue.Queue[tuple[float, int, NDArray[np.float32]]] = queue.Queue(round(BACKLOG_S / BLOCK_S))
        """When a block came, the frames up to its end, its samples (time, channels)."""
        self.n_frames, self.n_dropped, self.n_overflows = 0, 0, 0
        self.has_ended = threading.Event()
        module = sounddevice()
        channels = sorted({1, min(2, device.channels)})  # some hardware refuses to record in mono
        for n_channels in channels:
            try:
                self._stream = module.InputStream(
                    samplerate=device.sample_rate_hz,
                    blocksize=round(BLOCK_S * device.sample_rate_hz),
                    device=device.number,
                    channels=n_channels,
                    dtype="float32",
                    callback=self._callback,
                    finished_callback=self.has_ended.set,
                )
                self._stream.start()
                return
            except (module.PortAudioError, ValueError) as error:
                if n_channels == channels[-1]:
                    raise DeviceError(f"can't record from {device.name!r}: {_what_to_do(error)}") from error

    def _callback(self, samples: NDArray[np.float32], n_frames: int, _: Any, status: Any) -> None:
        self.n_frames += n_frames
        self.n_overflows += bool(status.input_overflow)
        try:
            self.blocks.put_nowait((_now_s(), self.n_frames, samples.copy()))
        except queue.Full:
            self.n_dropped += n_frames

    def delivers(self) -> bool:
        """Wait for the first block; whether it came."""
        for _ in range(round(PATIENCE_S / POLL_S)):
            if self.n_frames or self.has_ended.wait(POLL_S):
                break
        return bool(self.n_frames)

    def close(self) -> None:
        if not self._stream.closed:
            self._stream.close(ignore_errors=True)


class _Losses:
    """Audio that was lost: told by the driver, dropped here, or missing when compared with the clock.

    The clock finds what nobody tells, as when the process or the machine slept.  Blocks come late, but not early:
    their smallest delay within a stretch rises only when audio is missing.  Each stretch is compared with the one
    before, which leaves no room for a drift between the two clocks; it lasts by both, as a backlog comes in a burst.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._told, self._told_s = tell, "", -float("inf")
        self.n_times, self.lost_s = 0, 0.0

    def watch(self, stream: _Stream) -> None:
        """Begin with a newly opened stream."""
        self._stream, self._rate = stream, stream.device.sample_rate_hz
        self._known = (0, 0)
        self._last_news = -float("inf")  # in frames, like the next
        self._stretch_end: tuple[float, float] | None = None  # by the audio and by the clock
        self._before_s, self._least_s = float("inf"), float("inf")

    def check(self, now_s: float, n_frames: int) -> None:
        """Look for losses when a block has come, given when it came and the frames up to its end."""
        known, was_dropped = (self._stream.n_overflows, self._stream.n_dropped), self._known[1]
        if known != self._known:
            self._known = known
            self._count((known[1] - was_dropped) / self._rate, n_frames, self._rate)
            self._last_news = n_frames
        missing_s = self._missing_s(now_s, n_frames)
        if missing_s:
            self._count(missing_s, n_frames, 2 * STRETCH_S * self._rate)
        if self.n_times and now_s - self._told_s >= REPEAT_S:
            self._warn(now_s)

    def _count(self, lost_s: float, n_frames: int, n_apart: float) -> None:
        """Another loss, unless the last news is so near that it was the same."""
        self.n_times += n_frames - self._last_news > n_apart
        self.lost_s += lost_s

    def _missing_s(self, now_s: float, n_frames: int) -> float:
        heard_s = n_frames / self._rate
        end = self._stretch_end or (heard_s + STRETCH_S, now_s + STRETCH_S)
        self._least_s = min(self._least_s, now_s - heard_s)
        if heard_s < end[0] or now_s < end[1]:
            self._stretch_end = end
            return 0.0
        missing_s, self._before_s = self._least_s - self._before_s, self._least_s
        self._stretch_end, self._least_s = None, float("inf")  # the next one begins with the next block
        return missing_s if missing_s > TOLERANCE_S else 0.0

    def _warn(self, now_s: float) -> None:
        seconds = f", {self.lost_s:.1f} s in all" if self.lost_s >= 0.05 else ""
        text = f"warning: audio was lost, {self.n_times} times so far{seconds}: the machine is too busy or slept"
        if text != self._told:
            self._tell(text)
            self._told, self._told_s = text, now_s


class Microphone:
    """An open input device.

    Captures at the device's own rate (many refuse 16 kHz) and yields mono blocks at the rate asked for.

        with Microphone() as microphone:
            for block in microphone.blocks(16000): ...

    Args:
        device: number, part of a name, or None for the default.
        reconnect: wait for a device that goes away, and take it up again by its name or as the default.  Each look
            for it points file descriptor 2 at nothing while it lasts, as sound libraries complain there.
        tell: takes one line about a device that went or came, or about lost audio; default: prints it on stderr.
    Raises:
        DeviceError: on entering, when there is no such device or it can't be opened; while reading, when it
            stops delivering and is not to be waited for.
    """

    def __init__(
        self, device: int | str | None = None, reconnect: bool = True, tell: Callable[[str], None] | None = None
    ) -> None:
        self._wanted, self._reconnect, self._tell = device, reconnect, tell or _tell
        self._losses = _Losses(self._tell)
        self._stream: _Stream | None = None
        self._stopping = threading.Event()

    @property
    def device(self) -> InputDevice:
        """The one that is open, or was when it went away."""
        assert self._stream, "only within `with`"
        return self._stream.device

    @property
    def overflows(self) -> int:
        """Times that audio was lost, not counting those when the device was gone."""
        return self._losses.n_times

    def __enter__(self) -> "Microphone":
        self._task = _Task(self._open)
        try:
            if not self._task.ended(OPEN_S):
                raise DeviceError("the sound system does not answer: restart its server, or use --file or --stdin")
        except BaseException:
            self._close()
            raise
        return self

    def _open(self) -> None:
        self._stream = _Stream(choose(self._wanted))

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._stopping.set()
        if not _Task(self._close_stream).ended(CLOSE_S):
            at_exit: Any = getattr(sys.modules.get("sounddevice"), "_exit_handler", None)
            atexit.unregister(at_exit)  # it would hang as well

    def _close_stream(self) -> None:
        self._task.join()
        if self._stream:
            self._stream.close()

    def blocks(self, sample_rate_hz: int) -> Iterator[Block]:
        """Mono blocks (time,) at `sample_rate_hz`, without end.

        While a device is waited for, and only then, empty blocks come, ten a second; then a second of silence, and
        on it goes.
        """
        while True:
            yield from filter(len, resample_stream(self._captured(), self.device.sample_rate_hz, sample_rate_hz))
            gone = f"{self.device.name!r} stopped delivering audio"
            if not self._reconnect:
                raise DeviceError(f"{gone}: was it unplugged?")
            self._tell(f"{gone}; waiting for it")
            self._task = _Task(self._find_again)
            while not self._task.ended(POLL_S):
                yield np.zeros(0, np.float32)
            self._tell(f"{self.device.name!r} is back, at {self.device.sample_rate_hz} Hz")
            yield np.zeros(round(GAP_S * sample_rate_hz), np.float32)

    def _captured(self) -> Iterator[Block]:
        """What the open stream delivers, until it ends or is silent for too long."""
        stream, silent_s = self._stream, 0.0
        assert stream
        self._losses.watch(stream)
        while silent_s < PATIENCE_S:
            has_ended = stream.has_ended.is_set()
            try:
                now_s, n_frames, samples = stream.blocks.get(timeout=POLL_S)
            except queue.Empty:
                if has_ended:
                    return
                silent_s += POLL_S  # not by the clock: a process that slept has not waited
                continue
            silent_s = 0.0
            self._losses.check(now_s, n_frames)
            yield as_mono(samples)

    def _find_again(self) -> None:
        module = sounddevice()
        assert self._stream
        self._stream.close()
        while not self._stopping.wait(RETRY_S):
            try:
                with _hushed():
                    _restart(module)
                    stream = _Stream(self._same_device())
                if stream.delivers():
                    self._stream = stream
                    return
                stream.close()
            except (DeviceError, module.PortAudioError):
                pass  # not yet

    def _same_device(self) -> InputDevice:
        """By name, as numbers change when devices come and go; the default one may be another now."""
        if self._wanted is None:
            return choose(None)
        namesakes = [d for d in list_devices() if _bare(d.name) == _bare(self.device.name)]
        if not namesakes and isinstance(self._wanted, str):
            return choose(self._wanted)
        if not namesakes:
            raise DeviceError(f"no input device {self.device.name!r}")
        return next((d for d in namesakes if d.number == self.device.number), namesakes[0])


def _bare(name: str) -> str:
    """A name without the number that ALSA gave the card this time."""
    return re.sub(r"\(hw:\d+,\d+\)", "", name)


def _restart(module: ModuleType) -> None:
    """Let PortAudio look for devices again; it does so only when it begins."""
    while module._initialized:
        module._terminate()
    module._initialize()


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep the C libraries, which complain at each attempt, from filling a log."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
