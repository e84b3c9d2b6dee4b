"""Conditions beyond classes, of every model that names them: attributes, captions, images."""

import pytest
import torch

from simulacra import shelf
from simulacra.contract import Density, Sampler
from simulacra.data.dataset import Part, Stream
from simulacra.layers.conditions import CONDITIONS
from simulacra.play import Play
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Labels, Table, Tokens

SPACES = {
    "attributes": Table(
        (Column("colour", "category", ("red", "blue")), Column("weight", missing=True))
    ),
    "caption": Tokens(6, 4, " abc"),
    "image": Images(2, 3, 4, levels=5),
}
ABLE = [
    (entry.name, kind)
    for entry in shelf.entries()
    for kind, space in SPACES.items()
    if isinstance(space, entry.cls.conditions)
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(name, condition):
    """A small model, of images where it is an image that goes with each."""
    cls = shelf.find(name).cls
    toy = cls.toy()
    pictures = isinstance(condition, Images) or isinstance(toy.space, Images)
    space = Images(1, 4, 4, levels=32) if pictures else toy.space
    if hasattr(cls, "components"):
        small = {"autoencoder": "own", "code": 3, "prior.channels": 16, "batch_size": 16}
        return shelf.build(name, space, settings=small, condition=condition)
    return cls(space, toy.config, condition=condition)


def taught(name, condition):
    """A model that has played a little, its weights disturbed then, so that all of them count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = built(name, condition)
    x, told = model.space.random(64, seeded()), condition.random(64, seeded(1))
    stream = Stream(Part(x, torch.arange(64), model.space, told), 16, seed=0, conditional=True)
    play = Play(model, model.game(), seed=0)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for _ in play.rounds(stream, lambda clock: clock.rounds / 24):
        if play.clock.rounds >= 24:
            break
    told = [key for key in before if ".label." in key]
    moved = [key for key in told if not torch.equal(model.get_parameter(key), before[key])]
    assert bool(moved) == bool(told)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=seeded()))
    return model


@pytest.fixture(scope="module", params=ABLE, ids=lambda pair: "-".join(pair))
def case(request):
    name, kind = request.param
    return taught(name, SPACES[kind]).eval(), SPACES[kind]


def test_somebody_takes_each_kind():
    assert {kind for _, kind in ABLE} == set(SPACES)
    assert any(set(CONDITIONS) <= set(entry.cls.conditions) for entry in shelf.entries())


def test_what_is_asked_for_changes_what_is_drawn(case):
    model, space = case
    assert isinstance(model, Sampler)
    one, other = space.random(2, seeded(3)).split(1)
    asked = [row.expand(8, *row.shape[1:]) for row in (one, other)]
    first, again, second = (
        model.sample(8, condition=told, generator=seeded()) for told in (*asked[:1], *asked)
    )
    assert model.space.contains(first)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    few = model.sample(3, condition=asked[0][:3], generator=seeded())
    torch.testing.assert_close(few, first[:3], rtol=1e-3, atol=1e-3)


def test_nothing_is_drawn_without_being_asked_for(case):
    model, _ = case
    with pytest.raises(Refusal, match="was given none"):
        model.sample(2, generator=seeded())


def test_it_changes_densities_too(case):
    model, space = case
    if not isinstance(model, Density):
        pytest.skip("no density")
    x, told = model.space.random(6, seeded()), space.random(2, seeded(3))
    values = [
        model.log_prob(x, condition=row.expand(6, *row.shape[1:]), generator=seeded())
        for row in told.split(1)
    ]
    assert not torch.allclose(*values)


def test_it_is_kept_with_the_model(case, tmp_path):
    model, space = case
    told = space.random(4, seeded(3))
    again = shelf.from_pretrained(shelf.save_pretrained(model, tmp_path / "kept"))
    assert again.condition_space == space
    drawn = [one.sample(4, condition=told, generator=seeded()) for one in (model, again)]
    assert torch.equal(*drawn)


def test_a_model_of_classes_refuses_captions():
    entry = shelf.find("vae")
    with pytest.raises(Refusal, match="cannot be conditioned on texts"):
        shelf.build("vae", entry.cls.toy().space, condition=SPACES["caption"])


def test_what_cannot_be_is_refused():
    space = shelf.find("ddpm").cls.toy().space
    with pytest.raises(Refusal, match="guides to classes"):
        shelf.build("ddpm", space, settings={"guidance": "classifier"}, condition=SPACES["caption"])
    with pytest.raises(Refusal, match="stands beside the pixels"):
        shelf.build("flow-matching", shelf.find("gan").cls.toy().space, condition=SPACES["image"])
    with pytest.raises(Refusal, match="reflow draws its own"):
        shelf.build("flow-matching", space, settings={"reflow": 1}, condition=SPACES["attributes"])
    with pytest.raises(Refusal, match="go by classes"):
        shelf.build(
            "latent-diffusion", space, settings={"prior": "own"}, condition=SPACES["caption"]
        )
    assert shelf.build("latent-diffusion", space, settings={"prior": "own"}, condition=Labels(2))
