"""A window that shows the last word, with a pause button.

python examples/window.py                 # the default microphone
python examples/window.py recording.wav   # or a recording; the window closes at its end
"""

import queue
import sys
import tkinter as tk
from collections.abc import Iterable

from speech import Detection, listen_in_background
from speech.sound.files import Block, read_blocks

RATE_HZ = 16000
POLL_MS = 50


class Window(tk.Tk):
    """Words arrive on another thread, but Tk may be used only on its own, so a queue passes them on."""

    def __init__(self, blocks: Iterable[Block] | None = None) -> None:
        super().__init__()
        self.title("Say a command")
        self.word = tk.StringVar(self, "...")
        tk.Label(self, textvariable=self.word, font=("", 48), width=8).pack(padx=20, pady=20)
        self.button = tk.Button(self, text="Pause", command=self.pause_or_resume)
        self.button.pack(pady=10)
        self.heard: queue.Queue[Detection] = queue.Queue()
        self.background = listen_in_background(self.heard.put, source=blocks)
        self.closes_at_end = blocks is not None
        self.fetch()

    def fetch(self) -> None:
        """Show the words that have arrived since the last call."""
        is_running = self.background.is_running
        while not self.heard.empty():
            self.word.set(self.heard.get().word)
        if is_running or not self.closes_at_end:
            self.after(POLL_MS, self.fetch)
        else:
            self.destroy()

    def pause_or_resume(self) -> None:
        if self.background.is_paused:
            self.background.resume()
        else:
            self.background.pause()
        self.button["text"] = "Listen" if self.background.is_paused else "Pause"

    def destroy(self) -> None:
        self.background.stop()
        super().destroy()


if __name__ == "__main__":
    Window(read_blocks(sys.argv[1], RATE_HZ) if sys.argv[1:] else None).mainloop()
