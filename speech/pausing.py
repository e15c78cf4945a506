"""Pauses a listener from outside of its loop: from another thread, by a signal, or while a file exists."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from speech.audio import Block
from speech.listener import Listener


class Pauser:
    """Lets nothing through that was captured between `pause` and `resume`, however late it is read.

    Both return at once and may be called from any thread, from a signal handler, and from what the listener calls;
    they take effect with the next block.

    Args:
        listener: what is paused.
        discard: makes the source forget what it has captured up to now, see `Microphone.discard`.
        path: a file; the listener is also paused while it exists.
        changed: called with whether it is paused, whenever that changes.
    """

    def __init__(
        self,
        listener: Listener,
        discard: Callable[[], None] | None = None,
        path: str | Path | None = None,
        changed: Callable[[bool], None] | None = None,
    ) -> None:
        self._listener, self.discard = listener, discard or (lambda: None)
        self._path = Path(path) if path else None
        self._changed = changed or (lambda _: None)
        self._is_wanted, self._is_due = False, False

    def pause(self) -> None:
        """Hear nothing from now on."""
        self._is_wanted, self._is_due = True, True

    def resume(self) -> None:
        """Hear again from now on, unless the file exists."""
        self._is_wanted = False

    def toggle(self) -> None:
        """Pause, or resume."""
        if self._is_wanted:
            self.resume()
        else:
            self.pause()

    @property
    def is_paused(self) -> bool:
        """Whether nothing is to be heard now."""
        return self._is_wanted or bool(self._path and self._path.exists())

    def let_through(self, block: Block) -> Block:
        """The next block (time,) before it is fed: itself, or silence of its length."""
        is_paused, was_paused = self.is_paused, self._listener.is_paused
        if not (is_paused or self._is_due):
            return block
        self._listener.pause()
        self._is_due = is_paused
        if not is_paused:  # this block and those that wait to be read were captured before
            self.discard()
            self._listener.resume()
        if is_paused != was_paused:
            self._changed(is_paused)
        return np.zeros_like(block)
