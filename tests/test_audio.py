import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.audio import as_mono, read, read_blocks, resample_stream
from speech.errors import AudioError


def sine(rate: int, seconds: float = 1.0, pitch_hz: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch_hz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize(
    ("name", "rate", "subtype", "channels"),
    [
        ("a.wav", 16000, "PCM_16", 1),
        ("a.wav", 8000, "PCM_16", 1),
        ("a.wav", 44100, "PCM_24", 2),
        ("a.wav", 48000, "FLOAT", 1),
        ("a.wav", 22050, "ULAW", 1),
        ("a.flac", 96000, "PCM_24", 1),
        ("a.ogg", 44100, "VORBIS", 2),
        ("a.mp3", 44100, "MPEG_LAYER_III", 1),
    ],
)
def test_every_kind_of_file_is_the_same_sine(tmp_path: Path, name: str, rate: int, subtype: str, channels: int) -> None:
    soundfile.write(tmp_path / name, np.stack([sine(rate)] * channels, 1), rate, subtype=subtype)
    waveform = read(tmp_path / name, 16000)
    assert waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(16000, abs=2000 if name == "a.mp3" else 2)  # mp3 pads
    middle = waveform[4000:12000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * 16000 / len(middle) == pytest.approx(440, abs=3)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.06)


def test_streamed_resampling_has_no_seams() -> None:
    waveform = sine(44100, 2.0).astype(np.float32)
    whole = np.concatenate(list(resample_stream([waveform], 44100, 16000)))
    pieces = np.concatenate(list(resample_stream(np.array_split(waveform, 77), 44100, 16000)))
    np.testing.assert_allclose(pieces, whole, atol=1e-5)
    np.testing.assert_allclose(whole[500:-500], sine(16000, 2.0)[500 : len(whole) - 500], atol=1e-3)


def test_blocks_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for _ in range(20):
            file.write(np.zeros(16000 * 60, np.int16))
    tracemalloc.start()
    seconds = sum(len(block) for block in read_blocks(path, 8000)) / 8000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds == pytest.approx(1200, abs=0.1)
    assert peak < 2_000_000


def test_a_truncated_file_gives_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    soundfile.write(path, sine(16000), 16000)
    path.write_bytes(path.read_bytes()[:-8000])
    assert len(read(path, 16000)) == 12000


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "can't be read as audio"), (b"left right stop\n" * 50, "can't be read as audio")],
)
def test_what_is_no_audio_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "no.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message):
        read(path, 16000)


def test_a_wav_without_samples_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    with pytest.raises(AudioError, match="holds no audio"):
        read(tmp_path / "none.wav", 16000)


def test_nan_is_refused_with_the_file_named(tmp_path: Path) -> None:
    samples = sine(16000)
    samples[8000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav: .*NaN"):
        read(tmp_path / "nan.wav", 16000)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        read_blocks(tmp_path / "nothing.wav", 16000)
    with pytest.raises(AudioError, match="is a folder"):
        read_blocks(tmp_path, 16000)


def test_mono_of_integers_and_channels() -> None:
    np.testing.assert_allclose(as_mono(np.array([-32768, 16384], np.int16)), [-1, 0.5])
    np.testing.assert_allclose(as_mono(np.array([[1.0, 0.0], [0.5, -0.5]])), [0.5, 0])
    with pytest.raises(AudioError, match="uint8"):
        as_mono(np.zeros(4, np.uint8))
    with pytest.raises(AudioError, match="shape"):
        as_mono(np.zeros((2, 2, 2)))
