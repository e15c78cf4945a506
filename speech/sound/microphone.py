"""An input device as a context manager that yields blocks.  If the device disappears, it waits for its return."""

import atexit
import queue
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np

from speech import errors
from speech.errors import DeviceError
from speech.sound import channels
from speech.sound.devices import (
    BLOCK_S,
    InputDevice,
    Stream,
    choose,
    exclusive_and_hushed,
    look_again,
    same_device,
    sounddevice,
)
from speech.sound.files import Block, resample_stream

POLL_S = 0.1
PATIENCE_S = 3.0
"""Seconds without a block after which the device counts as gone."""
RETRY_S = 1.0
"""Seconds between two searches for a device that is gone."""
OPEN_S, CLOSE_S = 10.0, 6.0
"""Longest waits in seconds for the sound system to open and to close a device; a hanging server takes longer."""
GAP_S = 1.0
"""Seconds of silence inserted when a device returns, so that audio from before and after does not form one word."""
STRETCH_S, TOLERANCE_S = 2.0, 0.2
"""Audio and clock are compared over stretches of this length; more missing seconds than the tolerance are a loss."""
REPEAT_S = 10.0
"""Seconds between two warnings about lost audio."""
SILENT_S, SILENT_LEVEL = 5.0, 2**-15
"""Seconds of silence after which a warning is given, and the level that counts as silence: one step of 16 bits."""


class _Task(threading.Thread):
    """A call into PortAudio in a thread of its own; it may hang for half a minute when the sound server hangs."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._error: Exception | None = None
        self._is_over = threading.Event()  # after an interrupted `join`, Python takes the thread for ended
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except Exception as error:
            self._error = error
        finally:
            self._is_over.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, at most `timeout_s`.  Returns whether it is over."""
        return self._is_over.wait(timeout_s)

    def ended(self, timeout_s: float) -> bool:
        """As `wait`, but raises the exception of the call, if any."""
        is_over = self.wait(timeout_s)
        if self._error:
            raise self._error
        return is_over


class _Losses:
    """Counts losses of audio: reported by the driver, dropped here, or found by comparison with the clock.

    The clock finds losses that nobody reports, as when the process or the machine slept.  Blocks may arrive late but
    not early, so the smallest delay within a stretch rises only when audio is missing.  Each stretch is compared with
    the one before, so that clock drift does not add up.  A stretch must last `STRETCH_S` both in audio and by the
    clock, because a backlog arrives in a burst.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._warning, self._warned_s = tell, "", -float("inf")
        self.n_times, self.lost_s = 0, 0.0

    def watch(self, stream: Stream) -> None:
        """Begin with a newly opened stream."""
        self._stream, self._rate = stream, stream.device.sample_rate_hz
        self._known = (0, 0)
        self._last_report = -float("inf")  # frame of the last loss that was reported or dropped
        self._stretch_end: tuple[float, float] | None = None  # in seconds of audio and by the clock
        self._previous_delay_s, self._delay_s = float("inf"), float("inf")

    def check(self, now_s: float, n_frames: int) -> None:
        """Look for losses.

        Args:
            now_s: time of arrival of a block.
            n_frames: frames captured up to its end.
        """
        known, was_dropped = (self._stream.n_overflows, self._stream.n_dropped), self._known[1]
        if known != self._known:
            self._known = known
            self._count((known[1] - was_dropped) / self._rate, n_frames, self._rate)
            self._last_report = n_frames
        missing_s = self._missing_s(now_s, n_frames)
        if missing_s:
            self._count(missing_s, n_frames, 2 * STRETCH_S * self._rate)
        if self.n_times and now_s - self._warned_s >= REPEAT_S:
            self._warn(now_s)

    def _count(self, lost_s: float, n_frames: int, n_apart: float) -> None:
        """Count a loss, unless one was reported less than `n_apart` frames ago: then it is the same one."""
        self.n_times += n_frames - self._last_report > n_apart
        self.lost_s += lost_s

    def _missing_s(self, now_s: float, n_frames: int) -> float:
        """Seconds missing by the clock at the end of a stretch; 0 within a stretch or below the tolerance."""
        captured_s = n_frames / self._rate
        end = self._stretch_end or (captured_s + STRETCH_S, now_s + STRETCH_S)
        self._delay_s = min(self._delay_s, now_s - captured_s)
        if captured_s < end[0] or now_s < end[1]:
            self._stretch_end = end
            return 0.0
        missing_s, self._previous_delay_s = self._delay_s - self._previous_delay_s, self._delay_s
        self._stretch_end, self._delay_s = None, float("inf")  # the next stretch begins with the next block
        return missing_s if missing_s > TOLERANCE_S else 0.0

    def _warn(self, now_s: float) -> None:
        seconds = f", {self.lost_s:.1f} s in all" if self.lost_s >= 0.05 else ""
        text = f"warning: audio was lost, {self.n_times} times so far{seconds}: the machine is too busy or slept"
        if text != self._warning:
            self._tell(text)
            self._warning, self._warned_s = text, now_s


class _Silence:
    """Warns of a device that delivers only silence, once each time that it is opened."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def watch(self, device: InputDevice) -> None:
        """Begin with a newly opened device."""
        self._device, self._silent_s, self._is_reported = device, 0.0, False

    def check(self, block: Block) -> None:
        """Examine the next block (time,), at the device's rate."""
        is_silent = np.ptp(block) <= 2 * SILENT_LEVEL
        self._silent_s = self._silent_s + len(block) / self._device.sample_rate_hz if is_silent else 0.0
        if self._silent_s >= SILENT_S and not self._is_reported:
            self._is_reported = True
            self._tell(
                f"warning: {self._device.name!r} has delivered nothing but silence for {SILENT_S:.0f} s: is it muted, "
                "or its level at zero?  Look in the sound settings, or choose another --device or --channel"
            )


class _Session:
    """One use of a microphone, from `__enter__` to `close`."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.task: _Task | None = None
        self.is_over = threading.Event()


class Microphone:
    """An input device; it can be used several times, one after the other.

    It captures at the device's own rate (many devices refuse 16 kHz) and yields mono blocks at the requested rate.

        with Microphone() as microphone:
            for block in microphone.blocks(16000): ...

    Several microphones may be open at the same time, and so may the program's own `sounddevice` streams.  While
    another stream is open, only devices that were there before can be found again: PortAudio looks for new ones only
    when no stream is open.

    Args:
        device: number, (part of) a name, or None for the default; see `devices.choose`.
        reconnect: if the device disappears, wait for it and open it again, by its name or as the default device.
            During each search, file descriptor 2 is redirected to the null device, because sound libraries write there.
        tell: takes one line about a device that disappeared, returned or is silent, or about lost audio; default:
            prints it on stderr.
        channel: channel of the device, from 1 on; `"mix"`: mean of all channels; `"best"`: see `channels.Picker`.
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
        self._losses, self._silence = _Losses(self._tell), _Silence(self._tell)
        self._device: InputDevice | None = None
        self._session: _Session | None = None
        self._entering = threading.Lock()

    @property
    def device(self) -> InputDevice:
        """The device that is open, or that was open last."""
        if not self._device:
            raise DeviceError("the microphone has not been opened: use it in a `with` statement")
        return self._device

    @property
    def overflows(self) -> int:
        """Number of times that audio was lost, without those when the device was gone."""
        return self._losses.n_times

    def __enter__(self) -> "Microphone":
        with self._entering:
            if self._session:
                raise DeviceError("this microphone is open already; use one Microphone for each `with` statement")
            session = self._session = _Session()
        session.task = _Task(lambda: self._open(session))
        try:
            if not session.task.ended(OPEN_S) and not self.wait:
                raise DeviceError("the sound system does not answer: restart its server, or use --file or --stdin")
            while not session.task.ended(POLL_S):
                pass
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, session: _Session) -> None:
        try:
            self._take(session, Stream(choose(self._wanted), self._n_needed))
            return
        except DeviceError as error:
            problem = str(error)
            sounddevice()  # without PortAudio, waiting is useless: raises
        if self.wait:
            self._tell(f"{problem}; waiting for it")
            self._find(session, lambda: choose(self._wanted))
            return
        with exclusive_and_hushed():
            look_again()  # the device may be new since the program started
            self._take(session, Stream(choose(self._wanted), self._n_needed))

    def _take(self, session: _Session, stream: Stream) -> None:
        session.stream, self._device = stream, stream.device

    @property
    def _n_needed(self) -> int:
        return self._channel if isinstance(self._channel, int) else 1

    def close(self) -> None:
        """Close the microphone, from any thread; its blocks end."""
        session, self._session = self._session, None
        if not session:
            return
        session.is_over.set()
        if not _Task(lambda: _close_stream(session)).ended(CLOSE_S):
            at_exit = getattr(sys.modules.get("sounddevice"), "_exit_handler", None)
            atexit.unregister(at_exit or print)  # it would hang too

    def blocks(self, sample_rate_hz: int) -> Iterator[Block]:
        """Mono blocks (time,) at `sample_rate_hz`, until the microphone is closed.

        While it waits for a lost device, and only then, it yields empty blocks, ten per second.  When the device is
        back, a second of silence comes first.

        Raises:
            DeviceError: outside of `with`, or the device stops delivering and `reconnect` is false.
        """
        if not self._session:
            raise DeviceError("the microphone is not open: use it in a `with` statement")
        return self._blocks(self._session, sample_rate_hz)

    def _blocks(self, session: _Session, sample_rate_hz: int) -> Iterator[Block]:
        while True:
            rate_hz = self.device.sample_rate_hz
            yield from filter(len, resample_stream(self._captured(session), rate_hz, sample_rate_hz))
            if session.is_over.is_set():
                return
            gone = f"{self.device.name!r} stopped delivering audio"
            if not self._reconnect:
                raise DeviceError(f"{gone}: was it unplugged?")
            self._tell(f"{gone}; waiting for it")
            session.task = _Task(lambda: self._find_again(session))
            while not session.task.ended(POLL_S):
                yield np.zeros(0, np.float32)
            if session.is_over.is_set():
                return
            self._tell(f"{self.device.name!r} is back, at {self.device.sample_rate_hz} Hz")
            yield np.zeros(round(GAP_S * sample_rate_hz), np.float32)

    def discard(self) -> None:
        """Replace the audio that was captured up to now, but not read yet, with silence."""
        if self._session and self._session.stream:
            self._session.stream.discard()

    def _captured(self, session: _Session) -> Iterator[Block]:
        """Mono blocks of the open stream at the device's rate, until it ends or delivers none for `PATIENCE_S`."""
        stream, waited_s = session.stream, 0.0
        assert stream
        self._losses.watch(stream)
        self._silence.watch(stream.device)
        picker = channels.Picker(self._channel, BLOCK_S)
        while waited_s < PATIENCE_S and not session.is_over.is_set():
            has_ended = stream.has_ended.is_set()
            try:
                now_s, n_frames, samples = stream.blocks.get(timeout=POLL_S)
            except queue.Empty:
                if has_ended:
                    return
                waited_s += POLL_S  # not by the clock: time in which the process slept does not count
                continue
            waited_s = 0.0
            self._losses.check(now_s, n_frames)
            block = picker.push(samples)
            self._silence.check(block)
            yield block if n_frames > stream.n_discarded else np.zeros_like(block)

    def _find_again(self, session: _Session) -> None:
        assert session.stream
        lost = session.stream.device
        if not session.stream.close():
            self._tell(
                f"warning: PortAudio does not let go of {lost.name!r}, which may cost processor time until this "
                "program is started again"
            )
        session.is_over.wait(RETRY_S)
        self._find(session, lambda: same_device(lost, self._wanted))

    def _find(self, session: _Session, choose_device: Callable[[], InputDevice]) -> None:
        """Search for a device until one delivers blocks or the session is over."""
        has_explained = False
        while not session.is_over.is_set():
            has_looked = True
            try:
                with exclusive_and_hushed():
                    has_looked = look_again()
                    stream = Stream(choose_device(), self._n_needed)
                if _delivers(stream):
                    self._take(session, stream)
                    return
                stream.close()
            except DeviceError:
                pass  # not yet
            if not has_looked and not has_explained:
                has_explained = True
                self._tell(
                    "other sound streams of this program are open: a new device is only seen once they are closed"
                )
            session.is_over.wait(RETRY_S)


def _delivers(stream: Stream) -> bool:
    """Wait up to `PATIENCE_S` for the first block.  Returns whether it came."""
    for _ in range(round(PATIENCE_S / POLL_S)):
        if stream.n_frames or stream.has_ended.wait(POLL_S):
            break
    return bool(stream.n_frames)


def _close_stream(session: _Session) -> None:
    if session.task:
        session.task.wait()
    if session.stream:
        session.stream.close()
