"""Keeps the audio of what was reported, and of what was nearly, to judge and to learn from."""

import io
import json
import re
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import soundfile

from speech.audio import Block
from speech.errors import ConfigError
from speech.results import Detection, Rejection

LEAD_S = 0.5
"""Audio kept before the word."""
MEMORY_S = 12.0
"""Audio at hand: the longest utterance and what is kept before it."""


class Recorder:
    """Writes a WAV (16 bit, mono) and a JSON with the same name for each detection.

    The audio goes from `LEAD_S` before the word to where it was decided.  The name is made of when the recorder
    was made, the word's start in the stream, the word and its confidence, so names sort by time.

    Args:
        folder: created if need be.
        sample_rate_hz: of what is fed.
        about: more for the JSON, such as the model and the device.
        tell: takes one line when nothing can be written any more; what calls the recorder goes on.
        began: wall-clock time for the names; default: now.
    Raises:
        ConfigError: nothing can be written to the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        sample_rate_hz: int,
        about: Mapping[str, object],
        tell: Callable[[str], None],
        began: datetime | None = None,
    ) -> None:
        self._folder, self._rate, self.about, self._tell = Path(folder), sample_rate_hz, dict(about), tell
        self._began = (began or datetime.now()).strftime("%Y%m%d-%H%M%S")
        self._is_stopped = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder) as file:
                file.write(b"can this be written?")
        except OSError as error:
            raise ConfigError(f"can't record to {folder}: {error.strerror}") from error
        self.reset()

    def reset(self) -> None:
        """A new stream begins at time 0."""
        self._blocks: deque[Block] = deque()
        self._begin, self._end = 0, 0  # of what is at hand, in samples of the stream

    def feed(self, block: Block) -> None:
        """Take the samples (time,) that the listener is given, before it is."""
        if not len(block):  # a device is waited for, for hours maybe
            return
        self._blocks.append(block)
        self._end += len(block)
        while self._end - self._begin - len(self._blocks[0]) >= MEMORY_S * self._rate:
            self._begin += len(self._blocks.popleft())

    def keep(self, found: Detection | Rejection, threshold: float | None) -> None:
        """Write what was heard.  The first time that this fails ends the recording, with one line.

        Args:
            found: what was reported, or rejected with a reason.
            threshold: of its word; None where it has none.
        """
        if self._is_stopped:
            return
        kind = "rejection" if isinstance(found, Rejection) else "detection"
        described = asdict(found) | {"kind": kind, "threshold": threshold} | self.about
        sound = io.BytesIO()
        soundfile.write(sound, self._cut(found), self._rate, format="WAV", subtype="PCM_16")
        try:
            self._save(self._name(found), sound.getvalue(), (json.dumps(described) + "\n").encode())
        except OSError as error:
            self._is_stopped = True
            self._tell(f"recording stopped: {self._folder}: {error.strerror}")

    def _cut(self, found: Detection | Rejection) -> Block:
        at_hand = np.concatenate(self._blocks) if self._blocks else np.zeros(0, np.float32)
        begin = round((found.start_s - LEAD_S) * self._rate) - self._begin
        return at_hand[max(0, begin) : max(0, round(found.at_s * self._rate) - self._begin)]

    def _name(self, heard: Detection | Rejection) -> str:
        """A name that no file has yet."""
        word = re.sub(r"[^\w-]", "_", heard.word)
        name = f"{self._began}_{heard.start_s:09.2f}_{word}_{heard.confidence:.2f}"
        name += "_rejected" if isinstance(heard, Rejection) else ""
        found, n = name, 1
        while (self._folder / f"{found}.wav").exists() or (self._folder / f"{found}.json").exists():
            n += 1
            found = f"{name}_{n}"
        return found

    def _save(self, name: str, sound: bytes, described: bytes) -> None:
        """Both files or none."""
        paths = [self._folder / f"{name}.wav", self._folder / f"{name}.json"]
        parts = [path.with_name(f".{path.name}.part") for path in paths]
        made: list[Path] = []
        try:
            for part, content in zip(parts, (sound, described), strict=True):
                made.append(part)
                part.write_bytes(content)
            for part, path in zip(parts, paths, strict=True):
                part.rename(path)
                made.append(path)
        except OSError:
            for path in made:
                with suppress(OSError):
                    path.unlink()
            raise
