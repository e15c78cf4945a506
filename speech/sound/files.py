"""Convert arrays of any layout, and all files that libsndfile reads, to mono float32 blocks; streaming resampler."""

import numbers
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speech.errors import AudioError, tell
from speech.sound.containers import MOST_CHANNELS, ForwardOnlyStream, RawFormat, conversion, kind_of, wav_format

Block = NDArray[np.float32]
Samples = NDArray[Any] | Sequence[float]
"""Samples in any layout that `as_mono` accepts."""

FEW_CHANNELS = 8
"""An array with at most this many columns is (time, channels), even if it has fewer rows than columns."""
LOUDEST = 256.0
"""Larger float samples are not audio in -1..1, but integers that were converted without scaling."""
FILE_BLOCK_S = 0.1
STREAM_BLOCK_S = 0.02
"""Length of the blocks of a stream, short so that they come with little delay."""
SPOOL_BYTES = 1 << 16
QUIETEST_DBFS = -120.0
AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {".opus", ".oga", ".aif"}
"""Suffixes by which audio files are found in a folder."""


def as_mono(samples: Any) -> Block:
    """Samples -> (time,) float32 in -1..1; channels are averaged.

    Args:
        samples: (time,), (time, channels) or (channels, time); float in -1..1 or signed 16/32-bit integers in any
            byte order; an array, a sequence or a tensor that numpy can read.
    Raises:
        AudioError: another shape or type, no samples, NaN or infinity.
    """
    return _average(_time_first(as_array(samples)))


def as_array(samples: Any) -> NDArray[Any]:
    """The samples as an array.  Raises AudioError if numpy can't read them."""
    try:
        return np.asarray(samples)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # raised for ragged lists, and tensors with a gradient or on a GPU
        raise AudioError(f"numpy can't read the samples as an array: {error}") from error


def _time_first(samples: NDArray[Any]) -> NDArray[Any]:
    """Samples of any layout as (time, channels).  Raises AudioError if the layout is ambiguous."""
    if samples.ndim == 1 and samples.size:
        return samples[:, None]
    if samples.ndim != 2 or not samples.size:
        raise AudioError(
            f"expected samples of shape (time,), (time, channels) or (channels, time), got {samples.shape}"
        )
    n_rows, n_columns = samples.shape
    if n_columns <= FEW_CHANNELS or n_columns <= min(MOST_CHANNELS, n_rows):
        return samples
    if n_rows <= MOST_CHANNELS < n_columns:
        return samples.T
    raise AudioError(f"can't tell channels from time in samples of shape {samples.shape}; give (time,) or one channel")


def _average(samples: NDArray[Any]) -> Block:
    """(time, channels) of any type -> (time,) float32.  Raises AudioError if the values can't be audio."""
    if samples.dtype.kind == "i" and samples.dtype.itemsize in (2, 4):
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    elif samples.dtype.kind != "f":
        raise AudioError(f"expected float, int16 or int32 samples, got {samples.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are refused below
        mono: Block = samples.astype(np.float32)[:, 0] if samples.shape[1] == 1 else samples.mean(1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise AudioError("the audio holds NaN or infinite samples")
    peak = np.abs(mono).max(initial=0)
    if peak > LOUDEST:
        raise AudioError(f"expected samples in -1..1, got {peak:.0f}; divide 16-bit values by 32768")
    return mono


def check_rate(sample_rate_hz: Any) -> int:
    """The rate as an integer.  Raises AudioError if it is not a number or lies outside 1000..768000 Hz."""
    if not isinstance(sample_rate_hz, numbers.Real):
        raise AudioError(f"a sample rate must be a number of Hz, not {sample_rate_hz!r}")
    rate_hz = float(sample_rate_hz)
    if not 1000 <= rate_hz <= 768_000:
        raise AudioError(f"a sample rate of {sample_rate_hz} Hz is outside 1000..768000")
    return round(rate_hz)


def resample(waveform: Block, from_hz: int, to_hz: int) -> Block:
    """Convert a whole waveform (time,) to another rate."""
    from_hz, to_hz = check_rate(from_hz), check_rate(to_hz)
    return waveform if from_hz == to_hz else soxr.resample(waveform, from_hz, to_hz).astype(np.float32)


def resample_stream(blocks: Iterable[Block], from_hz: int, to_hz: int) -> Iterator[Block]:
    """Convert blocks to another rate, without clicks at their bounds; memory does not grow."""
    from_hz, to_hz = check_rate(from_hz), check_rate(to_hz)
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


class ForwardFile(soundfile.SoundFile):
    """A sound file that is only read forwards.

    After each read of a seekable file, soundfile seeks to the present position.  In an MP3 that seek is inexact and
    damages the signal at every block.
    """

    def seekable(self) -> bool:
        return False


class Recording:
    """An opened file or stream of audio; `blocks` reads it, once.

    Args:
        name: for messages.
        sample_rate_hz: its own rate.
        channels: their number.
        read: returns up to the given number of frames, (time, channels) float32; none at the end.
        seconds: length, if it is known.
    Raises:
        AudioError: its header has impossible values.
    """

    def __init__(
        self,
        name: str,
        sample_rate_hz: int,
        channels: int,
        read: Callable[[int], NDArray[np.float32]],
        seconds: float | None = None,
    ) -> None:
        with _named(name):
            self.sample_rate_hz = check_rate(sample_rate_hz)
            if channels > MOST_CHANNELS:
                raise AudioError(f"{channels} channels are more than the {MOST_CHANNELS} that can be read")
        self.seconds = seconds
        """Length in seconds; None for a stream, whose length is not known before its end."""
        self._name, self._read = name, read

    def blocks(self, sample_rate_hz: int, block_s: float | None = None) -> Iterator[Block]:
        """Mono blocks (time,) at `sample_rate_hz`, read as they are needed.

        Raises:
            AudioError: while reading: the recording is damaged or holds NaN.
        """
        block_s = block_s or (STREAM_BLOCK_S if self.seconds is None else FILE_BLOCK_S)
        return resample_stream(self._decoded(block_s), self.sample_rate_hz, sample_rate_hz)

    def _decoded(self, block_s: float) -> Iterator[Block]:
        size = max(1, round(block_s * self.sample_rate_hz))
        with _named(self._name):
            while len(samples := self._read(size)):
                yield _average(samples)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the recording in the error of what is done with it."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name} is damaged: {reason(error)}") from error
    except OSError as error:
        raise AudioError(f"{name} can't be read: {error.strerror or error}") from error
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error


def open_recording(path: str | Path) -> Recording:
    """Open an audio file or a named pipe; a pipe can be read only once.

    Raises:
        AudioError: the file is missing, a folder, empty or not audio.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{path} is a folder; give audio files")
        stream = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise AudioError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{path} can't be opened: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISREG(mode) and path.suffix.lower() != ".raw":  # for .raw soundfile asks for a rate
        with stream:
            kind = kind_of(ForwardOnlyStream(stream.read))
        return _file(os.fspath(path) if sys.platform == "win32" else os.fsencode(path), str(path), kind)
    return open_stream(stream.read, str(path))


def open_stream(
    read: Callable[[int], bytes],
    name: str,
    raw: RawFormat | None = None,
    sniff: bool = True,
    tell: Callable[[str], None] = tell,
) -> Recording:
    """Open audio that can be read only once, as from a pipe; waits until its header has arrived.

    Raw samples and WAV are read as they come; another container is first read to its end, into a temporary file.

    Args:
        read: returns up to the given number of bytes, at least one; none at the end.
        name: for messages.
        raw: format of samples without a header; default: they are refused.
        sniff: look for a container.
        tell: takes one line if the stream must be read to its end first.
    Raises:
        AudioError: the stream is empty or not audio.
    """
    source = ForwardOnlyStream(read)
    with _named(name):
        kind = kind_of(source) if sniff or not raw else None
        is_empty = not source.peek(1)
        raw = raw if raw and kind is None else wav_format(source)
    if is_empty:
        raise AudioError(f"{name} holds no audio")
    if raw:
        return Recording(name, raw.sample_rate_hz, raw.channels, partial(raw.read, source))
    spooled = tempfile.TemporaryFile()  # noqa: SIM115 - libsndfile reads it
    if not kind:
        tell(f"note: {name} is read to its end first; for live audio pipe in WAV or raw samples")
        with _named(name):
            while data := source.take(SPOOL_BYTES):
                spooled.write(data)
            spooled.seek(0)
    return _file(spooled, name, kind)


def _file(file: Any, name: str, kind: str | None) -> Recording:
    """Open a file with libsndfile.

    Args:
        file: path or seekable stream.
        kind: format according to `kind_of`.
    Raises:
        AudioError: it can't be read; the message says how to convert it.
    """
    if kind:
        raise AudioError(f"{name} is {kind}, which can't be read; {conversion(name)}")
    try:
        opened = ForwardFile(file)
    except soundfile.LibsndfileError as error:
        is_raw = Path(name).suffix.lower() in (".raw", ".pcm")
        way_out = "if these are raw samples: --stdin --rate HZ --format s16le < FILE" if is_raw else conversion(name)
        raise AudioError(f"{name} can't be read as audio: {reason(error)}; {way_out}") from error
    if not opened.frames:
        raise AudioError(f"{name} holds no audio that can be read")
    read = partial(opened.read, dtype="float32", always_2d=True)
    return Recording(name, opened.samplerate, opened.channels, read, opened.frames / max(1, opened.samplerate))


def reason(error: Exception) -> str:
    """libsndfile's message without the path, which the caller names."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def read_blocks(path: str | Path, sample_rate_hz: int, block_s: float = FILE_BLOCK_S) -> Iterator[Block]:
    """Read an audio file as mono blocks (time,) at `sample_rate_hz`, as they are needed.

    Raises:
        AudioError: at once: the file is missing, a folder, empty or not audio; while reading: it is damaged or holds
            NaN.
    """
    return open_recording(path).blocks(sample_rate_hz, block_s)


def read(path: str | Path, sample_rate_hz: int) -> Block:
    """Read a whole audio file as mono (time,) at `sample_rate_hz`.  Raises AudioError as `read_blocks` does."""
    return np.concatenate(list(read_blocks(path, sample_rate_hz)))


def audio_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files, and those in the folders and their subfolders with a suffix of an audio format, each once.

    In folders, names that begin with a dot are left out: `._x.wav` is what a Mac notes about `x.wav`.

    Raises:
        AudioError: there are none.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        inside = (p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.name[0] != "." and p.is_file())
        found |= dict.fromkeys(sorted(inside) if path.is_dir() else [path])
    if not found:
        raise AudioError(f"no audio files in {', '.join(map(str, paths))}")
    return list(found)


def level_dbfs(block: Block) -> float:
    """RMS level of (time,) in dB relative to full scale, at least `QUIETEST_DBFS`."""
    power = np.square(block, dtype=np.float64).mean() if len(block) else 0.0
    return float(10 * np.log10(max(power, 10 ** (QUIETEST_DBFS / 10))))


def pcm(waveform: Block) -> bytes:
    """(time,) -> 16-bit samples, little-endian; values beyond full scale are clipped."""
    return (np.clip(waveform, -1, 32767 / 32768) * 32768).round().astype("<i2").tobytes()
