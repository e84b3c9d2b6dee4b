"""The rules of a game between a generator and a critic: every loss and remedy, an option of any GAN.

A model's config inherits ``Rules``; ``layers/contest.py`` plays by them. Left alone they are Goodfellow
et al. 2014 with the non-saturating loss and a lazy R1; what a model recommends for its data may be
another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from simulacra.probability.adversarial import LOSSES, Name
from simulacra.refusals import Refusal
from simulacra.spaces import Images

Regulariser = Literal["none", "r1", "r2", "r1+r2", "wgan-gp"]
Conditioning = Literal["projection", "concatenation", "auxiliary"]
Minibatch = Literal["none", "discrimination", "deviation"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """``loss`` and ``smooth``: as in ``probability/adversarial.py``. ``penalty`` is the weight gamma of
    the ``regulariser``, taken every ``penalty_every`` rounds for all of them, of which the share
    ``penalty_left`` is left at the end (Huang et al. 2024 let it fall, too); ``spectral`` divides the
    critic's weights by their norms. ``critic_steps`` are those of one round, ``critic_rate`` the
    critic's learning rate as a multiple of the generator's (Heusel et al. 2017), ``unrolled`` those of
    size ``unrolled_rate`` that the generator looks ahead. ``pack`` data are judged at once;
    ``minibatch`` is what the critic sees of the batch. ``shift``, ``cut`` and ``colour`` move what it
    sees of images, always or, where ``adaptive`` is ADA's target (0.6), as often as is needed.
    ``conditioning``: how a class enters the critic. ``average``: the half-life of the generator's weight
    average as a share of the data seen, 0 for the last weights."""

    loss: Name = "non-saturating"
    smooth: float = 0.0
    regulariser: Regulariser = "r1"
    penalty: float = 1.0
    penalty_every: int = 4
    penalty_left: float = 1.0
    critic_steps: int = 1
    critic_rate: float = 1.0
    spectral: bool = False
    unrolled: int = 0
    unrolled_rate: float = 0.1
    pack: int = 1
    minibatch: Minibatch = "none"
    feature_matching: bool = False
    shift: float = 0.0
    cut: float = 0.0
    colour: float = 0.0
    adaptive: float = 0.0
    conditioning: Conditioning = "projection"
    average: float = 0.05

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name, least)
            if not least <= value <= most:
                within = (
                    f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                )
                raise Refusal("CFG-262", f"{name} is {value:g}", way_out=f"give a number {within}")


FEW_IMAGES = 5000

BOUNDS = {
    "smooth": (0, 0.5),
    "penalty": (0, math.inf),
    "penalty_every": (1, math.inf),
    "penalty_left": (0, math.inf),
    "critic_steps": (1, math.inf),
    "critic_rate": (1e-6, math.inf),
    "unrolled": (0, math.inf),
    "unrolled_rate": (0, math.inf),
    "shift": (0, 1),
    "cut": (0, 1),
    "colour": (0, math.inf),
    "adaptive": (0, 1),
    "average": (0, math.inf),
    "batch_size": (1, math.inf),
    "latent": (0, math.inf),
    "channels": (1, math.inf),
    "hidden": (1, math.inf),
    "critic_hidden": (1, math.inf),
    "layers": (0, math.inf),
    "style": (1, math.inf),
    "widest": (1, math.inf),
    "mapping_layers": (1, math.inf),
    "mapping_rate": (1e-6, math.inf),
    "path_length": (0, math.inf),
    "path_every": (1, math.inf),
    "information": (0, math.inf),
}
"""The least and the greatest that a rule can be, or the setting of a model of this name."""


def for_images(space: Images, num_examples: int) -> dict[str, Any]:
    """What is recommended for images: a stronger penalty for larger ones, and where they are few, shifts
    as often as ADA asks for (Karras et al. 2020a)."""
    found: dict[str, Any] = {"penalty": max(0.2, space.height * space.width / 1024)}
    return found | ({"shift": 0.125, "adaptive": 0.6} if num_examples < FEW_IMAGES else {})


def require_sense(rules: Rules, batch_size: int) -> None:
    """Refuse options that contradict one another."""
    if rules.smooth and not LOSSES[rules.loss].smooths:
        able = ", ".join(name for name, pair in LOSSES.items() if pair.smooths)
        reason = f"the loss {rules.loss} has no labels that could be smooth"
        raise Refusal("CFG-170", reason, way_out=f"set smooth to 0, or loss to one of {able}")
    if rules.pack < 1 or batch_size % rules.pack:
        reason = f"batches of {batch_size} cannot be judged {rules.pack} at once"
        raise Refusal("CFG-171", reason, way_out="let pack divide batch_size")
    if rules.pack > 1 and rules.conditioning == "auxiliary":
        reason = "an auxiliary classifier tells the class of one datum, and packs have several"
        raise Refusal("CFG-172", reason, way_out='set pack to 1, or conditioning to "projection"')
