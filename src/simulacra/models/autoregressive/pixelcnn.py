"""PixelCNN: an image is written pixel by pixel, each given all that stand before it.

    p(x) = prod_i p(x_i | x_1, …, x_{i-1})                        (van den Oord et al. 2016a, eq. 1)

in raster order, R before G before B (eq. 2), each factor a softmax over the levels. One network gives
all factors at once: its convolutions are masked, A in the first layer and B after it (their fig. 2 and
sec. 3.4), so no output sees its own pixel or a later one. Residual blocks are those of their fig. 5:
2h -> h by 1x1, h -> h by 3x3, h -> 2h by 1x1.

``gated`` is the later form (van den Oord et al. 2016b): a vertical stack that sees all rows above and a
horizontal one along the row leave no blind spot, and each layer is y = tanh(W_f x) * sigmoid(W_g x)
(eq. 2). A class adds V h to every layer in either form (eq. 4).

Sampling keeps every layer's features of the rows in reach and works out only those of the new pixel.

Changed: a bias for each position after the first layer, one-hot inputs for few levels, kernels cut to the
rows that can be seen, AdamW with a cosine and averaged weights, dropout for few data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Stage
from simulacra.layers.dropout import Dropout
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels
from simulacra.layers.layout import channels_last
from simulacra.layers.masked import Cursor, MaskedConv2d, RowCursor
from simulacra.layers.raster import drawn_in_order, entering, entering_features
from simulacra.optimisation import Optimiser
from simulacra.probability.distributions import categorical_log_prob
from simulacra.probability.noise import Noise, row_noise
from simulacra.spaces import Images, Labels, Space

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Config:
    """``channels`` is h: features between the blocks are 2h wide in the plain form, h in the gated.

    ``first`` and ``kernel`` are the widths of the first and of all other masked convolutions, in
    pixels; ``head`` is the width of the two 1x1 layers before the softmax.
    """

    gated: bool = False
    channels: int = 16
    blocks: int = 7
    first: int = 7
    kernel: int = 3
    head: int = 32
    dropout: float = 0.0
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


def _gate(x: Tensor) -> Tensor:
    """tanh(W_f x) * sigmoid(W_g x), from both products one after the other (2016b, eq. 2)."""
    signal, gate = x.chunk(2, dim=1)
    return torch.tanh(signal) * torch.sigmoid(gate)


class _Block(nn.Module):
    """The plain form's residual block (2016a, fig. 5): x + up(relu(centre(relu(down(relu(x))))))."""

    def __init__(self, config: Config, channels: int, groups: int, classes: int) -> None:
        super().__init__()
        reach = config.kernel // 2
        self.down = MaskedConv2d(2 * channels, channels, groups=groups)
        self.centre = MaskedConv2d(channels, channels, above=reach, reach=reach, groups=groups)
        self.up = MaskedConv2d(channels, 2 * channels, groups=groups)
        self.told = nn.Linear(classes, channels, bias=False) if classes else None
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        told = None if self.told is None else self.told(classes)[:, :, None, None]
        return self.through(x, told, self.down, self.centre, self.up)

    def through(
        self, x: Tensor, told: Tensor | None, down: Layer, centre: Layer, up: Layer
    ) -> Tensor:
        """The block on whole images, or on one position with layers that know what stands before."""
        inner = centre(functional.relu(down(functional.relu(x))))
        inner = inner if told is None else inner + told
        return x + up(self.dropout(functional.relu(inner)))


class _Plain(nn.Module):
    """The form of van den Oord et al. 2016a: (batch, inputs, H, W) to (batch, 2h, H, W)."""

    def __init__(self, config: Config, inputs: int, channels: int, space: Images, classes: int):
        super().__init__()
        reach, groups = config.first // 2, space.channels
        self.enter = MaskedConv2d(
            inputs, 2 * channels, above=reach, reach=reach, groups=groups, kind="A"
        )
        self.place = nn.Parameter(torch.zeros(2 * channels, space.height, space.width))
        self.blocks = nn.ModuleList(
            _Block(config, channels, groups, classes) for _ in range(config.blocks)
        )

    def forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        x = self.enter(x)
        x = x + self.place.to(x.dtype)
        for block in self.blocks:
            x = block(x, classes)
        return x

    def walk(self, rows: int, classes: Tensor | None) -> _PlainWalk:
        return _PlainWalk(self, rows, classes)


class _PlainWalk:
    """``_Plain`` over images that are being drawn: a row is begun, then a column at a time."""

    def __init__(self, network: _Plain, rows: int, classes: Tensor | None) -> None:
        width = network.place.shape[2]
        self.place = network.place.detach().permute(1, 2, 0)
        self.enter = network.enter.cursor(rows, width)
        self.blocks: list[tuple[_Block, Tensor | None, list[Cursor]]] = []
        for block in network.blocks:
            assert isinstance(block, _Block)
            told = None if block.told is None else block.told(classes)
            layers = (block.down, block.centre, block.up)
            self.blocks.append((block, told, [one.cursor(rows, width) for one in layers]))

    def next_row(self, row: int, before: Tensor | None) -> None:
        """Begin a row; ``before`` is the network's input for the row above, which is noted already."""
        self.here = self.place[row]
        self.enter.next_row()
        for _, _, (_, centre, _) in self.blocks:
            centre.next_row()

    def put(self, column: int, x: Tensor) -> None:
        self.enter.put(column, x)

    def at(self, column: int) -> Tensor:
        """The features of a column in the row begun, shape (rows, 2h)."""
        x = self.enter.at(column) + self.here[column]
        for block, told, (down, centre, up) in self.blocks:

            def look_back(y: Tensor, centre: Cursor = centre) -> Tensor:
                centre.put(column, y)
                return centre.at(column)

            x = block.through(x, told, down.point, look_back, up.point)
        return x


class _GatedLayer(nn.Module):
    """Vertical and horizontal stack, one layer of each (2016b, fig. 2)."""

    def __init__(
        self, config: Config, inputs: int | None, channels: int, groups: int, classes: int
    ) -> None:
        super().__init__()
        reach = (config.kernel if inputs is None else config.first) // 2
        kind, entering = "B" if inputs is None else "A", inputs or channels
        self.first, self.reach = inputs is not None, reach
        self.vertical = nn.Conv2d(
            entering, 2 * channels, (reach + 1, 2 * reach + 1), padding=(reach, reach), bias=False
        )
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.horizontal = MaskedConv2d(
            entering, 2 * channels, reach=reach, groups=groups, kind="A" if kind == "A" else "B"
        )
        self.leave = MaskedConv2d(channels, channels, groups=groups)
        self.told = nn.Linear(classes, 4 * channels, bias=False) if classes else None
        self.dropout = Dropout(config.dropout)

    def said(self, classes: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What the class adds in the vertical and in the horizontal stack, each (batch, 2h)."""
        if self.told is None:
            return None
        down, along = self.told(classes).chunk(2, dim=1)
        return down, along

    def above(self, rows: Tensor) -> Tensor:
        """The vertical product, before its gate, of rows up to and with i, (batch, 2h, H, W)."""
        y: Tensor = self.vertical(rows)[:, :, : rows.shape[2]]
        return y.contiguous(memory_format=torch.channels_last)

    def across(
        self, x: Tensor, linked: Tensor, told: Tensor | None, along: Layer, leave: Layer
    ) -> Tensor:
        """The horizontal stack on whole images, or on one position."""
        inner = along(x) + linked
        inner = _gate(inner if told is None else inner + told)
        y = leave(self.dropout(inner))
        return y if self.first else x + y


class _Gated(nn.Module):
    """The form of van den Oord et al. 2016b: (batch, inputs, H, W) to (batch, h, H, W)."""

    def __init__(self, config: Config, inputs: int, channels: int, space: Images, classes: int):
        super().__init__()
        groups = space.channels
        self.place = nn.Parameter(torch.zeros(2 * channels, space.height, space.width))
        self.layers = nn.ModuleList(
            _GatedLayer(config, None if index else inputs, channels, groups, classes)
            for index in range(config.blocks + 1)
        )

    def forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        vertical = x
        for layer in self.layers:
            assert isinstance(layer, _GatedLayer)
            told = layer.said(classes)
            above = layer.above(vertical)
            # Row i of the horizontal stack is given rows up to i - 1.
            linked = layer.link(functional.pad(above, (0, 0, 1, 0))[:, :, :-1])
            linked = linked + self.place.to(linked.dtype) if layer.first else linked
            along = None if told is None else told[1][:, :, None, None]
            x = layer.across(x, linked, along, layer.horizontal, layer.leave)
            if layer is not self.layers[-1]:
                above = above + self.place.to(above.dtype) if layer.first else above
                vertical = _gate(above if told is None else above + told[0][:, :, None, None])
        return x

    def walk(self, rows: int, classes: Tensor | None) -> _GatedWalk:
        return _GatedWalk(self, rows, classes)


class _GatedWalk:
    """``_Gated`` over images that are being drawn: the vertical stack a row at a time."""

    def __init__(self, network: _Gated, rows: int, classes: Tensor | None) -> None:
        self.place = network.place.detach().permute(1, 2, 0)
        width = self.place.shape[1]
        self.layers = [one for one in network.layers if isinstance(one, _GatedLayer)]
        self.told = [layer.said(classes) for layer in self.layers]
        self.vertical = [RowCursor(layer.vertical, rows, width) for layer in self.layers]
        self.horizontal = [layer.horizontal.cursor(rows, width) for layer in self.layers]
        self.leave = [layer.leave.cursor(rows, width) for layer in self.layers]
        link = [layer.link.weight.detach()[:, :, 0, 0] for layer in self.layers]
        self.link = link
        self.linked = [weight.new_zeros(rows, width, len(weight)) for weight in link]

    def next_row(self, row: int, before: Tensor | None) -> None:
        """Begin a row; ``before`` is the network's input for the row above, (rows, W, inputs)."""
        vertical = before
        for index, cursor in enumerate(self.vertical):
            self.horizontal[index].next_row()
            if vertical is None:
                continue
            above, told = cursor.row(vertical), self.told[index]
            self.linked[index] = above @ self.link[index].T
            if index == 0:
                above = above + self.place[row - 1]
            above = above if told is None else above + told[0].unsqueeze(1)
            vertical = _gate(above.mT).mT
        self.first_linked = self.linked[0] + self.place[row]

    def put(self, column: int, x: Tensor) -> None:
        self.horizontal[0].put(column, x)

    def at(self, column: int) -> Tensor:
        """The features of a column in the row begun, shape (rows, h)."""
        x = self.linked[0][:, column]
        for index, layer in enumerate(self.layers):
            cursor, told = self.horizontal[index], self.told[index]

            def along(y: Tensor, cursor: Cursor = cursor, index: int = index) -> Tensor:
                if index:
                    cursor.put(column, y)
                return cursor.at(column)

            linked = (self.linked[index] if index else self.first_linked)[:, column]
            horizontal = None if told is None else told[1]
            x = layer.across(x, linked, horizontal, along, self.leave[index].point)
        return x


class PixelCNN(nn.Module, Sampler, Density, Factorised, Completer):
    """Masked convolutions and a softmax over the levels of every pixel."""

    representative: ClassVar = True
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
        inputs = entering_features(space)
        kind = _Gated if config.gated else _Plain
        self.network: _Gated | _Plain = kind(config, inputs, channels, space, classes)
        features = channels if config.gated else 2 * channels
        self.before_last = MaskedConv2d(features, head, groups=groups)
        self.last = MaskedConv2d(head, groups * space.levels, groups=groups)
        self.dropout = Dropout(config.dropout)
        channels_last(self)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Small with dropout for few or small images; wider for colour."""
        assert isinstance(space, Images)
        if num_examples < 10_000 or space.height * space.width <= 144:
            return Config(
                channels=32,
                blocks=3,
                first=5,
                head=64,
                dropout=0.25,
                batch_size=64,
                learning_rate=3e-3,
            )
        wide = space.channels > 1
        return Config(
            channels=48 if wide else 32,
            blocks=8,
            head=192 if wide else 64,
            batch_size=32,
            learning_rate=2e-3,
        )

    @classmethod
    def toy(cls) -> PixelCNN:
        return cls(
            Images(1, 3, 3, levels=2),
            Config(channels=8, blocks=1, first=3, head=8, batch_size=32, learning_rate=0.01),
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
        x = as_device(x, self)
        return categorical_log_prob(x, self.logits(x, condition).movedim(1, -1))

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
        targets = batch.x.long()
        return Loss(functional.cross_entropy(logits, targets))

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
        bf16 = config.channels >= 16
        return Game([stage], batch_size=config.batch_size, average=0.05, bf16=bf16)
