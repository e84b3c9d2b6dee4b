"""Signals to listen to and to look at: WAV files, waveforms and spectrograms."""

from __future__ import annotations

import io
import math
import wave

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from simulacra.runs.heat import heat
from simulacra.spaces import Series

WINDOW, RANGE = 256, 70.0
"""Samples of a spectrogram's window at most, and the decibels below the loudest that it shows."""
PAUSE = 0.2
"""Seconds between sounds in one file."""
COLUMNS = 4
LINE, AXIS, GAP = (11, 110, 79), (214, 219, 226), 6


def wav(signal: Tensor, rate: int) -> bytes:
    """A signal (channels, length) as a WAV file of 16 bits; beyond full scale it is cut."""
    levels = (signal.detach().cpu().double().clamp(-1, 1) * 32767).round().short()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(signal))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(levels.T.contiguous().numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def one_after_another(x: Tensor, rate: int) -> Tensor:
    """Signals (count, channels, length) as one, with silence between them."""
    silence = x.new_zeros((x.shape[1], round(PAUSE * rate)))
    parts = [part for one in x for part in (one, silence)]
    return torch.cat(parts[:-1], dim=1)


def spectrogram(signal: Tensor) -> Tensor:
    """Decibels of a signal (length,) below its loudest, (frequencies, times), the lowest first."""
    size = min(WINDOW, len(signal))
    window = torch.hann_window(size, dtype=torch.float64)
    told = torch.stft(
        signal.double(), size, max(1, size // 4), window=window, center=False, return_complex=True
    )
    power = told.abs().square()
    return 10 * torch.log10(power / power.max().clamp(min=1e-20) + 1e-12)


def panels(x: Tensor, space: Series, *, columns: int = COLUMNS, pixels: int = 720) -> Image.Image:
    """The waveform of each signal's first channel above its spectrogram, side by side."""
    columns = max(1, min(columns, len(x)))
    rows = math.ceil(len(x) / columns)
    width, high = pixels // columns - GAP, 60
    sheet = Image.new("RGB", (columns * (width + GAP), rows * (2 * high + 2 * GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, signal in enumerate(x[:, 0].detach().cpu()):
        left, top = (index % columns) * (width + GAP), (index // columns) * 2 * (high + GAP)
        _draw_wave(pen, signal, (left, top, width, high))
        told = heat(spectrogram(signal).flip(0), -RANGE, 0.0)
        tile = Image.fromarray(np.ascontiguousarray(told.numpy()))
        sheet.paste(tile.resize((width, high), Image.Resampling.BILINEAR), (left, top + high))
    return sheet


def _draw_wave(pen: ImageDraw.ImageDraw, signal: Tensor, box: tuple[int, int, int, int]) -> None:
    """The lowest and highest sample of each column of pixels; the scale is the signal's own."""
    left, top, width, height = box
    middle, most = top + height / 2, max(float(signal.abs().max()), 1e-12)
    pen.line((left, middle, left + width - 1, middle), fill=AXIS)
    parts = np.array_split(signal.numpy(), min(width, len(signal)))
    for index, part in enumerate(parts):
        low, high = (middle - 0.48 * height * float(end) / most for end in (part.min(), part.max()))
        across = left + index * width / len(parts)
        pen.line((across, high, across, low), fill=LINE)
