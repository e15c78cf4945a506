"""Pause a listener from outside its loop: from another thread, by a signal, or while a file exists."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from speech.errors import ConfigError
from speech.listener import Listener
from speech.sound.files import Block


class Pauser:
    """Replaces audio captured between `pause` and `resume` by silence, however late it is read.

    `pause` and `resume` return at once and take effect with the next block.  They may be called from any thread, from a
    signal handler, and from callbacks of the listener.

    Args:
        listener: the listener to pause.
        discard: drops the audio that the source has captured so far; see `Microphone.discard`.
        path: the listener is also paused while this file exists.
        changed: called with the new value whenever `is_paused` has changed.
    Raises:
        ConfigError: the system does not let us see whether the file exists; later, `is_paused` and `let_through` do.
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
        self._file_exists()

    def pause(self) -> None:
        """Ignore audio from now on."""
        self._is_wanted, self._is_due = True, True

    def resume(self) -> None:
        """Listen again from now on, unless the file exists."""
        self._is_wanted = False

    def toggle(self) -> None:
        """Pause; resume if paused by `pause`."""
        if self._is_wanted:
            self.resume()
        else:
            self.pause()

    @property
    def is_paused(self) -> bool:
        """Whether audio is to be ignored now."""
        return self._is_wanted or self._file_exists()

    def _file_exists(self) -> bool:
        if self._path is None:
            return False
        try:
            self._path.stat()
            return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._path}: {getattr(error, 'strerror', None) or error}") from error

    def let_through(self, block: Block) -> Block:
        """Take the next block (time,).  Returns it, or silence of the same length, for `Listener.feed`."""
        is_paused, was_paused = self.is_paused, self._listener.is_paused
        if not (is_paused or self._is_due):
            return block
        self._listener.pause()
        self._is_due = is_paused
        if not is_paused:  # this block and all unread ones were captured before the end of the pause
            self.discard()
            self._listener.resume()
        if is_paused != was_paused:
            self._changed(is_paused)
        return np.zeros_like(block)
