"""Identify audio formats by their first bytes, and let libsndfile read a stream that can't seek."""

import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from speech.errors import ConfigError

READABLE = (
    b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"dns.", b"NIST_1A",
    b"Creative Voice File",
)  # fmt: skip
"""First bytes of the containers that libsndfile reads.  MPEG audio without a tag begins with a frame instead."""
UNREADABLE = {
    (4, b"ftyp"): "MP4 or M4A", (0, b"\x1aE\xdf\xa3"): "WebM or Matroska", (0, b"0&\xb2u\x8ef\xcf\x11"): "WMA",
    (0, b"#!AMR"): "AMR", (0, b"ADIF"): "AAC", (0, b"FLV\x01"): "Flash video",
}  # fmt: skip
"""Offset and bytes that identify formats which libsndfile does not read -> name of the format."""
MARK_BYTES = 20
"""Enough for all of `READABLE` and `UNREADABLE`."""
HEAD_BYTES = 4096
"""Enough to distinguish MPEG audio, which has no fixed first bytes, from raw samples."""
UNKNOWN_LENGTH = 1 << 62
"""Length in bytes that is reported for a stream of unknown length."""
SKIP_BYTES = 1 << 16
"""Longest jump forwards in bytes that is followed while a header is read."""
ENCODINGS = {
    "s16le": ("PCM_16", "LITTLE"), "s16be": ("PCM_16", "BIG"), "s24le": ("PCM_24", "LITTLE"),
    "s24be": ("PCM_24", "BIG"), "s32le": ("PCM_32", "LITTLE"), "s32be": ("PCM_32", "BIG"),
    "f32le": ("FLOAT", "LITTLE"), "f32be": ("FLOAT", "BIG"), "f64le": ("DOUBLE", "LITTLE"),
    "f64be": ("DOUBLE", "BIG"), "s8": ("PCM_S8", "FILE"), "u8": ("PCM_U8", "FILE"), "mulaw": ("ULAW", "FILE"),
    "alaw": ("ALAW", "FILE"),
}  # fmt: skip
"""Raw sample formats by ffmpeg's names -> libsndfile's subtype and byte order."""
MOST_CHANNELS = 64
"""Largest number of channels that is read."""


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


def unreadable_kind(head: bytes) -> str | None:
    """The name of a format that libsndfile does not read, given its first bytes; None for all others."""
    for (place, mark), name in UNREADABLE.items():
        if head[place:].startswith(mark):
            return name
    return "AAC" if _is_adts(head) else None


def is_container(head: bytes) -> bool:
    """Whether this is a container that libsndfile reads.  `head`: the first `HEAD_BYTES`, or all bytes if fewer."""
    return head.startswith(READABLE) or _is_mpeg(head)


def is_finished(head: bytes) -> bool:
    """Whether the container can only be read whole: Ogg, and MPEG audio with its length in the first frame."""
    return head.startswith(b"OggS") or (head.startswith((b"\xff", b"ID3")) and (b"Xing" in head or b"Info" in head))


def conversion(name: str) -> str:
    """A command that converts the file to a readable format, for messages."""
    return f"convert it: ffmpeg -i {shlex.quote(name)} -ac 1 -ar 16000 converted.wav"


def _is_mpeg(head: bytes) -> bool:
    """Whether the bytes begin with three MPEG audio frames; one frame could also be raw samples."""
    at = 0
    for _ in range(3):
        frame = head[at : at + 4]
        n_bytes = _mpeg_frame_bytes(frame)
        if not n_bytes or frame[:1] + bytes([frame[1] & 0xFE, frame[2] & 0x0C]) != (
            head[:1] + bytes([head[1] & 0xFE, head[2] & 0x0C])
        ):
            return False
        at += n_bytes
    return True


def _mpeg_frame_bytes(header: bytes) -> int:
    """Length of a layer 2 or 3 frame, by its first four bytes; 0 if it is not such a frame.

    Source: ISO/IEC 11172-3, section 2.4.2.3, and 13818-3 for half and quarter rates.
    """
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate_code, bitrate_code, padding = header[2] >> 2 & 3, header[2] >> 4, header[2] >> 1 & 1
    if version == 1 or layer not in (2, 3) or rate_code == 3 or bitrate_code in (0, 15):
        return 0
    rate_hz = (44100, 48000, 32000)[rate_code] >> {3: 0, 2: 1, 0: 2}[version]
    kbits = _KBITS[layer if version == 3 else 0][bitrate_code - 1]
    n_samples = 576 if layer == 3 and version != 3 else 1152
    return n_samples // 8 * 1000 * kbits // rate_hz + padding


_KBITS = {
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    0: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of MPEG-1 layers 2 and 3, and of MPEG-2, in kbit/s."""


def _is_adts(head: bytes) -> bool:
    """Whether the bytes begin with three AAC frames.  Source: ISO/IEC 13818-7, section 6.2."""
    at = 0
    for _ in range(3):
        frame = head[at : at + 7]
        if len(frame) < 7 or frame[0] != 0xFF or frame[1] & 0xF6 != 0xF0 or frame[1:3] != head[1:3]:
            return False
        n_bytes = (frame[3] & 3) << 11 | frame[4] << 3 | frame[5] >> 5
        if n_bytes < len(frame):
            return False
        at += n_bytes
    return True


class OneWay:
    """A stream that can be read only once, as from a pipe, with the seeks that libsndfile needs to open it.

    The bytes of the header are kept, because libsndfile reads it twice.  For some containers it also looks at what
    follows the samples; such reads, far beyond the bytes that have arrived, return zeros.

    Args:
        read: returns up to the given number of bytes, at least one; none at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._kept, self._begin, self._at = (
            bytearray(),
            0,
            0,
        )  # bytes kept, position of the first, position of the next to read
        self._has_ended, self._is_opened, self._n_zeros = False, False, HEAD_BYTES
        self.error: BaseException | None = None
        """The exception that stopped the reading, which can't pass through libsndfile's C code."""

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes, fewer at the end of the stream, without moving the position."""
        self._fill(self._at + n_bytes)
        begin = self._at - self._begin
        return bytes(self._kept[begin : begin + n_bytes])

    def opened(self) -> None:
        """The header has been read: bytes need not be kept from now on."""
        self._is_opened = True

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer.  Returns the number of bytes; fewer than its length only at the end or after an `error`."""
        if self._at > self._begin + len(self._kept) + SKIP_BYTES:
            return self._nothing(buffer)
        try:
            self._fill(self._at + len(buffer))
        except BaseException as error:  # KeyboardInterrupt too; raised again when libsndfile has returned
            self.error, self._has_ended = error, True
        begin = self._at - self._begin
        found = self._kept[begin : begin + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        if self._is_opened:
            del self._kept[: self._at - self._begin]
            self._begin = self._at
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: UNKNOWN_LENGTH}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def _nothing(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer with zeros, in all at most `HEAD_BYTES`."""
        n_bytes = min(len(buffer), self._n_zeros)
        buffer[:n_bytes] = bytes(n_bytes)
        self._n_zeros -= n_bytes
        self._at += n_bytes
        return n_bytes

    def _fill(self, end: int) -> None:
        """Read until position `end`, or to the end of the stream."""
        while not self._has_ended and (lacking := end - self._begin - len(self._kept)) > 0:
            data = self._read(max(lacking, HEAD_BYTES))
            self._kept += data
            self._has_ended = not data


def whole(source: OneWay) -> IO[bytes]:
    """Read a stream to its end into a temporary file."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - libsndfile reads it
    while data := source.peek(SKIP_BYTES):
        file.write(data)
        source.seek(len(data), os.SEEK_CUR)
        source.opened()
    file.seek(0)
    return file
