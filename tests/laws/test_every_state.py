"""Exact models as their users get them, on spaces small enough to list: 2^12 and 4^6 states.

The other laws look at toys; these take what is recommended for the space, with weights pushed away from
where they start, since a last layer of zeros would sum to one whatever stood before it.
"""

import numpy as np
import pytest
import torch

from simulacra import shelf
from simulacra.contract import Density, Kind, Sampler
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Tokens

from .test_density import chi_square_p, states

SPACES = {
    "binary": Images(1, 3, 4, levels=2),
    "four-levels": Images(1, 2, 3, levels=4),
    "colour": Images(3, 1, 2, levels=4),
    "tokens": Tokens(6, 4),
}
CASES = [
    (entry.name, space)
    for entry in shelf.entries()
    if issubclass(entry.cls, Density) and issubclass(entry.cls, Sampler)
    for space in SPACES
    if entry.fits(SPACES[space])
]


def disturbed(name, space):
    try:
        model = shelf.build(name, space, num_examples=500).double().eval()
    except Refusal as reason:
        pytest.skip(str(reason))
    if model.kind is not Kind.EXACT:
        pytest.skip(f"{name} is {model.kind} here")
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=stream).to(parameter)
            fan = parameter[0].numel() if parameter.ndim else 1
            parameter.add_(noise * (0.3 / fan**0.5))
    return model


@pytest.mark.parametrize(("name", "space"), CASES)
def test_all_states_sum_to_one_and_samples_agree(name, space):
    model = disturbed(name, SPACES[space])
    every = states(SPACES[space])
    assert len(every) == 4096
    with torch.no_grad():
        probability = torch.cat([model.log_prob(part) for part in every.split(1024)]).exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-9)
    x = model.sample(3000, generator=torch.Generator().manual_seed(0))
    levels = round(len(every) ** (1 / SPACES[space].dimensions))
    place = levels ** torch.arange(SPACES[space].dimensions - 1, -1, -1)
    drawn = (x.flatten(1).long() * place).sum(1)
    assert torch.equal(every[drawn], x)
    observed = np.bincount(drawn.numpy(), minlength=len(every))
    # Cells by ranks of probability, each of about a hundredth: most states are drawn less than once.
    order = np.argsort(probability.numpy())
    cell = np.minimum((np.cumsum(probability.numpy()[order]) * 100).astype(int), 99)
    cells, expected = np.zeros(100), np.zeros(100)
    np.add.at(cells, cell, observed[order])
    np.add.at(expected, cell, probability.numpy()[order])
    kept = expected > 0
    assert chi_square_p(cells[kept], expected[kept] / expected.sum()) > 1e-4
