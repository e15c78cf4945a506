import io
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.errors import AudioError, ConfigError
from speech.sound.containers import ENCODINGS, HEAD_BYTES, RawFormat
from speech.sound.files import (
    Recording,
    as_mono,
    audio_files,
    level_dbfs,
    open_recording,
    open_stream,
    pcm,
    read,
    read_blocks,
    resample,
    resample_stream,
)


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


MONO = sine(16000, 0.1)


@pytest.mark.parametrize(
    "samples",
    [
        MONO[None],
        MONO[:, None],
        np.stack([MONO, MONO]),
        np.stack([MONO, MONO], 1),
        np.stack([MONO * 8, *[MONO * 0] * 7], 1),
        np.stack([MONO] * 16, 1),
        np.stack([MONO] * 16),
        np.round(MONO * 32768).astype("<i2"),
        np.round(MONO * 32768).astype(">i2"),
        np.round(MONO * 2**31).astype(">i4")[None],
        MONO.astype(">f4"),
        MONO.tolist(),
        [MONO.tolist()],
    ],
    ids=lambda samples: f"{getattr(samples, 'dtype', 'list')}-{np.shape(samples)}",
)
def test_every_layout_and_type_is_the_same_mono(samples: object) -> None:
    mono = as_mono(samples)
    assert mono.dtype == np.float32
    assert mono.dtype.isnative
    np.testing.assert_allclose(mono, MONO, atol=3e-5)


def test_blocks_of_a_few_samples_keep_their_channels() -> None:
    stereo = np.array([[0.5, 0.25]])
    np.testing.assert_allclose(as_mono(stereo), [0.375])


@pytest.mark.parametrize("shape", [(1, 20), (9, 64), (100, 200), (0,), (4, 0), ()])
def test_a_layout_that_can_not_be_inferred_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match="shape"):
        as_mono(np.zeros(shape))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.round(MONO * 32768), "divide 16-bit values by 32768"),
        (np.array([1e300]), "infinite"),
        ([[1.0], [1.0, 2.0]], "numpy can't read"),
        (["left"], "expected float, int16 or int32"),
        (np.zeros(4, complex), "complex128"),
    ],
)
def test_what_is_no_audio_is_reported_in_one_line(samples: object, message: str) -> None:
    with pytest.raises(AudioError, match=message) as caught:
        as_mono(samples)
    assert "\n" not in str(caught.value)


def test_tensors_are_samples() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(as_mono(torch.tensor(MONO)[None]), MONO, atol=1e-6)
    with pytest.raises(AudioError, match="requires grad"):
        as_mono(torch.tensor(MONO, requires_grad=True))


@pytest.mark.parametrize("rate", ["16000", None, 999, 1e6, float("nan"), float("inf"), -16000, True])
def test_what_is_no_sample_rate_is_refused(rate: object) -> None:
    for pair in ((rate, 16000), (16000, rate)):
        with pytest.raises(AudioError, match="sample rate"):
            resample(np.zeros(100, np.float32), *pair)  # type: ignore[arg-type]


def test_a_rate_may_be_any_kind_of_number() -> None:
    assert len(resample(np.zeros(441, np.float32), np.float64(44100.0), np.int32(16000))) == 160  # type: ignore[arg-type]


CONTAINERS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"),
    ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"), ("FLAC", "PCM_16"), ("VOC", "PCM_16"), ("NIST", "PCM_16"), ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"),
]  # fmt: skip
AS_THEY_COME = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24"), ("WAV", "ULAW")]
"""These are read while they come; the others to their end first."""


def encoded(container: str, subtype: str, seconds: float = 30.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sine(16000, seconds), 16000, format=container, subtype=subtype)
    return file.getvalue()


class Pipe:
    """Bytes that come at most a few at a time, and how many were taken."""

    def __init__(self, data: bytes, n_bytes: int = 1000) -> None:
        self._file, self._most, self.n_taken = io.BytesIO(data), n_bytes, 0

    def read(self, n_bytes: int) -> bytes:
        data = self._file.read(min(n_bytes, self._most))
        self.n_taken += len(data)
        return data


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
def test_a_piped_container_is_what_the_file_is(tmp_path: Path, container: str, subtype: str) -> None:
    data = encoded(container, subtype)
    (tmp_path / "file").write_bytes(data)
    reported: list[str] = []
    recording = open_stream(Pipe(data).read, "pipe", RawFormat(), tell=reported.append)
    piped = np.concatenate(list(recording.blocks(16000)))
    np.testing.assert_allclose(piped, read(tmp_path / "file", 16000), atol=1e-6)
    assert len(reported) == ((container, subtype) not in AS_THEY_COME)


@pytest.mark.parametrize(("container", "subtype"), AS_THEY_COME)
def test_a_piped_wav_is_not_kept_waiting(container: str, subtype: str) -> None:
    data = encoded(container, subtype)
    pipe = Pipe(data)
    blocks = open_stream(pipe.read, "pipe", RawFormat()).blocks(16000)
    heard_s = 0.0
    while heard_s < 3:
        heard_s += len(next(blocks)) / 16000
    assert pipe.n_taken < len(data) * heard_s / 30 + 3 * HEAD_BYTES


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF024, 0x80000000, 0])  # of ffmpeg, sox, arecord, GStreamer
def test_a_wav_of_unknown_length_has_no_end(size: int) -> None:
    data = bytearray(encoded("WAV", "PCM_16", 5))
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    assert sum(map(len, open_stream(Pipe(bytes(data)).read, "pipe").blocks(16000))) == 5 * 16000


def test_what_surrounds_the_samples_of_a_wav_is_not_heard() -> None:
    data = bytearray(encoded("WAV", "PCM_16", 1))
    data[36:36] = b"LIST" + (3).to_bytes(4, "little") + b"abc\0"  # a chunk of odd length is padded
    data += b"LIST" + (1000).to_bytes(4, "little") + bytes([77] * 1000)
    (samples,) = [np.concatenate(list(open_stream(Pipe(bytes(data)).read, "pipe").blocks(16000)))]
    np.testing.assert_allclose(samples, sine(16000, 1), atol=1e-3)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_raw_samples_of_every_encoding(encoding: str, channels: int) -> None:
    subtype, endian, _ = ENCODINGS[encoding]
    file, waveform = io.BytesIO(), sine(8000, 2.0)
    soundfile.write(file, np.stack([waveform] * channels, 1), 8000, subtype, endian, "RAW")
    stream = open_stream(Pipe(file.getvalue(), 333).read, "pipe", RawFormat(encoding, 8000, channels))
    np.testing.assert_allclose(np.concatenate(list(stream.blocks(8000))), waveform, atol=0.02)


@pytest.mark.parametrize("lost", [0, 1])
def test_half_a_sample_waits_for_its_other_half(lost: int) -> None:
    """A stream of 4096 k + 1 bytes, in pieces of an odd length; what is left of a sample at the end is dropped."""
    samples = np.round(sine(16000) * 32767).astype("<i2")[: 4096 + 1]
    data = samples.tobytes()
    stream = open_stream(Pipe(data[: len(data) - lost], 33).read, "pipe", RawFormat())
    heard = np.concatenate(list(stream.blocks(16000)))
    np.testing.assert_array_equal(heard, samples[: len(samples) - lost] / np.float32(32768))


def test_raw_samples_are_handed_on_as_they_come() -> None:
    pipe = Pipe(bytes(16000), 2)
    blocks = open_stream(pipe.read, "pipe", RawFormat()).blocks(16000)
    n_samples = sum(len(next(blocks)) for _ in range(5))
    assert pipe.n_taken == 2 * n_samples
    assert n_samples <= 5 * 0.02 * 16000


def test_raw_samples_that_begin_like_a_container_can_be_called_raw() -> None:
    data = b"RIFF" + bytes(4000)
    stream = open_stream(Pipe(data).read, "pipe", RawFormat(), sniff=False)
    assert sum(map(len, stream.blocks(16000))) == len(data) // 2
    with pytest.raises(AudioError, match="pipe can't be read as audio"):
        open_stream(Pipe(data).read, "pipe", RawFormat())


def test_quiet_raw_samples_are_not_taken_for_a_container() -> None:
    """MPEG audio has no mark but eleven bits that are set, as those of small negative samples are."""
    rng = np.random.default_rng(0)
    for deviation in (1, 3, 30, 1000):
        for first in range(0xFFE0, 0x10000):
            samples = np.round(rng.normal(0, deviation, 2500)).astype("<i2")
            samples[0] = np.uint16(first << 8 & 0xFF00 | first >> 8).astype(np.int16)
            stream = open_stream(Pipe(samples.tobytes(), 5000).read, "pipe", RawFormat())
            assert stream.seconds is None
            assert sum(map(len, stream.blocks(16000))) == len(samples)


@pytest.mark.parametrize("settings", [{"encoding": "s17le"}, {"channels": 0}, {"channels": 65}])
def test_wrong_settings_of_raw_samples_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"s16le|from 1 to 64"):
        RawFormat(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [encoded("WAV", "PCM_16", 1), encoded("FLAC", "PCM_16", 1), bytes(32000)])
@pytest.mark.parametrize("at", [0, 10, 8000])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_what_stops_a_stream_is_not_taken_for_its_end(data: bytes, at: int, error: BaseException) -> None:
    """libsndfile reads through a callback in C, which swallows exceptions."""
    pipe = Pipe(data, 10)

    def read_some(n_bytes: int) -> bytes:
        if pipe.n_taken >= at:
            raise error
        return pipe.read(n_bytes)

    with pytest.raises((KeyboardInterrupt, AudioError, OSError)) as caught:
        list(open_stream(read_some, "pipe", RawFormat()).blocks(16000))
    assert isinstance(caught.value, KeyboardInterrupt) == isinstance(error, KeyboardInterrupt)
    if not isinstance(error, KeyboardInterrupt):
        assert "Input/output error" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    data, path = encoded("WAV", "PCM_16", 2), tmp_path / "pipe.wav"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(data))
    writer.start()
    recording = open_recording(path)
    assert recording.sample_rate_hz == 16000
    assert sum(map(len, recording.blocks(16000))) == 32000
    writer.join(10)


@pytest.mark.parametrize("name", ["samples.raw", "samples.pcm", "SAMPLES.RAW"])
def test_raw_files_say_how_they_can_be_heard(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(sine(16000).astype("<f4").tobytes())
    with pytest.raises(AudioError, match="--stdin --rate HZ"):
        read(tmp_path / name, 16000)


def test_a_container_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "wav.raw").write_bytes(encoded("WAV", "PCM_16", 1))
    assert len(read(tmp_path / "wav.raw", 16000)) == 16000


@pytest.mark.skipif(os.name != "posix", reason="names are bytes")
def test_a_name_need_not_be_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/gru\xdfe.wav"
    with open(path, "wb") as file:
        file.write(encoded("WAV", "PCM_16", 1))
    assert len(read(os.fsdecode(path), 16000)) == 16000


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "MP4 or M4A"),
        (b"\x1aE\xdf\xa3\x01\0\0\0webm", "WebM"),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "WMA"),
        (b"#!AMR\n", "AMR"),
        (b"ADIF", "AAC"),
    ],
)
@pytest.mark.parametrize("piped", [False, True])
def test_formats_that_can_not_be_read_are_named_with_the_way_out(
    tmp_path: Path, head: bytes, kind: str, piped: bool
) -> None:
    path = tmp_path / "a b"
    path.write_bytes(head + bytes(5000))
    opened: Callable[[], Recording] = lambda: open_recording(path)  # noqa: E731
    if piped:
        opened = lambda: open_stream(path.open("rb").read, str(path), RawFormat())  # noqa: E731
    with pytest.raises(AudioError, match=rf"{kind}.*; convert it: ffmpeg -i '.*a b' .*\.wav$"):
        opened()


def test_a_file_with_a_hole_is_reported_after_what_was_read(tmp_path: Path) -> None:
    data = bytearray(encoded("FLAC", "PCM_16", 10))
    data[len(data) // 2 : len(data) // 2 + 20000] = bytes(20000)
    (tmp_path / "hole").write_bytes(data)
    read_so_far: list[np.ndarray] = []
    with pytest.raises(AudioError, match=r"hole is damaged"):
        read_so_far.extend(read_blocks(tmp_path / "hole", 16000))
    assert sum(map(len, read_so_far)) > 3 * 16000


@pytest.mark.parametrize(("place", "value", "message"), [(24, 0, "sample rate of 0 Hz"), (22, 1000, "1000 channels")])
def test_a_header_that_can_not_be_is_refused_with_the_file_named(
    tmp_path: Path, place: int, value: int, message: str
) -> None:
    data = bytearray(encoded("WAV", "PCM_16", 1))
    data[place : place + 2] = value.to_bytes(2, "little")
    data[32:34] = (2 * int.from_bytes(data[22:24], "little") % 65536).to_bytes(2, "little")
    (tmp_path / "odd.wav").write_bytes(data)
    with pytest.raises(AudioError, match=rf"odd\.wav.*({message}|can't be read as audio)"):
        read(tmp_path / "odd.wav", 16000)


def test_the_audio_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.WAV", "a.flac", "in/c.Opus", "._b.WAV", "in/._c.wav", "notes.txt", "word.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d.wav").mkdir()
    named = tmp_path / "notes.txt"
    names = [str(path.relative_to(tmp_path)) for path in audio_files([str(tmp_path), named, tmp_path / "a.flac"])]
    assert names == ["a.flac", "b.WAV", "in/c.Opus", "notes.txt"], "what is named itself is taken as it is"
    with pytest.raises(AudioError, match="no audio files in"):
        audio_files([tmp_path / "d.wav"])


def test_levels_and_16_bit_samples() -> None:
    assert level_dbfs(sine(16000)) == pytest.approx(-9.03, abs=0.01)
    assert level_dbfs(np.zeros(0)) == level_dbfs(np.zeros(9)) == -120
    assert np.frombuffer(pcm(np.array([0, 0.5, -1, 1, 2])), "<i2").tolist() == [0, 16384, -32768, 32767, 32767]
