"""Listening while the program does other things: in a thread, or as an asynchronous iterator."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress

from speech import errors
from speech.errors import describe
from speech.listener import Listener
from speech.pausing import Pauser
from speech.recognizer import Recognizer
from speech.results import Detection
from speech.sound.files import Block
from speech.sound.microphone import Microphone

STOP_S = 5.0
"""Longest time in seconds that `stop` waits for a callback to return."""


class Background:
    """A thread that listens until it is stopped or its source ends.

        with listen_in_background(print) as background:
            ...  # do something else

    Args:
        callback: called with each detection, in the thread.  Listening halts until it returns; meanwhile up to
            `devices.BACKLOG_S` seconds of audio are kept.  An exception that it raises is reported in one line.
        listener: default: a listener with the shipped bundle.
        source: a microphone, or blocks (time,) at the bundle's rate; default: the default microphone.
        tell: takes one line when something went wrong; default: prints it on stderr.
        ended: called when listening has ended, in the thread.
    """

    def __init__(
        self,
        callback: Callable[[Detection], object],
        listener: Listener | None = None,
        source: Microphone | Iterable[Block] | None = None,
        tell: Callable[[str], None] = errors.tell,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._callback, self._tell, self._ended = callback, tell, ended
        self._listener = listener or Listener(Recognizer.load())
        self._source = Microphone(tell=self._tell) if source is None else source
        self._pauser = Pauser(self._listener)
        self._is_begun, self._is_stopped, self._is_over = threading.Event(), threading.Event(), threading.Event()
        self._is_open = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="speech")
        self.error: Exception | None = None
        """The exception that ended it; None after `stop` or the end of the source."""

    def start(self) -> None:
        """Start the thread.  Returns when the microphone is open; at once if it was made with `wait=True`.

        Raises:
            SpeechError: the microphone can't be opened.
        """
        self._thread.start()
        if not self._is_waiting:
            self._is_begun.wait()
            if self.error and not self._is_open:
                raise self.error

    @property
    def _is_waiting(self) -> bool:
        """Whether `start` returns before the microphone is open."""
        return isinstance(self._source, Microphone) and self._source.wait

    @property
    def is_running(self) -> bool:
        """Whether it is still listening; False before `start`."""
        return self._thread.ident is not None and not self._is_over.is_set()

    def stop(self) -> None:
        """Stop listening, from any thread or from the callback.  No detection is reported after this has returned."""
        self._is_stopped.set()
        if isinstance(self._source, Microphone):
            self._source.close()
        self.wait(STOP_S)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it has ended, as when the source is a recording; from the callback it returns at once."""
        if self._thread.ident and self._thread is not threading.current_thread():
            self._is_over.wait(timeout_s)  # not `join`, which is unreliable after an interrupt

    def pause(self) -> None:
        """Ignore audio from now on, for example while the program itself speaks."""
        self._pauser.pause()

    def resume(self) -> None:
        """Listen again, to the audio from now on."""
        self._pauser.resume()

    @property
    def is_paused(self) -> bool:
        """Whether audio is ignored."""
        return self._pauser.is_paused

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            if isinstance(self._source, Microphone):
                with self._source as microphone:
                    self._pauser.discard = microphone.discard
                    self._listen(microphone.blocks(self._listener.recognizer.info.sample_rate_hz))
            else:
                self._listen(self._source)
        except Exception as error:
            if not self._is_stopped.is_set():
                self.error = error
                if self._is_open or self._is_waiting:  # otherwise `start` raises it
                    self._tell(f"error: {describe(error)}")
        finally:
            self._is_begun.set()
            self._ended()
            self._is_over.set()

    def _listen(self, blocks: Iterable[Block]) -> None:
        self._is_open = True
        self._is_begun.set()
        self._listener.reset()
        for block in blocks:
            if self._is_stopped.is_set():
                return
            self._report(self._listener.feed(self._pauser.let_through(block)))
        self._report(self._listener.flush())

    def _report(self, detections: list[Detection]) -> None:
        for detection in detections:
            if self._is_stopped.is_set():
                return
            try:
                self._callback(detection)
            except Exception as error:
                self._tell(f"callback for {detection.word!r}: {describe(error)}")


def listen_in_background(
    callback: Callable[[Detection], object],
    listener: Listener | None = None,
    source: Microphone | Iterable[Block] | None = None,
    tell: Callable[[str], None] = errors.tell,
) -> Background:
    """Start to listen in a thread; see `Background` for the arguments and the methods of the result.

    Raises:
        SpeechError: the bundle or the microphone can't be used.
    """
    background = Background(callback, listener, source, tell)
    background.start()
    return background


async def listen_async(
    listener: Listener | None = None,
    source: Microphone | Iterable[Block] | None = None,
    tell: Callable[[str], None] = errors.tell,
) -> AsyncIterator[Detection]:
    """Yield detections as they come, for `async for`; the event loop keeps running.

    Within `contextlib.aclosing`, the microphone is closed as soon as the loop is left; otherwise soon after.

    Raises:
        SpeechError: the bundle or the microphone can't be used.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[Detection | None] = asyncio.Queue()

    def put(item: Detection | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(found.put_nowait, item)

    background = await asyncio.to_thread(Background, put, listener, source, tell, lambda: put(None))
    try:
        await asyncio.to_thread(background.start)
        while (detection := await found.get()) is not None:
            yield detection
        if background.error:
            raise background.error
    finally:
        stopping = threading.Thread(target=background.stop)
        stopping.start()  # before any await: that may be cancelled, as when the event loop ends
        await asyncio.to_thread(stopping.join)
