"""The ruler's own networks: small, trained in seconds, the same for the same seed."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.augmentation import translated
from simulacra.layers.front_door import centred
from simulacra.layers.layout import channels_last
from simulacra.spaces import Column, Images, Labels, Space, Table, Tokens

DIMENSION = 64
WIDTH = 32
TRUNK = 16  # pixels a side at most, once the stem has halved the image
LARGEST_SHIFT = 0.08  # of a side: two pixels of 28
BATCH = 128


def flat(x: Tensor, space: Space) -> Tensor:
    """Elements as rows of float32: integers scaled to [-1, 1], categories and tokens one-hot."""
    if isinstance(space, Images):
        return centred(x, space.levels).flatten(1)
    if isinstance(space, Tokens):
        return functional.one_hot(x.long(), space.vocabulary).float().flatten(1)
    if not isinstance(space, Table):
        return x.float().flatten(1)
    parts = [_column(x[:, index], column) for index, column in enumerate(space.columns)]
    return torch.cat(parts, dim=1)


def _column(x: Tensor, column: Column) -> Tensor:
    """A column as features: one-hot, or the number; where it may be missing, 0 and whether it is."""
    if column.kind == "category":
        return functional.one_hot(x.long(), len(column.categories)).float()
    numbers = x.float().unsqueeze(1)
    if not column.missing:
        return numbers
    return torch.cat([numbers.nan_to_num(), numbers.isnan().float()], dim=1)


def as_bytes(x: Tensor, space: Images) -> Tensor:
    """Images of 1 or 3 channels as bytes of three, (n, 3, H, W): as a file of 8 bits would hold them."""
    scaled = x if space.levels == 256 else (x.double() * 255 / (space.levels - 1)).round()
    return scaled.to(torch.uint8).expand(-1, 3, -1, -1)


class Standardise(nn.Module):
    """Flat rows with mean 0 and variance 1 on the training data; wide ones projected at random.

    The projection has orthonormal columns, so that it keeps distances up to the share of the
    dimensions that it keeps.
    """

    mean: Tensor
    scale: Tensor
    projection: Tensor | None

    def __init__(self, space: Space, dimension: int | None = None) -> None:
        super().__init__()
        self.space = space
        width = flat(space.random(1, torch.Generator().manual_seed(0)), space).shape[1]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        narrower = dimension is not None and dimension < width
        chosen = torch.linalg.qr(torch.randn(width, dimension or 1)).Q if narrower else None
        self.register_buffer("projection", chosen)
        self.dimension = dimension if narrower and dimension is not None else width

    def fit(self, x: Tensor) -> None:
        """Take means and standard deviations from the training data."""
        rows = flat(x, self.space).double()
        self.mean.copy_(rows.mean(0))
        spread = rows.std(0) if len(rows) > 1 else torch.zeros(rows.shape[1])
        # A column that never changes has no scale of its own.
        self.scale.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        rows = (flat(x, self.space) - self.mean) / self.scale
        return rows if self.projection is None else rows @ self.projection


def perceptron_body(space: Space) -> nn.Module:
    """Standardised rows, then two layers; for what is no image."""
    start = Standardise(space)
    return nn.Sequential(
        start,
        nn.Linear(start.dimension, 2 * DIMENSION),
        nn.BatchNorm1d(2 * DIMENSION),
        nn.SiLU(),
        nn.Linear(2 * DIMENSION, DIMENSION),
        nn.BatchNorm1d(DIMENSION),
        nn.SiLU(),
    )


class ConvolutionalBody(nn.Module):
    """Images of integers to 64 features: halve to at most 16 pixels a side, two stages, one layer."""

    def __init__(self, space: Images) -> None:
        super().__init__()
        self.space = space
        parts: list[nn.Module] = []
        channels, height, width = space.shape
        while max(height, width) > TRUNK:
            parts += _convolution(channels, WIDTH, stride=2)
            channels, height, width = WIDTH, math.ceil(height / 2), math.ceil(width / 2)
        parts += _convolution(channels, WIDTH if channels != WIDTH else 2 * WIDTH)
        channels = WIDTH if channels != WIDTH else 2 * WIDTH
        parts += [nn.MaxPool2d(2, ceil_mode=True), *_convolution(channels, 2 * WIDTH)]
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        parts += [nn.Flatten(), nn.Linear(2 * WIDTH * height * width, DIMENSION, bias=False)]
        # SiLU, not ReLU: a feature that is always nought would make covariances singular.
        parts += [nn.BatchNorm1d(DIMENSION), nn.SiLU()]
        self.layers = nn.Sequential(*parts)
        channels_last(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.features_of(centred(x, self.space.levels))

    def features_of(self, pixels: Tensor) -> Tensor:
        """Features of pixels in [-1, 1]."""
        out: Tensor = self.layers(pixels.to(memory_format=torch.channels_last))
        return out


def _convolution(channels: int, width: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.SiLU()]


class Classifier(nn.Module):
    """A body of features and one linear layer to the classes."""

    def __init__(self, space: Space, classes: int) -> None:
        super().__init__()
        self.body: nn.Module = (
            ConvolutionalBody(space) if isinstance(space, Images) else perceptron_body(space)
        )
        self.head = nn.Linear(DIMENSION, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


class ChannelClassifier(nn.Module):
    """One classifier for single channels looks at each channel of an image by itself.

    Features are those of all channels side by side. A class is a combination of the channels' (see
    ``Labels``), and log p of it the sum of theirs.
    """

    def __init__(self, space: Images, labels: Labels) -> None:
        super().__init__()
        self.channels, self.labels = space.channels, labels
        self.single = Classifier(replace(space, channels=1), labels.channel_classes)
        self.dimension = space.channels * DIMENSION

    def body(self, x: Tensor) -> Tensor:
        """Features, shape (n, channels * 64)."""
        each: Tensor = self.single.body(x.flatten(0, 1)[:, None])
        return each.reshape(len(x), -1)

    def forward(self, x: Tensor) -> Tensor:
        each = torch.log_softmax(self.single(x.flatten(0, 1)[:, None]), dim=1)
        joint, *others = each.reshape(len(x), self.channels, -1).unbind(1)
        for one in others:
            joint = (joint[:, :, None] + one[:, None]).flatten(1)
        return joint

    def learn(self, x: Tensor, labels: Tensor, seed: int) -> None:
        """``train_classifier`` on single channels, as many examples as suit the number of images."""
        apart = self.labels.separated(labels, self.channels).flatten()
        examples = examples_for(len(x))
        train_classifier(self.single, x.flatten(0, 1)[:, None], apart, seed, examples=examples)
        self.eval()


def examples_for(count: int) -> int:
    """How many examples a classifier sees: four passes, at least 40,000 and at most 300,000."""
    return min(max(40_000, 4 * count), 300_000)


def train_classifier(
    net: Classifier, x: Tensor, labels: Tensor, seed: int, *, examples: int | None = None
) -> None:
    """AdamW, one cycle of the learning rate, smoothed labels; images are shifted by a few pixels.

    ``examples``: how many are seen; without it as many as suit the data.
    """
    net.train()
    if not isinstance(net.body, ConvolutionalBody):
        next(part for part in net.modules() if isinstance(part, Standardise)).fit(x)
    stream = torch.Generator().manual_seed(seed)
    size = min(BATCH, len(x))
    steps = max(1, (examples or examples_for(len(x))) // size)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps + 1)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=stream)
        which, order = order[:size], order[size:]
        logits = net.head(_shifted_features(net.body, x[which], stream))
        loss = functional.cross_entropy(logits, labels[which], label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        cycle.step()
    net.eval()


def _shifted_features(body: nn.Module, x: Tensor, stream: torch.Generator) -> Tensor:
    if not isinstance(body, ConvolutionalBody):
        out: Tensor = body(x)
        return out
    pixels = centred(x, body.space.levels)
    share = max(LARGEST_SHIFT, 1 / max(pixels.shape[2:]) if min(pixels.shape[2:]) >= 8 else 0.0)
    uniform = torch.rand((len(x), 2), generator=stream)
    return body.features_of(translated(pixels, uniform, share))


def calibrate(body: ConvolutionalBody, x: Tensor) -> None:
    """Set an untrained body's normalisations to the statistics of ``x``, and leave its weights."""
    norms = [part for part in body.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    for one in norms:
        one.momentum = None  # a plain average over the batches that follow
    body.train()
    with torch.no_grad():
        body(x)
    body.eval()
