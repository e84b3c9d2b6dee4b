"""What every Gaussian diffusion of images does alike, once its network guesses x_0 at any noise level.

A model of the family brings its guess, the paths it knows and its loss; drawing by any sampler, with any
guidance, trajectories, completion, variation and anomaly scores are those of ``layers/denoising.py``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from simulacra.layers.conditions import ConditionDoor
from simulacra.layers.denoising import Reverse, Settings, Way, require_guidance
from simulacra.layers.dit import DiT
from simulacra.layers.unet import NoisyClassifier, UNet
from simulacra.probability.diffusion import Scales
from simulacra.probability.noise import scoring_noise
from simulacra.probability.samplers import Guess, Level, SamplerName, Spacing
from simulacra.spaces import Images, Space


class DiffusionConfig(Settings, Protocol):
    """What a config has beside the sampler's settings."""

    @property
    def label_dropout(self) -> float: ...


class GaussianDiffusion(nn.Module):
    """A ``network`` that denoises; a model names its capabilities on its own class line."""

    config: DiffusionConfig
    space: Images
    condition_space: Space | None
    condition_door: ConditionDoor
    network: UNet | DiT
    classifier: NoisyClassifier | None

    @abstractmethod
    def _origin(self, x: Tensor, at: Scales, context: Tensor | None) -> Guess:
        """The guess of x_0, not cut to the data's range; ``context`` is what a ``ConditionDoor`` tells,
        or None."""

    @abstractmethod
    def _path(self, count: int, spacing: Spacing) -> list[Level]:
        """``count`` noise levels from the strongest on, and none."""

    @property
    @abstractmethod
    def score_levels(self) -> int:
        """Noise levels that an anomaly score looks at."""

    @property
    def reverse(self) -> Reverse:
        """The way back from noise, by this model's guess of x_0."""
        return Reverse(
            self.space,
            self.condition_door,
            self._origin,
            self._path,
            lambda: self._weight,
            self.classifier,
        )

    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        sampler: SamplerName | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Whatever is not None stands for the config's setting of that name."""
        way = self._way(
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            eta=eta,
            guidance_scale=guidance_scale,
        )
        return self.reverse.sample(num_samples, condition, generator, way)

    def trajectory(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        states = self.reverse.trajectory(num_samples, condition, generator, self._way())
        return torch.stack(list(states))

    def vary(
        self,
        x: Tensor,
        *,
        strength: float = 0.8,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """From x, noised to the level that has ``strength`` of the steps still to go."""
        return self.reverse.vary(x, strength, condition, generator, self._way())

    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """In at least a hundred ancestral steps, each of which heeds the known pixels."""
        count = max(100, self.config.num_inference_steps)
        way = self._way(sampler="ancestral", num_inference_steps=count)
        return self.reverse.complete(x, known, condition, generator, way)

    @property
    def score_source(self) -> str:
        return "denoising error"

    def anomaly_score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The squared error of x_0, a dimension, at ``score_levels`` noise levels."""
        noise = scoring_noise(len(x), generator, self._weight.device)
        return self.reverse.strangeness(x, self.score_levels, noise)

    @property
    def _weight(self) -> Tensor:
        return self.network.enter.weight

    def _way(self, **instead: object) -> Way:
        way = Way.of(self.config, **instead)
        able = self.classifier is not None or self.config.label_dropout > 0
        way_out = "leave it at 0, or train with --set label_dropout=0.1"
        require_guidance(way.guidance_scale, self.condition_space, able=able, way_out=way_out)
        return way
