"""The store of sounds: the mel power of every recording, computed once, dry and in real rooms.

Sounds add in the power domain, so an example is a sum of pictures, see `recipes.data.compose`.  Rooms do not: their
fine colour needs the waveform.  So each spoken sound is also kept in a few rooms.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from recipes.data.recordings import Recording, read_recording, tell_bad
from recipes.data.sounds import ROOM_S, Waveform, loud_frames, room_response
from speech.errors import DataError
from speech.model.features import FEATURES, HOP, N_FFT, N_MELS, WINDOW, mel_filters
from speech.segment import CUTOFF_HZ, SAMPLE_RATE_HZ, ListenerConfig, utterances_of

VERSION = 1
"""Raise it when the pictures change."""
ROOMS = {"words": 3, "voices": 3, "synthetic": 3, "speech": 1, "sentences": 1}
"""In how many rooms a training sound of each source is kept, besides dry."""
TAIL = 20
"""Frames that a sound in a room is longer than dry, for the reverberation after it: 0.2 s."""
TAPS = round(ROOM_S * SAMPLE_RATE_HZ)
"""Samples of a room's impulse response."""
LOUD_FRAMES = 25
"""The loudest 250 ms of a recording have the nominal level."""
NOMINAL = 0.05
"""RMS of the loudest 250 ms in the store: -26 dB of full scale."""
OFFSET = 1e-8
"""Added to each mel power before the logarithm."""
QUIET = 8
"""Frames of the quietest stretch of a recording, which fill what lies around it."""
SILENT = 1e-5
"""RMS below which a recording holds no sound."""
PAUSE_FRAMES = 25
"""Quiet frames between two sounds of a recording: 250 ms, as in the live endpointer."""
SHORTEST_FRAMES = 6
"""Shortest sound of a longer recording: 60 ms."""
LONGEST_TALK_S = 60.0
"""Longest utterance that is cut out of speech."""

Numbers = NDArray[np.int64]
SOUND = np.dtype([(name, np.int64) for name in ("recording", "begin", "length", "rooms", "start", "end", "quiet")])
"""A row of the table of sounds.  `begin`: first frame in the store; `length`: frames; `rooms`: number of rooms; `start`
and `end`: bounds of the sound, counted from `begin`; `quiet`: first of its `QUIET` quietest frames, -1 for none."""


@cache
def live_gain(points: int) -> Tensor:
    """(points // 2 + 1,) gain of the live loop's high-pass at each frequency of an FFT; its phase is left out.

    Source: Butterworth's magnitude of order 4 after the bilinear transform, as in `speech.segment`.
    """
    angle = torch.linspace(0, np.pi / 2, points // 2 + 1, dtype=torch.float64)[:-1]
    ratio = torch.tan(angle) / np.tan(np.pi * CUTOFF_HZ / SAMPLE_RATE_HZ)
    return torch.cat([ratio**4 / torch.sqrt(1 + ratio**8), torch.ones(1, dtype=torch.float64)]).float()


def mel_power(waveforms: Tensor) -> Tensor:
    """Mel power as in the MFCC: (batch, time) -> (batch, frames, N_MELS)."""
    window = torch.hann_window(WINDOW, dtype=torch.float64).float()
    spectrum = torch.fft.rfft(waveforms.unfold(1, WINDOW, HOP) * window, N_FFT)
    return torch.view_as_real(spectrum).square().sum(-1) @ mel_filters()


def sounds_of(recording: Recording, waveform: Waveform) -> Numbers:
    """The sounds of a recording: (sounds, 2), first frame of each and one past the last.

    A word has one.  Speech is cut into utterances by the live endpointer; events and generated sounds at their pauses.
    Noise is one sound from end to end.
    """
    n_frames = len(waveform) // HOP
    if recording.source in ("speech", "sentences"):
        found = utterances_of(waveform, ListenerConfig(), LONGEST_TALK_S)
        return np.array([(u.start // HOP, min(u.end // HOP, n_frames)) for u in found], np.int64).reshape(-1, 2)
    loud = np.flatnonzero(loud_frames(waveform))
    if recording.source == "noise" or not len(loud):
        return np.array([[0, n_frames]])
    if recording.word:
        return np.array([[loud[0], loud[-1] + 1]])
    breaks = np.flatnonzero(np.diff(loud) > PAUSE_FRAMES)
    first, last = loud[np.r_[0, breaks + 1]], loud[np.r_[breaks, len(loud) - 1]] + 1
    return np.stack([first, last], 1)[last - first >= SHORTEST_FRAMES]


def pictures(waveform: Waveform, rooms: Tensor) -> NDArray[np.float16]:
    """The log mel power of a sound, dry and in rooms, each at the nominal level, after the live high-pass.

    Args:
        waveform: (time,)
        rooms: (rooms, TAPS) impulse responses.
    Returns:
        (frames + rooms * (frames + TAIL), N_MELS): first dry, then in each room; empty if there is no sound.
    """
    n = max(len(waveform), WINDOW)
    longer = n + TAIL * HOP * bool(len(rooms))
    points = 1 << (longer + TAPS - 1).bit_length()
    spectrum = torch.fft.rfft(torch.from_numpy(waveform), points) * live_gain(points)
    none = torch.zeros(1, TAPS)
    none[0, 0] = 1
    responses = torch.fft.rfft(torch.cat([none, rooms]), points)
    heard = torch.fft.irfft(spectrum * responses, points)[:, :longer]  # (1 + rooms, time)
    level = heard.unfold(1, HOP, HOP).square().mean(2)
    loud = level.topk(min(LOUD_FRAMES, level.shape[1]), 1).values.mean(1, keepdim=True).sqrt()
    if loud[0] < SILENT:
        return np.zeros((0, N_MELS), np.float16)
    found = torch.log(mel_power(heard * (NOMINAL / loud)) + OFFSET).half()
    n_frames = found.shape[1] - TAIL * bool(len(rooms))
    return torch.cat([found[0, :n_frames], *found[1:]]).numpy()


def quietest(picture: NDArray[np.float16]) -> int:
    """First of the `QUIET` successive frames with the least power; -1 if there are fewer frames."""
    if len(picture) < QUIET:
        return -1
    power = np.exp(picture.astype(np.float32)).sum(1)
    return int(np.convolve(power, np.ones(QUIET), "valid").argmin())


@dataclass(frozen=True)
class Store:
    """Sounds as log mel power.

    Attributes:
        recordings: that could be read, with a sound in them.
        sounds: table of type `SOUND`, (sounds,).
        frames: (frames, N_MELS) float16, memory-mapped or on a device.
        bad: recordings that can't be used, a line for each.
    """

    recordings: Sequence[Recording]
    sounds: NDArray[np.void]
    frames: Tensor
    bad: Sequence[str]

    def select(self, part: str, *sources: str) -> Numbers:
        """The sounds of one part and of some sources, as indices."""
        chosen = [r.part == part and r.source in sources for r in self.recordings]
        return np.flatnonzero(np.array(chosen, bool)[self.sounds["recording"]])

    def of_sounds(self, value: Callable[[Recording], int]) -> Numbers:
        """A number of each sound's recording: (sounds,)."""
        return np.array([value(r) for r in self.recordings], np.int64)[self.sounds["recording"]]


def open_store(recordings: Sequence[Recording], cache: Path) -> Store:
    """Open the store of these recordings; build it first if it is missing or out of date.

    Raises:
        DataError: no recording can be used; the bad ones are listed on stderr.
    """
    identity = [VERSION, FEATURES, ROOMS, repr(ListenerConfig()), *map(stamp, recordings)]
    key = hashlib.sha1(json.dumps(identity).encode()).hexdigest()[:16]
    frames, table = cache / f"{key}.f16", cache / f"{key}.npz"
    if not table.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        build(recordings, frames, table)
    with np.load(table) as arrays:
        sounds, kept, bad = arrays["sounds"], arrays["kept"], arrays["bad"].tolist()
    tell_bad(bad)
    if not len(sounds):
        raise DataError("no recording can be used")
    memory = np.memmap(frames, np.float16, mode="c").reshape(-1, N_MELS)  # never written to; torch wants it writable
    return Store([recordings[i] for i in kept], sounds, torch.from_numpy(memory), bad)


def build(recordings: Sequence[Recording], frames: Path, table: Path) -> None:
    """Compute the pictures of all recordings.  They get their names when they are complete."""
    rng = np.random.default_rng(0)
    bad: list[str] = []
    rows: list[tuple[int, ...]] = []
    kept: list[int] = []
    rooms = rooms_of(recordings, bad)
    part, part_table = (path.with_name(f"{os.getpid()}-{path.name}") for path in (frames, table))
    begin = 0
    with open(part, "wb") as file, torch.no_grad():
        for number, recording in enumerate(tqdm(recordings, "store of sounds", unit="recordings", disable=None)):
            if recording.source == "rooms" or recording.part == "testing":
                continue
            try:
                waveform = read_recording(recording)
            except DataError as error:
                bad.append(str(error))
                continue
            n_rooms = ROOMS.get(recording.source, 0) if recording.part == "training" and len(rooms) else 0
            found = pictures(waveform, rooms[rng.integers(max(1, len(rooms)), size=n_rooms)])
            if not len(found):
                continue
            length = (len(found) - n_rooms * TAIL) // (n_rooms + 1)
            sounds = np.minimum(sounds_of(recording, waveform), length)
            # Before a word, for in a room its reverberation lasts.
            quiet = quietest(found[: sounds[0, 0] if recording.word and len(sounds) else length])
            rows += [(len(kept), begin, length, n_rooms, a, b, quiet) for a, b in sounds.tolist() if b > a]
            kept.append(number)
            file.write(found.tobytes())
            begin += len(found)
    part.replace(frames)
    np.savez(part_table, sounds=np.array(rows, SOUND), kept=np.array(kept, np.int64), bad=np.array(bad, np.str_))
    part_table.replace(table)


def rooms_of(recordings: Sequence[Recording], bad: list[str]) -> Tensor:
    """The impulse responses of the training rooms: (rooms, TAPS)."""
    found = []
    for recording in recordings:
        if recording.source == "rooms" and recording.part == "training":
            try:
                response = torch.from_numpy(room_response(read_recording(recording)))
                found.append(torch.nn.functional.pad(response, (0, TAPS - len(response))))
            except DataError as error:
                bad.append(str(error))
    return torch.stack(found) if found else torch.zeros(0, TAPS)


def stamp(recording: Recording) -> tuple[str, str, int, int]:
    """Identity of a recording: if it changes, the store is out of date."""
    if recording.source == "procedural":
        return str(recording.path), recording.source, 0, 0
    status = recording.path.stat()
    return str(recording.path), f"{recording.source} {recording.part}", status.st_size, status.st_mtime_ns
