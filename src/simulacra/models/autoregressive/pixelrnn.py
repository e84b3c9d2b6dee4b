"""PixelRNN: an image is written pixel by pixel by LSTMs that run over its rows or its diagonals.

    p(x) = prod_i p(x_i | x_1, …, x_{i-1})                        (van den Oord et al. 2016, eq. 1)

in raster order, R before G before B (eq. 2), each factor a softmax over the levels. A 7x7 convolution
under mask A enters; every layer is an LSTM over whole lines (eq. 3) and a residual connection (fig. 4),
x + W h with W: h -> 2h by 1x1; two 1x1 layers leave (table 1).

``row``: from the top down, each state reading three of the row above (sec. 3.1). What a pixel sees is a
triangle above it. ``diagonal``: along the diagonals from both upper corners (sec. 3.2). A pixel sees all
that were before it.

Sampling keeps every layer's states of the row above and of the row so far.

Changed: a bias for each position after the first layer, one-hot inputs for few levels; the first layer's
right-to-left scan is also shown its own pixel, as the last one of every row would be lost otherwise
(``DiagonalLSTM``); AdamW with a cosine and averaged weights instead of RMSProp, dropout for few data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Stage
from simulacra.layers.dropout import Dropout
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels
from simulacra.layers.layout import channels_last
from simulacra.layers.masked import MaskedConv2d
from simulacra.layers.raster import drawn_in_order, entering, entering_features
from simulacra.layers.spatial_lstm import DiagonalLSTM, DiagonalStates, RowLSTM, RowStates
from simulacra.optimisation import Optimiser
from simulacra.probability.distributions import categorical_log_prob
from simulacra.probability.noise import Noise, row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space

AT_ONCE = 64
"""So many images are scored together: more of them fall out of the cache and are not faster."""

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Config:
    """``channels`` is h, the states of an LSTM; between layers 2h features are passed on.

    ``first`` and ``kernel`` are the widths, odd, of the first convolution and of a Row LSTM's kernels
    in pixels; ``head`` is the width of the two 1x1 layers before the softmax.
    """

    scan: Literal["row", "diagonal"] = "diagonal"
    channels: int = 16
    layers: int = 7
    first: int = 7
    kernel: int = 3
    head: int = 32
    dropout: float = 0.0
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise Refusal(
                "CFG-111",
                f"layers is {self.layers}; without one a pixel sees its first convolution only",
                way_out="give layers 1 or more, such as 7",
            )
        for name, width in (("first", self.first), ("kernel", self.kernel)):
            if width < 1 or width % 2 == 0:
                raise Refusal(
                    "CFG-110",
                    f"{name} is {width}; a kernel needs a pixel in its middle",
                    way_out=f"give {name} an odd number, such as 3",
                )


class _Block(nn.Module):
    """A recurrent layer with its residual connection (fig. 4): x + up(lstm(x)), (2h, H W, batch)."""

    def __init__(
        self, config: Config, channels: int, space: Images, raw: int, classes: int
    ) -> None:
        super().__init__()
        sizes, groups = (2 * channels, channels, space.height, space.width), space.channels
        self.lstm: RowLSTM | DiagonalLSTM = (
            RowLSTM(*sizes, kernel=config.kernel, groups=groups)
            if config.scan == "row"
            else DiagonalLSTM(*sizes, raw=raw, groups=groups)
        )
        self.up = MaskedConv2d(channels, 2 * channels, groups=groups)
        self.told = nn.Linear(classes, self.lstm.outputs, bias=False) if classes else None
        self.dropout = Dropout(config.dropout)

    def said(self, classes: Tensor | None) -> Tensor | None:
        """What the class adds to all gates, (batch, gates)."""
        told: Tensor | None = None if self.told is None else self.told(classes)
        return told

    def forward(self, x: Tensor, raw: Tensor, classes: Tensor | None) -> Tensor:
        told = self.said(classes)
        lstm = self.lstm
        hidden: Tensor = lstm(x, told, raw) if isinstance(lstm, DiagonalLSTM) else lstm(x, told)
        if self.training and self.dropout.rate:
            # Dropout wants images first, so that each process draws for the images it has.
            hidden = self.dropout(hidden.movedim(2, 0).contiguous()).movedim(0, 2)
        weight = self.up.masked_weight()[:, :, 0, 0]
        up = torch.addmm(self.up.bias.unsqueeze(1), weight, hidden.flatten(1))
        out: Tensor = x + up.view(x.shape)
        return out


class _Network(nn.Module):
    """(batch, inputs, H, W) to (batch, 2h, H, W)."""

    def __init__(self, config: Config, channels: int, space: Images, classes: int) -> None:
        super().__init__()
        inputs, reach = entering_features(space), config.first // 2
        self.grid = (space.height, space.width)
        self.enter = MaskedConv2d(
            inputs, 2 * channels, above=reach, reach=reach, groups=space.channels, kind="A"
        )
        self.place = nn.Parameter(torch.zeros(2 * channels, space.height, space.width))
        self.blocks = nn.ModuleList(
            _Block(config, channels, space, 0 if index else inputs, classes)
            for index in range(config.layers)
        )

    def forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        raw, x = _images_last(x), self.enter(x)
        x = _images_last(x + self.place.to(x.dtype))
        for block in self.blocks:
            x = block(x, raw, classes)
        whole: Tensor = x.permute(2, 1, 0).contiguous().mT.unflatten(2, self.grid)
        return whole

    def walk(self, rows: int, classes: Tensor | None) -> _Walk:
        return _Walk(self, rows, classes)


def _images_last(x: Tensor) -> Tensor:
    """(batch, features, H, W) to (features, H W, batch), as the scans want it."""
    return x.flatten(2).permute(1, 2, 0).contiguous()


class _Walk:
    """``_Network`` over images that are being drawn: a row is begun, then a column at a time."""

    def __init__(self, network: _Network, rows: int, classes: Tensor | None) -> None:
        blocks = [block for block in network.blocks if isinstance(block, _Block)]
        self.place = network.place.detach().permute(1, 2, 0)
        self.enter = network.enter.cursor(rows, network.grid[1])
        self.ups = [block.up.cursor(rows, 1) for block in blocks]
        told = [block.said(classes) for block in blocks]
        row = [block.lstm for block in blocks if isinstance(block.lstm, RowLSTM)]
        diagonal = [block.lstm for block in blocks if isinstance(block.lstm, DiagonalLSTM)]
        self.states = RowStates(row, rows, told) if row else DiagonalStates(diagonal, rows, told)

    def next_row(self, row: int, before: Tensor | None) -> None:
        self.here = self.place[row]
        self.enter.next_row()
        self.states.next_row(before)

    def put(self, column: int, x: Tensor) -> None:
        self.enter.put(column, x)

    def at(self, column: int) -> Tensor:
        x = self.enter.at(column) + self.here[column]
        for index, up in enumerate(self.ups):
            x = x + up.point(self.states.at(index, column, x))
        return x


class PixelRNN(nn.Module, Sampler, Density, Factorised, Completer):
    """LSTMs over the lines of an image and a softmax over the levels of every pixel."""

    spaces: ClassVar = (Images,)
    conditions: ClassVar = (Labels,)

    def __init__(
        self, space: Images, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        groups, classes = space.channels, condition.count if condition else 0
        channels, head = (-(-width // groups) * groups for width in (config.channels, config.head))
        self.network = _Network(config, channels, space, classes)
        self.before_last = MaskedConv2d(2 * channels, head, groups=groups)
        self.last = MaskedConv2d(head, groups * space.levels, groups=groups)
        self.dropout = Dropout(config.dropout)
        channels_last(self)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Seven layers of 16 as in the paper, wider for colour; few with dropout for small data."""
        assert isinstance(space, Images)
        if num_examples < 10_000 or space.height * space.width <= 144:
            return Config(
                channels=32,
                layers=3,
                first=5,
                head=64,
                dropout=0.25,
                batch_size=32,
                learning_rate=4e-3,
            )
        wide = space.channels > 1
        return Config(
            channels=48 if wide else 16,
            head=192 if wide else 64,
            batch_size=32,
            learning_rate=4e-3,
        )

    @classmethod
    def toy(cls) -> PixelRNN:
        return cls(
            Images(1, 3, 3, levels=2),
            Config(channels=6, layers=2, first=3, head=8, batch_size=32, learning_rate=0.02),
        )

    @property
    def kind(self) -> Kind:
        return Kind.EXACT

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.last.weight.device)
        return self._drawn(noise, condition, None, None)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.log_factors(x, condition=condition).flatten(1).sum(1)

    def log_factors(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        factors = []
        for index, part in enumerate(as_device(x, self).split(AT_ONCE)):
            rows = slice(index * AT_ONCE, (index + 1) * AT_ONCE)
            logits = self.logits(part, None if condition is None else condition[rows])
            factors.append(categorical_log_prob(part, logits.movedim(1, -1)))
        return torch.cat(factors)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Unknown pixels are drawn in raster order, each given what stands before it, known or drawn.

        Known pixels further on have no say in it: exact for a known upper part, and a draft otherwise.
        """
        noise = row_noise(len(x), generator, self.last.weight.device)
        return self._drawn(noise, condition, as_device(x, self), as_device(known, self))

    def logits(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Of every level at every pixel, shape (batch, levels, channels, height, width)."""
        features = self.network(self._entering(x), self._classes(condition, len(x)))
        told = self._head(features, self.before_last, self.last)
        logits: Tensor = told.unflatten(1, (self.space.levels, self.space.channels))
        return logits

    def _head(self, features: Tensor, before_last: Layer, last: Layer) -> Tensor:
        inner = before_last(functional.relu(features))
        return last(self.dropout(functional.relu(inner)))

    def _entering(self, x: Tensor) -> Tensor:
        """Levels as the network's input, feature f belonging to channel f mod ``space.channels``."""
        return entering(x, self.space, self.last.weight.dtype)

    def _classes(self, condition: Tensor | None, rows: int) -> Tensor | None:
        classes = one_hot_labels(condition, self.condition_space, rows)
        return None if classes is None else classes.to(self.last.weight)

    def _drawn(
        self, noise: Noise, condition: Tensor | None, given: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """Draw pixel after pixel; where ``known`` is true, take ``given`` instead."""
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        uniform = noise.uniform(*self.space.shape)
        walk = self.network.walk(noise.rows, self._classes(condition, noise.rows))
        cursors = [layer.cursor(noise.rows, 1) for layer in (self.before_last, self.last)]
        before_last, last = (cursor.point for cursor in cursors)
        training, _ = self.training, self.eval()

        def tell(features: Tensor) -> Tensor:
            return self._head(features, before_last, last)

        x = drawn_in_order(
            self.space, walk, self._entering, tell, uniform, given=given, known=known
        )
        self.train(training)
        return x

    def negative_log_likelihood(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log p(x) in nats per dimension."""
        logits = self.logits(batch.x, batch.condition).float()
        return Loss(functional.cross_entropy(logits, batch.x.long()))

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=50 * config.batch_size,
        )
        player = Player("network", list(self.parameters()), optimiser, clip=1.0)
        stage = Stage([Descent((player,), self.negative_log_likelihood)])
        return Game([stage], batch_size=config.batch_size, average=0.05)
