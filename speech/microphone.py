"""A sound device as a context manager that yields blocks, and is waited for when it goes away."""

import atexit
import queue
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np

from speech import channels, errors
from speech.audio import Block, resample_stream
from speech.devices import (
    BLOCK_S,
    InputDevice,
    Stream,
    choose,
    exclusive_and_hushed,
    look_again,
    same_device,
    sounddevice,
)
from speech.errors import DeviceError

POLL_S = 0.1
PATIENCE_S = 3.0
"""Seconds without a block after which the device counts as gone."""
RETRY_S = 1.0
"""Seconds between two looks for a device that is gone."""
OPEN_S, CLOSE_S = 10.0, 6.0
"""Seconds that the sound system gets to open a device, and to end what it is at; a hanging server takes longer."""
GAP_S = 1.0
"""Silence in place of the time in which the device was gone, so that no word is made of two halves."""
STRETCH_S, TOLERANCE_S = 2.0, 0.2
"""How the clock finds losses: compared from one stretch of audio to the next, those above the tolerance."""
REPEAT_S = 10.0
"""Seconds between two warnings about lost audio."""
SILENT_S, SILENT_LEVEL = 5.0, 2**-15
"""Time after which a device without any sound is reported, and how little counts as none: one step of 16 bits."""


class _Task(threading.Thread):
    """A call into PortAudio, which may hang for half a minute when a sound server does."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._error: Exception | None = None
        self._is_over = threading.Event()  # `join` calls a thread ended that it was interrupted in waiting for
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except Exception as error:
            self._error = error
        finally:
            self._is_over.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it is over after that time at most."""
        return self._is_over.wait(timeout_s)

    def ended(self, timeout_s: float) -> bool:
        """The same; raises what it raised."""
        is_over = self.wait(timeout_s)
        if self._error:
            raise self._error
        return is_over


class _Losses:
    """Audio that was lost: told by the driver, dropped here, or missing when compared with the clock.

    The clock finds what nobody tells, as when the process or the machine slept.  Blocks come late, but not early:
    their smallest delay within a stretch rises only when audio is missing.  Each stretch is compared with the one
    before, which leaves no room for a drift between the two clocks; it lasts by both, as a backlog comes in a burst.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._told, self._told_s = tell, "", -float("inf")
        self.n_times, self.lost_s = 0, 0.0

    def watch(self, stream: Stream) -> None:
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


class _Silence:
    """Reports a device that delivers blocks without any sound in them, once for each time that it is opened."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def watch(self, device: InputDevice) -> None:
        """Begin with a newly opened device."""
        self._device, self._silent_s, self._is_reported = device, 0.0, False

    def check(self, block: Block) -> None:
        """Look at the next block (time,), at the device's rate."""
        is_silent = np.ptp(block) <= 2 * SILENT_LEVEL
        self._silent_s = self._silent_s + len(block) / self._device.sample_rate_hz if is_silent else 0.0
        if self._silent_s >= SILENT_S and not self._is_reported:
            self._is_reported = True
            self._tell(
                f"warning: {self._device.name!r} has delivered nothing but silence for {SILENT_S:.0f} s: is it muted, "
                "or its level at zero?  Look in the sound settings, or choose another --device or --channel"
            )


class _Session:
    """One use of a microphone, from when it is entered to when it is left."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.task: _Task | None = None
        self.is_over = threading.Event()


class Microphone:
    """An input device; it can be used several times, one after the other.

    Captures at the device's own rate (many refuse 16 kHz) and yields mono blocks at the rate asked for.

        with Microphone() as microphone:
            for block in microphone.blocks(16000): ...

    Several microphones, and streams of the program's own by way of `sounddevice`, live side by side.  As long as
    another is open, only devices that were there before can be found again: PortAudio looks for new ones only when
    nothing is open.

    Args:
        device: number, (part of) a name, or None for the default; see `devices.choose`.
        reconnect: wait for a device that goes away, and take it up again by its name or as the default.  Each look
            for it points file descriptor 2 at nothing while it lasts, as sound libraries complain there.
        tell: takes one line about a device that went, came or is silent, or about lost audio; default: prints it on
            stderr.
        channel: which channel of the device, from 1 on, `"mix"` for their mean, or `"best"`: see `channels.Picker`.
        wait: on entering, wait for a device that is not there yet.
    Raises:
        ConfigError: no such channel.
        DeviceError: on entering, when it is open already, or there is no such device or it can't be opened; while
            reading, when it stops delivering and is not to be waited for.
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
        """The one that is open, or was last."""
        if not self._device:
            raise DeviceError("the microphone has not been opened: use it in a `with` statement")
        return self._device

    @property
    def overflows(self) -> int:
        """Times that audio was lost, not counting those when the device was gone."""
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
            sounddevice()  # without it there is nothing to wait for
        if self.wait:
            self._tell(f"{problem}; waiting for it")
            self._find(session, lambda: choose(self._wanted))
            return
        with exclusive_and_hushed():
            look_again()  # it may have come since the program began
            self._take(session, Stream(choose(self._wanted), self._n_needed))

    def _take(self, session: _Session, stream: Stream) -> None:
        session.stream, self._device = stream, stream.device

    @property
    def _n_needed(self) -> int:
        return self._channel if isinstance(self._channel, int) else 1

    def close(self) -> None:
        """End its use, from any thread; its blocks end."""
        session, self._session = self._session, None
        if not session:
            return
        session.is_over.set()
        if not _Task(lambda: _close_stream(session)).ended(CLOSE_S):
            at_exit = getattr(sys.modules.get("sounddevice"), "_exit_handler", None)
            atexit.unregister(at_exit or print)  # it would hang as well

    def blocks(self, sample_rate_hz: int) -> Iterator[Block]:
        """Mono blocks (time,) at `sample_rate_hz`, until the microphone is left.

        While a device is waited for, and only then, empty blocks come, ten a second; then a second of silence, and
        on it goes.

        Raises:
            DeviceError: outside of `with`.
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
        """Turn what was captured up to now, and has not been read yet, into silence."""
        if self._session and self._session.stream:
            self._session.stream.discard()

    def _captured(self, session: _Session) -> Iterator[Block]:
        """What the open stream delivers, until it ends or is silent for too long."""
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
                waited_s += POLL_S  # not by the clock: a process that slept has not waited
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
        """Look for a device until it delivers, or the session is over."""
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
    """Wait for the first block; whether it came."""
    for _ in range(round(PATIENCE_S / POLL_S)):
        if stream.n_frames or stream.has_ended.wait(POLL_S):
            break
    return bool(stream.n_frames)


def _close_stream(session: _Session) -> None:
    if session.task:
        session.task.wait()
    if session.stream:
        session.stream.close()
