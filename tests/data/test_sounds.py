"""WAV files: every kind that is written comes back, and what is broken or mixed is named."""

import contextlib
import io
import struct
import wave
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from simulacra import open_data
from simulacra.data import tones
from simulacra.data.check import check
from simulacra.data.sounds import Broken, decoded
from simulacra.refusals import Refusal
from simulacra.runs.signals import one_after_another, panels, spectrogram, wav
from simulacra.spaces import Series

RATE = 8000


def noise(channels=1, length=1000, seed=0):
    draw = np.random.default_rng(seed)
    return draw.uniform(-0.9, 0.9, (channels, length)).astype(np.float32)


def by_scipy(x, kind):
    buffer = io.BytesIO()
    wavfile.write(buffer, RATE, np.ascontiguousarray(x.T).astype(kind))
    return buffer.getvalue()


def by_wave(frames, width, channels=1, rate=RATE):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)
    return buffer.getvalue()


def sounding(length=1000, seed=0, channels=1, rate=RATE):
    return by_wave(
        (noise(channels, length, seed).T * 32767).astype("<i2").tobytes(), 2, channels, rate
    )


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_reals_come_back(channels, kind):
    x = noise(channels)
    sound = decoded(by_scipy(x, kind))
    assert sound.rate == RATE
    np.testing.assert_allclose(sound.samples, x, atol=1e-7)


@pytest.mark.parametrize(("kind", "bits"), [("int16", 16), ("int32", 32)])
def test_whole_numbers_come_back(kind, bits):
    x = noise(2)
    scaled = np.round(x.astype(np.float64) * 2 ** (bits - 1))
    np.testing.assert_allclose(
        decoded(by_scipy(scaled, kind)).samples, scaled / 2 ** (bits - 1), atol=1e-7
    )


def test_eight_bits_are_unsigned():
    levels = np.arange(256, dtype=np.uint8)
    samples = decoded(by_wave(levels.tobytes(), 1)).samples[0]
    np.testing.assert_allclose(samples, (levels.astype(float) - 128) / 128)


def test_twenty_four_bits_keep_their_sign():
    values = np.array([0, 1, -1, 2**23 - 1, -(2**23), 12345, -54321], dtype="<i4")
    frames = values.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    samples = decoded(by_wave(frames, 3)).samples[0]
    np.testing.assert_allclose(samples, values / 2**23, atol=1e-7)


def test_the_extensible_format_and_other_chunks_are_read():
    plain = sounding(11)
    body = plain[plain.index(b"data") :]
    guid = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    extension = struct.pack("<HHI", 22, 16, 4) + guid
    form = struct.pack("<HHIIHH", 0xFFFE, 1, RATE, 2 * RATE, 2, 16) + extension
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    content = b"WAVE" + odd + b"fmt " + struct.pack("<I", len(form)) + form + body
    whole = b"RIFF" + struct.pack("<I", len(content)) + content
    np.testing.assert_array_equal(decoded(whole).samples, decoded(plain).samples)


def test_what_we_write_is_what_others_read():
    x = torch.from_numpy(noise(2))
    rate, told = wavfile.read(io.BytesIO(wav(x, RATE)))
    assert (rate, told.dtype, told.shape) == (RATE, np.int16, (1000, 2))
    np.testing.assert_allclose(told.T / 32767, x, atol=2e-5)
    np.testing.assert_allclose(decoded(wav(x, RATE)).samples, x, atol=1e-4)
    loud = decoded(wav(torch.tensor([[3.0, -3.0]]), RATE)).samples
    np.testing.assert_allclose(loud, [[1, -1]], atol=1e-4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"nothing", "is no WAV file"),
        (b"RIFF\0\0\0\0AVI LIST", "is no WAV file"),
        (b"RIFF\4\0\0\0WAVE", "has no samples"),
        (sounding()[:-100], "breaks off"),
        (sounding(0), "holds no samples"),
        (by_scipy(np.full((1, 9), np.nan), "float32"), "no finite numbers"),
        (
            by_wave(b"\0" * 80, 4).replace(struct.pack("<HH", 4, 32), struct.pack("<HH", 4, 20)),
            "20 bits",
        ),
        (
            sounding().replace(struct.pack("<HHI", 1, 1, RATE), struct.pack("<HHI", 1, 9, RATE)),
            "damaged",
        ),
    ],
)
def test_broken_files_say_why(content, words):
    with pytest.raises(Broken, match=words):
        decoded(content)


def test_random_damage_never_does_more_than_break():
    draw, whole = np.random.default_rng(0), bytearray(sounding(50))
    for _ in range(500):
        damaged = bytearray(whole)
        for place in draw.integers(0, len(whole), 3):
            damaged[place] = draw.integers(256)
        with contextlib.suppress(Broken):
            assert np.isfinite(decoded(bytes(damaged)).samples).all()


@pytest.fixture
def folder(tmp_path):
    for index in range(20):
        place = tmp_path / "sounds" / ("low" if index % 2 else "high") / f"{index}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(sounding(1000 + index, index))
    return tmp_path / "sounds"


def test_a_folder_is_cut_into_windows_that_stay_with_their_file(folder):
    data = open_data(folder, size=100)
    assert data.space == Series(1, 100, RATE)
    assert data.labels.names == ("high", "low")
    parts = (data.train, data.valid, data.test)
    assert sum(map(len, parts)) == 200
    assert [len(part) for part in parts] == [160, 20, 20]
    where = {}
    for index in range(20):
        own = decoded(sounding(1000 + index, index)).samples[0, :1000].reshape(10, 100)
        where |= {row.tobytes(): index for row in own}
    files = [{where[row.numpy().tobytes()] for row in part.all().x} for part in parts]
    assert [len(one) for one in files] == [16, 2, 2]
    assert not files[0] & files[1] | files[0] & files[2] | files[1] & files[2]
    assert open_data(folder, size=100).fingerprint == data.fingerprint


def test_one_long_sound_is_cut_along_the_time(tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(sounding(4050))
    data = open_data(path, size=100)
    assert [len(one) for one in (data.train, data.valid, data.test)] == [36, 2, 2]
    samples = decoded(path.read_bytes()).samples[0]
    last = {row.numpy().tobytes() for row in data.test.all().x}
    assert last == {samples[start : start + 100].tobytes() for start in (3800, 3900)}


def test_a_zip_is_read_as_a_folder(folder, tmp_path):
    packed = tmp_path / "sounds.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.rglob("*.wav")):
            archive.write(path, path.relative_to(folder))
    first, second = open_data(folder, size=100), open_data(packed, size=100)
    assert torch.equal(first.train.all().x, second.train.all().x)
    assert second.labels == first.labels


def test_channels_are_kept_or_averaged_where_they_differ(tmp_path):
    for index in range(2):
        (tmp_path / f"{index}.wav").write_bytes(sounding(400, index, channels=2))
    both = open_data(tmp_path, size=20)
    assert both.space == Series(2, 20, RATE)
    (tmp_path / "mono.wav").write_bytes(sounding(400, 7))
    mixed = open_data(tmp_path, size=20)
    assert mixed.space == Series(1, 20, RATE)
    assert any("averaged" in line for line in check(tmp_path, size=20).lines())
    first = decoded((tmp_path / "0.wav").read_bytes()).samples.mean(0)[:20]
    rows = mixed.everything().all().x
    assert any(np.allclose(row[0], first, atol=1e-6) for row in rows)


def test_mixed_rates_are_refused_with_the_files_named(folder):
    (folder / "low" / "fast.wav").write_bytes(sounding(rate=44_100))
    with pytest.raises(Refusal, match=r"fast\.wav.* 44100") as refusal:
        open_data(folder, size=100)
    assert refusal.value.code == "DATA-071"
    assert "0.wav" in refusal.value.reason
    lines = list(check(folder, size=100).lines())
    assert any("would be refused" in line and "fast.wav" in line for line in lines)


def test_broken_sounds_are_named_or_counted(folder):
    (folder / "low" / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(Refusal, match=r"bad\.wav.*is no WAV file") as refusal:
        open_data(folder, size=100)
    assert refusal.value.code == "DATA-010"
    assert len(open_data(folder, size=100, skip_bad=1).train) == 160
    assert any("bad.wav" in line for line in check(folder, size=100).lines())


def test_too_long_a_window_is_refused(folder):
    with pytest.raises(Refusal, match="1019 samples") as refusal:
        open_data(folder)
    assert refusal.value.code == "DATA-072"


def test_only_broken_sounds_are_refused(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(Refusal) as refusal:
        open_data(tmp_path, skip_bad=3)
    assert refusal.value.code == "DATA-070"


def test_tones_are_what_they_say():
    """The strongest frequency of a tone lies in its label's octave, and two readings are equal."""
    raw, again = tones.drawn(), tones.drawn()
    assert torch.equal(raw.rows, again.rows)
    assert raw.space == Series(1, 2048, 8000)
    assert raw.space.contains(raw.rows)
    assert 0.05 < float(raw.rows.std()) < 0.5
    assert float(raw.rows.abs().max()) < 1.5
    some = raw.rows[:200, 0].double()
    power = torch.fft.rfft(some * torch.hann_window(2048)).abs()
    loudest = power.argmax(1) * 8000 / 2048
    octave = torch.log2(loudest / 110)
    assert (octave.floor().clamp(0, 2) == raw.labels[:200]).double().mean() > 0.8
    assert open_data("tones", size=512).space == Series(1, 512, 8000)


def test_pictures_show_where_a_tone_sounds():
    time = torch.arange(4000) / 8000
    x = torch.sin(2 * torch.pi * 1000 * time)
    told = spectrogram(x)
    assert told.argmax(0).unique().tolist() == [32]
    sheet = panels(x.reshape(1, 1, -1).repeat(5, 1, 1), Series(1, 4000, 8000))
    assert sheet.width == 720
    assert panels(torch.zeros(1, 1, 3), Series(1, 3)).width > 0


def test_sounds_one_after_another_have_pauses():
    joined = one_after_another(torch.ones(3, 1, 10), 10)
    assert joined.shape == (1, 34)
    assert int((joined == 0).sum()) == 4
