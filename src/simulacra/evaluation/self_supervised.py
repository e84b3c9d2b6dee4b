"""Features learnt without labels: two views of an image are told from the views of all others.

SimCLR (Chen et al. 2020, eq. 1): of a batch of n images two views each are taken, z are their features
behind a small head, scaled to length one, s = z z^T / tau, and every view has to name its partner,

    loss = - mean_i log ( exp s_{i, partner(i)} / sum_{j != i} exp s_{ij} ),       tau = 0.2.

Views are crops of 40 % of the area or more, a little turned and stretched, of other brightness and
contrast, and of hardly another tint, since models are judged by colours too. None is mirrored, since a
mirrored digit is none, and none is noisy, since the ruler has to see noise. The head is thrown away.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.evaluation.networks import DIMENSION, ConvolutionalBody
from simulacra.layers.front_door import centred
from simulacra.probability.noise import global_noise, mixed

MOST_PAIRS, MOST_PASSES = 20_000, 50
BATCH = 256
TEMPERATURE = 0.2
RATE = 5e-3
LEAST_AREA, STRETCH, TURN = 0.4, 0.2, 0.2
CONTRAST, BRIGHTNESS, TINT = 0.4, 0.2, 0.08


def train_self_supervised(
    body: ConvolutionalBody, x: Tensor, seed: int, *, pairs: int | None = None
) -> None:
    """Teach ``body`` from images x (n, C, H, W) alone.

    ``pairs``: images seen, two views each; without it as many as suit the data.
    """
    with global_noise(mixed(seed, 75)):
        head = nn.Sequential(
            nn.Linear(DIMENSION, 2 * DIMENSION, bias=False),
            nn.BatchNorm1d(2 * DIMENSION),
            nn.SiLU(),
            nn.Linear(2 * DIMENSION, DIMENSION),
        )
    stream = torch.Generator().manual_seed(mixed(seed, 76))
    size = min(BATCH, len(x))
    steps = max(1, (pairs or min(MOST_PAIRS, MOST_PASSES * len(x))) // size)
    learnt = [*body.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(learnt, lr=RATE, weight_decay=1e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=RATE, total_steps=steps + 1)
    order = torch.empty(0, dtype=torch.long)
    body.train()
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=stream)
        which, order = order[:size], order[size:]
        pixels = centred(x[which].cpu(), body.space.levels)
        views = torch.cat([view(pixels, stream), view(pixels, stream)])
        loss = contrast(head(body.features_of(views)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        cycle.step()
    body.eval()


def contrast(z: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The loss of 2n views, shape (2n, d), the partner of view i standing n further (eq. 1)."""
    unit = functional.normalize(z, dim=1)
    alike = unit @ unit.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool)
    partner = torch.arange(len(z)).roll(len(z) // 2)
    return functional.cross_entropy(alike.masked_fill(itself, -torch.inf), partner)


def view(pixels: Tensor, stream: torch.Generator) -> Tensor:
    """A view of each image, the same shape (n, C, H, W); pixels are in [-1, 1], views may leave it."""
    count, channels, height, width = pixels.shape

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((count, *shape), generator=stream)

    side, stretch = between(LEAST_AREA, 1).sqrt(), between(-STRETCH, STRETCH).exp()
    across, down = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    angle = between(-TURN, TURN)
    cos, sin = angle.cos(), angle.sin()
    left, top = between(-1, 1) * (1 - across), between(-1, 1) * (1 - down)
    # The grid counts in halves of sides, and a turn is one of pixels.
    rows = [across * cos, -down * sin * (height / width), left]
    rows += [across * sin * (width / height), down * cos, top]
    where = torch.stack(rows, 1).reshape(-1, 2, 3)
    grid = functional.affine_grid(where, list(pixels.shape), align_corners=False)
    # Border, not nought: what lies outside an image is like its edge.
    cut = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    mean = cut.mean((2, 3), keepdim=True)
    contrasted = mean + (cut - mean) * between(1 - CONTRAST, 1 + CONTRAST, 1, 1, 1)
    brighter = between(-BRIGHTNESS, BRIGHTNESS, 1, 1, 1) + between(-TINT, TINT, channels, 1, 1)
    return contrasted + brighter
