"""Input devices, through PortAudio.

All streams of a process share one PortAudio.  It looks for devices only when it starts, and closes every stream when
it terminates.  So `look_again` does nothing while any stream is open: another microphone's or the program's own.
"""

import atexit
import gc
import glob
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech.errors import DeviceError

BLOCK_S = 0.04
BACKLOG_S = 10.0
"""Seconds of audio kept until they are read; later audio is dropped."""
MOST_CHANNELS = 8
"""A device with more is virtual or a mixing desk: only two channels are opened, or as many as are needed."""
UNAVAILABLE = -9985
"""PortAudio's code for a device that another program holds."""
CLOSE_S = 5.0
"""Longest wait in seconds for the sound system to close a device."""
MME_NAME_LENGTH = 31
"""Windows' oldest host API (MME) cuts names to this many characters."""
_LOCK = threading.RLock()
"""Held while devices are opened, closed or listed: PortAudio is not thread-safe."""
_OPEN: "set[Stream]" = set()


@dataclass(frozen=True)
class InputDevice:
    """A device that can record."""

    number: int
    """Changes when devices come and go."""
    name: str
    host_api: str
    """On Windows one microphone appears under up to four host APIs."""
    channels: int
    sample_rate_hz: int
    """The device's own rate."""
    is_default: bool

    def __str__(self) -> str:
        return f"{self.name}, {self.host_api}"


def sounddevice() -> ModuleType:
    """The PortAudio binding, imported only when a device is needed.

    Raises:
        DeviceError: the PortAudio library is missing or can't start; the message says what to do.
    """
    try:
        import sounddevice as module
    except OSError as error:
        raise DeviceError(
            "the PortAudio library is missing: install it (Debian, Ubuntu: apt-get install libportaudio2; "
            "Fedora: dnf install portaudio); --file and --stdin work without it"
        ) from error
    except Exception as error:  # the binding's own class, which can't be imported when the binding fails
        if type(error).__name__ != "PortAudioError":
            raise
        raise DeviceError(f"PortAudio can't start: {error}; restart the sound server") from error
    found: ModuleType = module
    return found


def list_devices() -> list[InputDevice]:
    """All devices that can record, by number, as of the last time that PortAudio looked (see `look_again`).

    Raises:
        DeviceError: PortAudio or the sound system is missing.
    """
    module = sounddevice()
    try:
        with _LOCK:
            devices, apis, default = module.query_devices(), module.query_hostapis(), module.default.device[0]
    except module.PortAudioError as error:
        raise DeviceError(f"can't list the sound devices: {error.args[0]}") from error
    return [
        InputDevice(
            n,
            found["name"],
            apis[found["hostapi"]]["name"],
            found["max_input_channels"],
            round(found["default_samplerate"]),
            n == default,
        )
        for n, found in enumerate(devices)
        if found["max_input_channels"] > 0
    ]


def choose(device: int | str | None) -> InputDevice:
    """Find an input device.

    Args:
        device: its number, a text, or None for the default device.  A text is compared with `NAME, HOST API`, then
            with the name alone; otherwise all its words must occur in `NAME, HOST API`.  Case is ignored.  Of several
            matches, the one under the default device's host API is taken.
    Raises:
        DeviceError: no device matches, or several do.
    """
    devices = list_devices()
    if not devices:
        raise DeviceError(f"no input device: {_why_none()}, or use --file or --stdin")
    if device is None:
        fitting = [d for d in devices if d.is_default] or devices[:1]
    elif isinstance(device, int):
        fitting = [d for d in devices if d.number == device]
    else:
        fitting = _named(device.lower(), devices)
    if len(fitting) > 1:
        usual = {d.host_api for d in devices if d.is_default}
        fitting = [d for d in fitting if d.host_api in usual] or fitting
    if len(fitting) != 1:
        problem = "no input device" if not fitting else f"{len(fitting)} input devices"
        raise DeviceError(f"{problem} for {device!r}; --list-devices shows them")
    return fitting[0]


def _named(text: str, devices: list[InputDevice]) -> list[InputDevice]:
    """The best matches for a text in lower case; see `choose`."""

    def has_name(device: InputDevice) -> bool:
        name = device.name.lower()
        return text == name or (len(name) == MME_NAME_LENGTH and text.startswith(name))

    return (
        [d for d in devices if text == str(d).lower()]
        or [d for d in devices if has_name(d)]
        or [d for d in devices if all(word in str(d).lower() for word in text.split())]
    )


def same_device(device: InputDevice, wanted: int | str | None) -> InputDevice:
    """Find a lost device again, by name and host API because numbers change.

    Args:
        device: the lost device.
        wanted: how it was chosen.  None: take the present default device, even if it is another one.
    Raises:
        DeviceError: it is not there.
    """
    if wanted is None:
        return choose(None)
    namesakes = [d for d in list_devices() if (_bare(d.name), d.host_api) == (_bare(device.name), device.host_api)]
    if not namesakes and isinstance(wanted, str):
        return choose(wanted)
    if not namesakes:
        raise DeviceError(f"no input device {device.name!r}")
    return next((d for d in namesakes if d.number == device.number), namesakes[0])


def _bare(name: str) -> str:
    """The name without ALSA's card number, which changes when the card is plugged in again."""
    return re.sub(r"\(hw:\d+,\d+\)", "", name)


def _why_none() -> str:
    nodes = glob.glob("/dev/snd/pcm*c")
    if nodes and not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
        return "you may not use the sound devices; add yourself to their group (sudo usermod -aG audio $USER)"
    return "plug in a microphone or start the sound server"


def _what_to_do(error: Exception) -> str:
    """Why PortAudio can't open a device, and what the user can do."""
    text, code, host = (*error.args, None, None)[:3]
    reason = host[2] if host and host[2] else text  # the host API's own text is more specific
    if code == UNAVAILABLE or "busy" in reason.lower():
        return f"{reason}; another program may hold it: close that, or choose another --device"
    if "permission" in reason.lower():
        return f"{reason}; allow this program or user to use the microphone"
    return f"{reason}; --list-devices shows the others"


def _now_s() -> float:
    """A clock in seconds that also counts while the machine sleeps, if the system has one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Stream:
    """An open stream of one device, filled by PortAudio's own thread.

    Args:
        device: the device to open.
        n_needed: smallest number of channels.
    Raises:
        DeviceError: the device has fewer channels or can't be opened.
    """

    def __init__(self, device: InputDevice, n_needed: int = 1) -> None:
        self.device = device
        self.blocks: queue.Queue[tuple[float, int, NDArray[np.float32]]] = queue.Queue(round(BACKLOG_S / BLOCK_S))
        """For each block: time of arrival in seconds, frames captured up to its end, samples (time, channels)."""
        self.n_frames, self.n_dropped, self.n_overflows = 0, 0, 0
        self.n_discarded = 0
        """Blocks that end at or before this frame are to be replaced by silence."""
        self.has_ended = threading.Event()
        self._closing: threading.Thread | None = None
        if n_needed > device.channels:
            raise DeviceError(f"{device.name!r} has {device.channels} channels; channel {n_needed} is wanted")
        with _LOCK:
            self.n_channels = self._open(n_needed)
            _OPEN.add(self)

    def _open(self, n_needed: int) -> int:
        """Open the device; try fewer channels if it refuses many, as some hardware does.  Returns the number opened."""
        module, device = sounddevice(), self.device
        most = device.channels if device.channels <= MOST_CHANNELS else 2
        numbers = sorted({n for n in (most, 2, n_needed) if n_needed <= n <= device.channels}, reverse=True)
        for n_channels in numbers:
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
                self._start()
                return n_channels
            except (module.PortAudioError, ValueError) as error:
                # the traceback would keep the half-made stream alive as long as the error
                reason = error.with_traceback(None)
        raise DeviceError(f"can't record from {device.name!r}: {_what_to_do(reason)}") from reason

    def _start(self) -> None:
        try:
            self._stream.start()
        except BaseException:
            self._stream.close()
            raise

    def _callback(self, samples: NDArray[np.float32], n_frames: int, _: Any, status: Any) -> None:
        self.n_frames += n_frames
        self.n_overflows += bool(status.input_overflow)
        try:
            self.blocks.put_nowait((_now_s(), self.n_frames, samples.copy()))
        except queue.Full:
            self.n_dropped += n_frames

    def discard(self) -> None:
        """Mark all audio captured so far, including the block in progress, as discarded; see `n_discarded`."""
        self.n_discarded = self.n_frames + round(BLOCK_S * self.device.sample_rate_hz)

    def close(self) -> bool:
        """Close the stream if it is open.

        After a sound server has died, closing may hang, or PortAudio's thread may loop and write a line in each pass.
        Such a stream is abandoned: it counts as open, so that PortAudio is never terminated while the thread runs,
        and file descriptor 2 is redirected to the null device.

        Returns:
            whether the stream is closed.
        """
        with _LOCK:
            if self._closing:
                return not self._closing.is_alive()
            self._closing = threading.Thread(target=self._stream.close, daemon=True)
            self._closing.start()
            self._closing.join(CLOSE_S)
            if self._closing.is_alive():
                _silence_stderr()
                atexit.unregister(sounddevice()._exit_handler)  # it would hang too
                return False
            _OPEN.discard(self)
            return True


def look_again() -> bool:
    """Restart PortAudio so that it looks for devices, unless this process has an open stream.

    Returns:
        whether it looked; if not, devices that it already knows can still be opened.
    Raises:
        DeviceError: PortAudio can't restart.
    """
    module = sounddevice()
    with _LOCK:
        for stream in [stream for stream in _OPEN if stream.has_ended.is_set()]:
            stream.close()  # its microphone notices and opens it again
        _end_playback(module)
        if _any_open(module):
            return False
        try:
            while module._initialized:
                module._terminate()
            module._initialize()
        except module.PortAudioError as error:
            raise DeviceError(f"can't list the sound devices: {error.args[0]}") from error
        return True


def _end_playback(module: ModuleType) -> None:
    """Close the stream that `sounddevice.play` leaves open after the sound has ended."""
    with suppress(RuntimeError, module.PortAudioError):  # nothing was played, or it is closed already
        if not module.get_stream().active:
            module.stop()


def _any_open(module: ModuleType) -> bool:
    """Whether the process has an open stream.  The binding keeps no list of them, so all objects are searched."""
    kinds = module.RawInputStream, module.RawOutputStream, module.InputStream, module.OutputStream
    return any(issubclass(type(found), kinds) and not found.closed for found in gc.get_objects())


def _silence_stderr() -> None:
    """Redirect file descriptor 2 to the null device for good; Python's own stderr still goes where it went before."""
    with suppress(OSError, ValueError, AttributeError):  # there is no stderr
        if sys.stderr.fileno() == 2:
            sys.stderr.flush()
            kept = os.dup(2)
            sys.stderr = os.fdopen(kept, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)


@contextmanager
def exclusive_and_hushed() -> Iterator[None]:
    """Lock PortAudio for this thread and redirect file descriptor 2: C libraries write messages at each attempt."""
    with _LOCK:  # two threads that redirect it at the same time would leave it redirected
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
