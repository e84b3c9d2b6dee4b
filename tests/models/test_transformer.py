"""Transformer: what an entry may see, against a masked softmax, and kept keys against whole passes."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from simulacra.layers.attention import angles_of, turned
from simulacra.layers.front_door import drawn_labels
from simulacra.models.autoregressive.transformer import (
    Config,
    Transformer,
    _Memory,
)
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Tokens

SPACES = pytest.mark.parametrize(
    "space",
    [Images(1, 4, 5, 2), Images(3, 3, 2, 17), Tokens(9, 11), Tokens(1, 3)],
    ids=["binary", "colour", "tokens", "one token"],
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(space, *, condition=None, **more):
    """A net whose weights are large enough for every entry to matter."""
    config = Config(**({"width": 16, "layers": 2, "heads": 2} | more))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(space, config, condition=condition).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def one_pass_an_entry(model, rows, seed, given=None, known=None):
    """The plain way to draw: the whole network again for every entry."""
    noise = row_noise(rows, seeded(seed))
    condition = drawn_labels(None, model.condition_space, noise.uniform())
    uniform = noise.uniform(model.space.dimensions)
    entries = torch.zeros(uniform.shape, dtype=torch.long)
    for step in range(model.space.dimensions):
        with torch.no_grad():
            logits = model.logits(entries, condition)[:, step]
        drawn = categorical_draw(logits, uniform[:, step])
        if given is not None:
            drawn = torch.where(
                model._in_order(known)[:, step], model._in_order(given)[:, step], drawn
            )
        entries[:, step] = drawn
    return model._in_place(entries).to(model.space.dtype)


@SPACES
@pytest.mark.parametrize("layers", [1, 3])
def test_an_entry_sees_all_entries_before_it_and_no_other(space, layers):
    model = small(space, layers=layers).double()
    length = space.dimensions
    vectors = torch.randn(4, length - 1, 16, dtype=torch.float64, requires_grad=True)
    model.values.register_forward_hook(lambda module, given, told: vectors)
    logits = model.logits(torch.zeros(4, length, dtype=torch.long))
    for step in range(length):
        told = (logits[:, step] * torch.randn_like(logits[:, step])).sum()
        (slope,) = torch.autograd.grad(told, vectors, retain_graph=True)
        seen = (slope != 0).any(0).any(-1)
        assert seen.tolist() == [before < step for before in range(length - 1)]


def test_colours_stand_within_their_pixel():
    model = small(Images(3, 2, 2, 5)).double()
    x = model.space.random(1, seeded())
    factors = model.log_factors(x)
    places = list(itertools.product(range(2), range(2), range(3)))
    for order, (row, column, channel) in enumerate(places):
        other = x.clone()
        other[0, channel, row, column] = (other[0, channel, row, column] + 2) % 5
        moved = (model.log_factors(other) != factors)[0]
        assert [bool(moved[c, i, j]) for i, j, c in places] == [k >= order for k in range(12)]


def by_hand(model, entries):
    """The same network with a mask of -inf and a softmax, one row and one head at a time."""
    length = entries.shape[1]
    mask = torch.full((length, length), -math.inf).double().triu(1)
    rows = []
    for row in entries:
        h = torch.cat([model.start.weight, model.values.weight[row[:-1]]]) + model.places()
        for layer in model.layers:
            query, key, value = layer.read(layer.before_attention(h)).chunk(3, dim=-1)
            heads = []
            for part in range(layer.heads):
                own = slice(part * model.head_width, (part + 1) * model.head_width)
                q = turned(query[:, own], model.places.query)
                k = turned(key[:, own], model.places.key)
                weights = torch.softmax(q @ k.T / math.sqrt(model.head_width) + mask, dim=-1)
                heads.append(weights @ value[:, own])
            h = h + layer.write(torch.cat(heads, dim=-1))
            mixed = functional.gelu(layer.widen(layer.before_mixing(h)))
            h = h + layer.narrow(mixed)
        rows.append(model.norm(h) @ model.leave.T + model.bias)
    return torch.stack(rows)


@SPACES
def test_logits_are_those_of_a_masked_softmax(space):
    model = small(space).double()
    entries = model._in_order(space.random(3, seeded())).long()
    torch.testing.assert_close(model.logits(entries), by_hand(model, entries))


def test_turns_tell_differences_of_place_only():
    sizes = (5, 6)
    where = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    angles = angles_of(where.double(), sizes, 16)
    query, key = torch.randn(2, 1, 16, dtype=torch.float64, generator=seeded())
    scores = turned(query.expand(30, 16), angles) @ turned(key.expand(30, 16), angles).T
    found = {}
    for i, j in itertools.product(range(30), range(30)):
        offset = tuple((where[i] - where[j]).tolist())
        assert float(scores[i, j]) == pytest.approx(found.setdefault(offset, float(scores[i, j])))
    assert len({round(score, 6) for score in found.values()}) == len(found)


@pytest.mark.parametrize("space", [Images(1, 2, 3, 3), Images(3, 1, 2, 3), Tokens(4, 5)])
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
@pytest.mark.parametrize("tied", [False, True])
def test_all_states_together_have_probability_one(space, condition, tied):
    model = small(space, condition=condition, tied=tied).double()
    count = space.levels if isinstance(space, Images) else space.vocabulary
    states = torch.cartesian_prod(*[torch.arange(count)] * space.dimensions)
    x = states.reshape(-1, *space.shape)
    labels = None if condition is None else torch.full((len(x),), 1)
    with torch.no_grad():
        total = model.log_prob(x, condition=labels).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


@SPACES
def test_logits_of_an_entry_are_those_of_the_whole_pass(space):
    model = small(space, condition=Labels(2))
    entries = model._in_order(space.random(4, seeded())).long()
    labels = torch.tensor([0, 1, 1, 0])
    memories = [_Memory(model.places, 4, 2, model.head_width) for _ in model.layers]
    with torch.no_grad():
        whole, read = model.logits(entries, labels), model._first(labels, 4)
        for step in range(space.dimensions):
            there = model.at(step, read + model.places()[step], memories)
            torch.testing.assert_close(there, whole[:, step], atol=1e-5, rtol=1e-5)
            read = model.values(entries[:, step]).unsqueeze(1)


@SPACES
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_drawing_with_kept_keys_equals_one_pass_an_entry(space, condition):
    model = small(space, condition=condition)
    x = model.sample(8, generator=seeded(3))
    assert space.contains(x)
    assert len(x.unique()) > 1
    assert torch.equal(x, one_pass_an_entry(model, 8, 3))


@SPACES
def test_completion_keeps_the_known_and_draws_the_rest_in_order(space):
    model = small(space)
    x = space.random(8, seeded(1))
    known = torch.rand(x.shape, generator=seeded(2)) < 0.5
    filled = model.complete(x, known, generator=seeded(4))
    assert torch.equal(filled[known], x[known])
    assert torch.equal(filled, one_pass_an_entry(model, 8, 4, given=x, known=known))


def test_a_far_copy_is_learned():
    """The last half of a sequence repeats the first: exact entropy is half of all bits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(Tokens(8, 4), Config(width=32, layers=2, heads=2))
        optimiser = torch.optim.Adam(model.parameters(), 5e-3)
        for step in range(150):
            half = torch.randint(4, (32, 4), generator=seeded(step))
            loss = -model.log_prob(torch.cat([half, half], dim=1)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert 4 * math.log(4) - 0.2 < float(loss) < 4 * math.log(4) + 0.5


def test_a_class_is_learned():
    model = small(Images(1, 3, 3, 4), condition=Labels(2))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    condition = torch.arange(64) % 2
    x = (3 * condition).reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
    for _ in range(40):
        optimiser.zero_grad()
        (-model.log_prob(x, condition=condition).mean()).backward()
        optimiser.step()
    drawn = model.eval().sample(64, condition=condition, generator=seeded())
    assert float((drawn == x).float().mean()) > 0.95


def test_a_width_that_heads_do_not_share_is_refused():
    with pytest.raises(Refusal) as refusal:
        Transformer(Tokens(4, 3), Config(width=20, heads=3))
    assert refusal.value.code == "CFG-091"
