"""Raw encodings, and what a pipe brings, by its first bytes: raw samples, WAV, another container."""

import io
import shlex
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

from speech.errors import ConfigError

CONTAINERS = (
    b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"dns.", b"NIST_1A",
    b"Creative Voice File",
)  # fmt: skip
"""First bytes of the containers that libsndfile reads.  MPEG audio without a tag begins with a frame instead."""
UNREADABLE = {
    (4, b"ftyp"): "MP4 or M4A", (0, b"\x1aE\xdf\xa3"): "WebM or Matroska", (0, b"0&\xb2u\x8ef\xcf\x11"): "WMA",
    (0, b"#!AMR"): "AMR", (0, b"ADIF"): "AAC", (0, b"FLV\x01"): "Flash video",
}  # fmt: skip
"""Offset and bytes that identify formats which libsndfile does not read -> name of the format."""
MARK_BYTES, HEAD_BYTES = 20, 4096
"""Enough for all of `CONTAINERS` and `UNREADABLE`; enough for three frames of MPEG audio."""
ENDLESS_BYTES = 0x7FFFF000
"""A WAV file that claims at least this length, or 0, was written to a pipe: its length was not known."""
MOST_CHANNELS = 64
"""Largest number of channels that is read."""
ENCODINGS = {
    "s16le": ("PCM_16", "LITTLE", 2), "s16be": ("PCM_16", "BIG", 2), "s24le": ("PCM_24", "LITTLE", 3),
    "s24be": ("PCM_24", "BIG", 3), "s32le": ("PCM_32", "LITTLE", 4), "s32be": ("PCM_32", "BIG", 4),
    "f32le": ("FLOAT", "LITTLE", 4), "f32be": ("FLOAT", "BIG", 4), "f64le": ("DOUBLE", "LITTLE", 8),
    "f64be": ("DOUBLE", "BIG", 8), "s8": ("PCM_S8", "FILE", 1), "u8": ("PCM_U8", "FILE", 1),
    "mulaw": ("ULAW", "FILE", 1), "alaw": ("ALAW", "FILE", 1),
}  # fmt: skip
"""Raw sample formats by ffmpeg's names -> libsndfile's subtype and byte order, bytes of a sample."""


@dataclass(frozen=True)
class RawFormat:
    """Format of samples without a header.  Raises ConfigError for a field out of range."""

    encoding: str = "s16le"
    """A key of `ENCODINGS`."""
    sample_rate_hz: int = 16000
    channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ConfigError(f"no encoding {self.encoding!r}; there are {', '.join(ENCODINGS)}")
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise ConfigError(f"{self.channels} channels; from 1 to {MOST_CHANNELS} can be read")

    def read(self, source: "ForwardOnlyStream", n_frames: int) -> NDArray[np.float32]:
        """Take frames from a stream as (time, channels); half a frame at the end is dropped."""
        subtype, endian, sample_bytes = ENCODINGS[self.encoding]
        frame_bytes = self.channels * sample_bytes
        data = source.take(n_frames * frame_bytes)
        if len(data) < frame_bytes:
            return np.zeros((0, self.channels), np.float32)
        return soundfile.read(
            io.BytesIO(data), len(data) // frame_bytes, dtype="float32", always_2d=True, format="RAW",
            subtype=subtype, endian=endian, samplerate=self.sample_rate_hz, channels=self.channels,
        )[0]  # fmt: skip


class ForwardOnlyStream:
    """Bytes that can be read only once, as from a pipe, with a look ahead.

    Args:
        read: returns up to the given number of bytes, at least one; none at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self._ahead, self._left = read, bytearray(), float("inf")

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes, fewer at the end."""
        while (lacking := n_bytes - len(self._ahead)) > 0 and (data := self._read(max(lacking, HEAD_BYTES))):
            self._ahead += data
        return bytes(self._ahead[:n_bytes])

    def take(self, n_bytes: int) -> bytes:
        """As `peek`, and move on; nothing after the bytes that `limit` allows."""
        data = self.peek(int(min(n_bytes, self._left)))
        del self._ahead[: len(data)]
        self._left -= len(data)
        return data

    def limit(self, n_bytes: float) -> None:
        """End the stream after this many bytes."""
        self._left = n_bytes


def wav_format(source: ForwardOnlyStream) -> RawFormat | None:
    """Read the header of a WAV stream: the format of the samples that follow.

    Returns:
        None if libsndfile must decide: it is not WAV, its samples are compressed, or it is damaged.  Then nothing was
        taken.
    """
    at = 12
    while len(head := source.peek(at + 8)) == at + 8 and head.startswith(b"RIFF") and at < 256 * HEAD_BYTES:
        kind, n_bytes = head[at : at + 4], int.from_bytes(head[at + 4 :], "little")
        at += 8
        if kind == b"data":
            coding = {subtype: name for name, (subtype, endian, _) in ENCODINGS.items() if endian != "BIG"}
            try:
                with soundfile.SoundFile(io.BytesIO(head)) as file:
                    found = RawFormat(coding[file.subtype], file.samplerate, file.channels)
            except (soundfile.LibsndfileError, KeyError, ConfigError):
                return None
            source.take(at)
            source.limit(n_bytes if 0 < n_bytes < ENDLESS_BYTES else float("inf"))
            return found
        at += n_bytes + n_bytes % 2
    return None


def kind_of(source: ForwardOnlyStream) -> str | None:
    """What a stream begins with: the name of a format that libsndfile does not read, "" if it may, None: raw samples.

    As few bytes are awaited as are needed, so that raw samples are not delayed.
    """
    head = source.peek(MARK_BYTES)
    for (place, mark), name in UNREADABLE.items():
        if head[place:].startswith(mark):
            return name
    if head.startswith(CONTAINERS):
        return ""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0 or head[1] & 6 not in (2, 4):
        return None
    head = source.peek(HEAD_BYTES)  # three frames of MPEG audio, layer 2 or 3; one could also be raw samples
    fours = zip(head, head[1:], head[2:], head[3:], strict=False)
    frames = [(a, b, c & 0x0C, d & 0xC0) for a, b, c, d in fours if 0 < c >> 4 < 15]  # with a bit rate
    return "" if frames.count((head[0], head[1], head[2] & 0x0C, head[3] & 0xC0)) >= 3 else None


def conversion(name: str) -> str:
    """A command that converts the file to a readable format, for messages."""
    return f"convert it: ffmpeg -i {shlex.quote(name)} -ac 1 -ar 16000 converted.wav"
