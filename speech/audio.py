"""Any file that libsndfile reads -> mono float32 blocks; streaming resampler."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speech.errors import AudioError

Block = NDArray[np.float32]


def as_mono(samples: NDArray[Any]) -> Block:
    """Samples -> (time,) float32 in -1..1; channels are averaged.

    Args:
        samples: (time,) or (time, channels), float in -1..1 or signed 16/32-bit integers.
    Raises:
        AudioError: for another shape or type, no samples, NaN or infinity.
    """
    if samples.ndim not in (1, 2) or not samples.size:
        raise AudioError(f"expected samples of shape (time,) or (time, channels), got {samples.shape}")
    if samples.dtype in (np.int16, np.int32):
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    elif not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"expected float, int16 or int32 samples, got {samples.dtype}")
    mono = samples.astype(np.float32) if samples.ndim == 1 else samples.mean(1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise AudioError("the audio holds NaN or infinite samples")
    return mono


def check_rate(sample_rate_hz: int) -> int:
    """The rate itself; AudioError when no sound device or file has such a one."""
    if not 1000 <= sample_rate_hz <= 768_000:
        raise AudioError(f"a sample rate of {sample_rate_hz} Hz is outside 1000..768000")
    return sample_rate_hz


def resample(waveform: Block, from_hz: int, to_hz: int) -> Block:
    """A whole waveform (time,) at another rate."""
    if check_rate(from_hz) == to_hz:
        return waveform
    return soxr.resample(waveform, from_hz, to_hz).astype(np.float32)


def resample_stream(blocks: Iterable[Block], from_hz: int, to_hz: int) -> Iterator[Block]:
    """Blocks at one rate -> blocks at another, without seams; memory does not grow."""
    if check_rate(from_hz) == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


class ForwardFile(soundfile.SoundFile):
    """A sound file that is only read onwards.

    soundfile seeks to where it already is after each read of a seekable file; in an MP3 that lands beside the
    place and tears the signal at every block.
    """

    def seekable(self) -> bool:
        return False


def read_blocks(path: str | Path, sample_rate_hz: int, block_s: float = 0.1) -> Iterator[Block]:
    """An audio file as mono blocks at `sample_rate_hz`, read as they are asked for.

    Raises:
        AudioError: at once when the file is missing, a folder, empty or no audio; while reading when the
            stream is damaged or holds NaN.
    """
    path = Path(path)
    file = _open(path)
    if not file.frames:
        file.close()
        raise AudioError(f"{path} holds no audio")
    return resample_stream(_decode(file, path, block_s), check_rate(file.samplerate), sample_rate_hz)


def sample_rate_of(path: str | Path) -> int:
    """The rate that a file was recorded at, in Hz.  Raises AudioError as `read_blocks` does at once."""
    with _open(Path(path)) as file:
        return int(file.samplerate)


def _open(path: Path) -> ForwardFile:
    try:
        path.open("rb").close()
        return ForwardFile(path)
    except FileNotFoundError:
        raise AudioError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise AudioError(f"{path} is a folder; give audio files") from None
    except OSError as error:
        raise AudioError(f"{path} can't be opened: {error.strerror}") from error
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path} can't be read as audio: {reason(error)}") from error


def _decode(file: ForwardFile, path: Path, block_s: float) -> Iterator[Block]:
    size = max(1, round(block_s * file.samplerate))
    with file:
        try:
            while len(samples := file.read(size, dtype="float32", always_2d=True)):
                yield as_mono(samples)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{path} is damaged: {reason(error)}") from error
        except AudioError as error:
            raise AudioError(f"{path}: {error}") from error


def reason(error: Exception) -> str:
    """libsndfile's own words, without the path that the caller already names."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def read(path: str | Path, sample_rate_hz: int) -> Block:
    """A whole audio file, mono, at `sample_rate_hz`: (time,).  Raises AudioError as `read_blocks` does."""
    return np.concatenate(list(read_blocks(path, sample_rate_hz)))
