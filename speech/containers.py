"""What kind of audio some bytes are, and bytes that come only once in a form that libsndfile reads."""

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
"""How the containers begin that libsndfile reads; MPEG audio without a tag begins with a frame."""
UNREADABLE = {
    (4, b"ftyp"): "MP4 or M4A", (0, b"\x1aE\xdf\xa3"): "WebM or Matroska", (0, b"0&\xb2u\x8ef\xcf\x11"): "WMA",
    (0, b"#!AMR"): "AMR", (0, b"ADIF"): "AAC", (0, b"FLV\x01"): "Flash video",
}  # fmt: skip
"""Place and beginning of those that it does not read, and what they are called."""
MARK_BYTES = 20
"""Enough for all marks."""
HEAD_BYTES = 4096
"""Enough to tell MPEG audio, the only kind without a mark of its own, from raw samples."""
UNKNOWN_LENGTH = 1 << 62
"""Length of a stream of unknown end, in bytes."""
SKIP_BYTES = 1 << 16
"""A part of a header may be this long; what lies further on in a stream is read when it is its turn."""
ENCODINGS = {
    "s16le": ("PCM_16", "LITTLE"), "s16be": ("PCM_16", "BIG"), "s24le": ("PCM_24", "LITTLE"),
    "s24be": ("PCM_24", "BIG"), "s32le": ("PCM_32", "LITTLE"), "s32be": ("PCM_32", "BIG"),
    "f32le": ("FLOAT", "LITTLE"), "f32be": ("FLOAT", "BIG"), "f64le": ("DOUBLE", "LITTLE"),
    "f64be": ("DOUBLE", "BIG"), "s8": ("PCM_S8", "FILE"), "u8": ("PCM_U8", "FILE"), "mulaw": ("ULAW", "FILE"),
    "alaw": ("ALAW", "FILE"),
}  # fmt: skip
"""Raw samples as ffmpeg names them -> libsndfile's subtype and byte order."""
MOST_CHANNELS = 64
"""More than any sound device or recording has."""


@dataclass(frozen=True)
class RawFormat:
    """What samples without a header are.  Raises ConfigError for a field out of range."""

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
    """The name of a format that libsndfile does not read, by its first bytes; None for all others."""
    for (place, mark), name in UNREADABLE.items():
        if head[place:].startswith(mark):
            return name
    return "AAC" if _is_adts(head) else None


def is_container(head: bytes) -> bool:
    """Whether libsndfile reads what begins with these `HEAD_BYTES`, or all there are."""
    return head.startswith(READABLE) or _is_mpeg(head)


def is_finished(head: bytes) -> bool:
    """Whether only the whole of a container can be read: Ogg, and MPEG audio that tells its length in a frame."""
    return head.startswith(b"OggS") or (head.startswith((b"\xff", b"ID3")) and (b"Xing" in head or b"Info" in head))


def conversion(name: str) -> str:
    """How to make a file that can be read."""
    return f"convert it: ffmpeg -i {shlex.quote(name)} -ac 1 -ar 16000 converted.wav"


def _is_mpeg(head: bytes) -> bool:
    """Whether three frames of MPEG audio follow each other; the first bytes of raw samples may look like one."""
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
    """Length of a frame of layer 2 or 3 by its first four bytes; 0 when it is none.

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
    """Whether three frames of AAC follow each other.  Source: ISO/IEC 13818-7, section 6.2."""
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
    """Bytes that come once, as from a pipe, with what libsndfile needs to open them: it looks at the header twice.

    What libsndfile reads far beyond what has come is answered with zeros: of some containers it wants to know what
    follows the samples, which would be gone then.

    Args:
        read: up to that many bytes, at least one; none at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._kept, self._begin, self._at = bytearray(), 0, 0  # bytes at hand, where they begin, the next to read
        self._has_ended, self._is_opened, self._n_zeros = False, False, HEAD_BYTES
        self.error: BaseException | None = None
        """What stopped the reading; libsndfile's C code can't pass it on."""

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes, or fewer when the stream ends before; they stay to be read."""
        self._fill(self._at + n_bytes)
        begin = self._at - self._begin
        return bytes(self._kept[begin : begin + n_bytes])

    def opened(self) -> None:
        """The header is known: what is read from now on need not be kept."""
        self._is_opened = True

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer; fewer bytes come only at the end, or when `error` says why."""
        if self._at > self._begin + len(self._kept) + SKIP_BYTES:
            return self._nothing(buffer)
        try:
            self._fill(self._at + len(buffer))
        except BaseException as error:  # of a signal as well; raised again when libsndfile has returned
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
        """Zeros, which say nothing in any format, but not for ever."""
        n_bytes = min(len(buffer), self._n_zeros)
        buffer[:n_bytes] = bytes(n_bytes)
        self._n_zeros -= n_bytes
        self._at += n_bytes
        return n_bytes

    def _fill(self, end: int) -> None:
        """Have all bytes up to there, if the stream holds them."""
        while not self._has_ended and (lacking := end - self._begin - len(self._kept)) > 0:
            data = self._read(max(lacking, HEAD_BYTES))
            self._kept += data
            self._has_ended = not data


def whole(source: OneWay) -> IO[bytes]:
    """All of a stream, read to its end, as a temporary file."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - libsndfile reads it
    while data := source.peek(SKIP_BYTES):
        file.write(data)
        source.seek(len(data), os.SEEK_CUR)
        source.opened()
    file.seek(0)
    return file
