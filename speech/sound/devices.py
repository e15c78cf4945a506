"""Input devices, through PortAudio, which runs in processes of its own.

PortAudio looks for devices only when it starts, hangs with a sound server that hangs, may loop for ever when a server
has died, and lets C libraries write on stderr.  A process can be killed at any time and started anew; the sound streams
that the program has of its own are not touched.
"""

import glob
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import IO, Any, NamedTuple, NoReturn

from speech.errors import DeviceError

BLOCK_S = 0.04
BACKLOG_S = 10.0
"""Seconds of audio kept until they are read; later audio is dropped."""
OPEN_S = 10.0
"""Longest wait in seconds for the sound system; a hanging server takes longer."""
RETRY_S = 1.0
"""Seconds between two searches for a device that is not there."""
MOST_CHANNELS = 8
"""A device with more is virtual or a mixing desk: only two channels are opened, or as many as are needed."""
UNAVAILABLE = -9985
"""PortAudio's code for a device that another program holds."""
MME_NAME_LENGTH = 31
"""Windows' oldest host API (MME) cuts names to this many characters."""
FROZEN_FLAG = "--speech-devices"
"""First argument of a frozen program that is to run `main`; see `speech/__pyinstaller`."""


class NoPortAudio(DeviceError):
    """The library is not installed: it is useless to wait for a device."""


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


class Request(NamedTuple):
    """What a process is to record; None in its place: only list the devices."""

    device: int | str | None = None
    """See `choose`."""
    n_needed: int = 1
    """Smallest number of channels."""
    lost: InputDevice | None = None
    """The device that is to be found again; see `same_device`."""
    waits: bool = False
    """Search until it is there."""


class Captured(NamedTuple):
    """A block of audio."""

    time_s: float
    """Time of arrival, by `now_s`."""
    n_frames: int
    """Frames captured up to its end."""
    n_overflows: int
    """Losses that the driver has reported so far."""
    channels: int
    samples: bytes
    """float32, the channels of a frame beside each other."""


class Process:
    """A process that answers a request; it can be stopped at any time, however much it hangs.

    Raises:
        DeviceError: it can't be started.
    """

    def __init__(self, request: Request | None) -> None:
        start = [FROZEN_FLAG] if getattr(sys, "frozen", False) else ["-P", "-c", f"from {__name__} import main; main()"]
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)  # where this package was found
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                [sys.executable, *start, pickle.dumps(request).hex()], stdin=pipe, stdout=pipe,
                stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path},
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )  # fmt: skip
        except OSError as error:
            raise DeviceError(f"can't start {sys.executable!r} to record: {error.strerror}") from error
        self._answers: queue.Queue[object] = queue.Queue(round(BACKLOG_S / BLOCK_S))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        with suppress(EOFError, OSError, ValueError, pickle.UnpicklingError), self._process.stdout as pipe:
            while True:
                answer = pickle.load(pipe)
                with suppress(queue.Full):  # the frame counts of later blocks show that it is missing
                    self._answers.put_nowait(answer)

    def get(self, timeout_s: float) -> object:
        """The next answer: the device that was opened, then `Captured` blocks; or a list of devices.

        Returns:
            None if there was none in time.
        Raises:
            DeviceError: the request can't be fulfilled, or the process has ended.
        """
        has_ended = not self._reader.is_alive()
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            if has_ended:
                raise DeviceError("the process that records has ended") from None
            return None
        if isinstance(answer, DeviceError):
            raise answer
        return answer

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.wait(1)
            self._process.stdin.close()  # type: ignore[union-attr]


def list_devices() -> list[InputDevice]:
    """All devices that can record, by number.

    Raises:
        DeviceError: PortAudio or the sound system is missing, or does not answer.
    """
    process = Process(None)
    try:
        found = process.get(OPEN_S)
    finally:
        process.stop()
    return found if isinstance(found, list) else no_answer()


def no_answer() -> NoReturn:
    raise DeviceError("the sound system does not answer: restart its server, or use --file or --stdin")


def now_s() -> float:
    """A clock in seconds, the same in all processes; it also counts while the machine sleeps, if the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


# What follows runs in the process.


def sounddevice() -> ModuleType:
    """The PortAudio binding.  Raises DeviceError if PortAudio is missing or can't start."""
    try:
        import sounddevice as module
    except OSError as error:
        raise NoPortAudio(
            "the PortAudio library is missing: install it (Debian, Ubuntu: apt-get install libportaudio2; "
            "Fedora: dnf install portaudio); --file and --stdin work without it"
        ) from error
    except Exception as error:  # the binding's own class, which can't be imported when the binding fails
        raise DeviceError(f"PortAudio can't start: {error}; restart the sound server") from error
    found: ModuleType = module
    return found


def query_devices() -> list[InputDevice]:
    """All devices that can record.  Raises DeviceError: PortAudio or the sound system is missing."""
    module = sounddevice()
    try:
        devices, apis, default = module.query_devices(), module.query_hostapis(), module.default.device[0]
    except module.PortAudioError as error:
        raise DeviceError(f"can't list the sound devices: {error.args[0]}") from error
    return [
        InputDevice(
            n, found["name"], apis[found["hostapi"]]["name"], found["max_input_channels"],
            round(found["default_samplerate"]), n == default,
        )
        for n, found in enumerate(devices) if found["max_input_channels"] > 0
    ]  # fmt: skip


def choose(device: int | str | None) -> InputDevice:
    """Find an input device.

    Args:
        device: its number, a text, or None for the default device.  A text is compared with `NAME, HOST API`, then
            with the name alone; otherwise all its words must occur in `NAME, HOST API`.  Case is ignored.  Of several
            matches, the one under the default device's host API is taken.
    Raises:
        DeviceError: no device matches, or several do.
    """
    devices = query_devices()
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
    namesakes = [d for d in query_devices() if (_bare(d.name), d.host_api) == (_bare(device.name), device.host_api)]
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


class Stream:
    """An open stream of one device, filled by PortAudio's own thread.

    Args:
        device: the device to open.
        n_needed: smallest number of channels.
    Raises:
        DeviceError: the device has fewer channels or can't be opened.
    """

    def __init__(self, device: InputDevice, n_needed: int) -> None:
        if n_needed > device.channels:
            raise DeviceError(f"{device.name!r} has {device.channels} channels; channel {n_needed} is wanted")
        self.blocks: queue.SimpleQueue[Captured | None] = queue.SimpleQueue()
        """None: the device is gone."""
        self._n_frames, self._n_overflows = 0, 0
        module, most = sounddevice(), device.channels if device.channels <= MOST_CHANNELS else 2
        numbers = sorted({n for n in (most, 2, n_needed) if n_needed <= n <= device.channels}, reverse=True)
        for self._channels in numbers:  # some hardware refuses many
            try:
                self._stream = module.RawInputStream(
                    samplerate=device.sample_rate_hz, blocksize=round(BLOCK_S * device.sample_rate_hz),
                    device=device.number, channels=self._channels, dtype="float32", callback=self._callback,
                    finished_callback=lambda: self.blocks.put(None),
                )  # fmt: skip
                self._stream.start()
                return
            except (module.PortAudioError, ValueError) as error:
                reason = error
        raise DeviceError(f"can't record from {device.name!r}: {_what_to_do(reason)}") from reason

    def _callback(self, samples: Any, n_frames: int, _: Any, status: Any) -> None:
        self._n_frames += n_frames
        self._n_overflows += bool(status.input_overflow)
        if self.blocks.qsize() < BACKLOG_S / BLOCK_S:
            self.blocks.put(Captured(now_s(), self._n_frames, self._n_overflows, self._channels, bytes(samples)))


def answer(request: Request | None, out: IO[bytes]) -> None:
    """Write pickled answers, see `Process.get`.  Returns when the device is gone or can't be opened."""
    while True:
        try:
            if request is None:
                return pickle.dump(query_devices(), out)
            device = same_device(request.lost, request.device) if request.lost else choose(request.device)
            stream = Stream(device, request.n_needed)
            break
        except DeviceError as error:
            if not request or not request.waits:
                return pickle.dump(error.with_traceback(None), out)
        time.sleep(RETRY_S)
        module = sounddevice()
        while module._initialized:
            module._terminate()
        with suppress(module.PortAudioError):
            module._initialize()  # looks for devices
    found: InputDevice | Captured | None = device
    while found:
        pickle.dump(found, out)
        out.flush()
        found = stream.blocks.get()


def main() -> None:
    """Answer the request in the last argument; end with the standard input."""
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # terminals and services send them to all
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what C libraries print is no answer
    with suppress(BrokenPipeError):
        answer(pickle.loads(bytes.fromhex(sys.argv[-1])), out)
        out.flush()
    os._exit(0)  # the end of PortAudio may hang
