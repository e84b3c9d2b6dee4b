"""Fully connected networks of a GAN on rows: what a generator is made of, and a critic."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.adversarial_rules import Rules
from simulacra.layers.critic_head import CriticHead, Opinion
from simulacra.layers.waves import octaves, with_waves

SLOPE = 0.2


def dense(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with leaky ReLU between them, begun so that variances stay (He et al. 2015, eq. 14):
    a critic that begins nearly linear is slow to see what is fine."""
    parts: list[nn.Module] = []
    for size, following in itertools.pairwise(sizes):
        layer = nn.Linear(size, following)
        nn.init.kaiming_normal_(layer.weight, SLOPE)
        nn.init.zeros_(layer.bias)
        parts += [layer, nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*parts[:-1])


class DenseCritic(CriticHead):
    """Rows (n, size) and classes (n, ``classes``) to an opinion of the kind that ``rules`` ask for.

    Rows are read as so many octaves of ``waves``, too (``layers/waves.py``).
    """

    waves: Tensor

    def __init__(
        self,
        size: int,
        classes: int,
        rules: Rules,
        *,
        hidden: int,
        layers: int,
        waves: int = 0,
    ) -> None:
        super().__init__()
        self.register_buffer("waves", octaves(waves), persistent=False)
        self.concatenates = classes > 0 and rules.conditioning == "concatenation"
        enters = (size * (1 + 2 * waves) + classes * self.concatenates) * rules.pack
        self.body = dense([enters] + [hidden] * layers)
        self.add_head(hidden, classes, rules)

    def forward(self, x: Tensor, classes: Tensor | None) -> Opinion:
        x = with_waves(x.flatten(1), self.waves)
        if self.concatenates and classes is not None:
            x = torch.cat([x, classes.to(x)], dim=1)
        return self.opinion(functional.leaky_relu(self.body(x), SLOPE), classes)
