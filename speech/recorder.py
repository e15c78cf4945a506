"""Saves the audio of detections and near misses, to check them and to train on."""

import glob
import io
import itertools
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

from speech.errors import ConfigError
from speech.results import Detection, Rejection
from speech.sound.files import Block

LEAD_S = 0.5
"""Seconds of audio saved before the word."""
MEMORY_S = 12.0
"""Seconds of audio held in memory: enough for the longest utterance and `LEAD_S` before it."""


class Recorder:
    """Writes a WAV file (16 bit, mono) and a JSON file with the same name for each detection or rejection.

    The audio begins `LEAD_S` before the word and ends at the decision (`at_s`).  The name consists of the time when
    the recorder was created, the word's start in the stream, the word and its confidence, so names sort by time.  A
    rejection's name ends in `_rejected`.

    Args:
        folder: created if missing.
        sample_rate_hz: rate of the blocks.
        about: further JSON fields, such as the model and the device.
        tell: takes one line when writing fails; recording stops, but no exception is raised.
        began: wall-clock time for the names; default: now.
    Raises:
        ConfigError: the folder is not writable.
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
        self._begin, self._end = 0, 0  # of the audio in memory, in samples since the stream began

    def feed(self, block: Block) -> None:
        """Take the next samples (time,); call this before the listener gets them."""
        if not len(block):  # the microphone waits for its device, maybe for hours
            return
        self._blocks.append(block)
        self._end += len(block)
        while self._end - self._begin - len(self._blocks[0]) >= MEMORY_S * self._rate:
            self._begin += len(self._blocks.popleft())

    def keep(self, found: Detection | Rejection, threshold: float | None) -> None:
        """Write both files.  The first failure is reported in one line and ends recording.

        Args:
            found: the detection or rejection.
            threshold: threshold of its word; None if the word has none.
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

    def _name(self, found: Detection | Rejection) -> str:
        """A name that is not in use yet, without suffix."""
        word = re.sub(r"[^\w-]", "_", found.word)
        name = f"{self._began}_{found.start_s:09.2f}_{word}_{found.confidence:.2f}"
        name += "_rejected" if isinstance(found, Rejection) else ""
        names = (name if n == 1 else f"{name}_{n}" for n in itertools.count(1))
        return next(name for name in names if not any(self._folder.glob(f"{glob.escape(name)}.*")))

    def _save(self, name: str, sound: bytes, described: bytes) -> None:
        """Write both files or neither."""
        contents = {self._folder / f"{name}.wav": sound, self._folder / f"{name}.json": described}
        parts = {path.with_name(f".{path.name}.part"): path for path in contents}
        try:
            for part, path in parts.items():
                part.write_bytes(contents[path])
            for part, path in parts.items():
                part.rename(path)
        except OSError:
            for path in (*parts, *contents):
                with suppress(OSError):
                    path.unlink()
            raise
