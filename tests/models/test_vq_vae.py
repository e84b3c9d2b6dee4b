"""VQ-VAE: its bound against the sum over all codes, its priors, its spaces, and what is refused."""

import itertools
import json

import pytest
import torch

from simulacra import shelf
from simulacra.contract import Density, Kind, Sampler
from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.layers.quantisers import Codebook
from simulacra.models.latent.vq_vae import VQVAE, Config
from simulacra.play import Play
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Series, Tokens, Vectors

SMALL = {"codes": 4, "hidden": 8, "width": 3, "blocks": 1, "batch_size": 16}
SPACES = [
    Images(1, 7, 10, 2),
    Images(3, 8, 8, 5),
    Images(1, 5, 5, 256),
    Tokens(11, 6),
    Tokens(1, 3),
    Series(2, 37, 100),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(space, *, condition=None, num_examples=256, **settings):
    settings = SMALL | {"prior": "own"} | settings
    return shelf.build(
        "vq-vae", space, settings=settings, condition=condition, num_examples=num_examples
    )


def played(model, x, rounds, labels=None):
    part = Part(x, torch.arange(len(x)), model.space, labels)
    conditional = model.condition_space is not None
    stream = Stream(part, model.game().batch_size, seed=0, conditional=conditional)
    play = Play(model, model.game())
    for _ in play.rounds(stream, lambda clock: clock.rounds / rounds):
        if play.clock.rounds > 2 * rounds:
            break
    return model.eval()


def clustered(space, count=200):
    draw = seeded(1)
    which = torch.randint(3, (count,), generator=draw)
    return space.random(3, draw)[which], which


def test_the_bound_is_one_term_of_the_sum_over_all_codes():
    """log p(x) by every code there is; the bound lies below it and the probabilities sum to one."""
    space = Images(1, 3, 3, 2)
    model = played(built(space, codes=3, steps=1), clustered(space)[0], 20).double()
    x = torch.tensor(list(itertools.product([0, 1], repeat=9))).reshape(-1, 1, 3, 3)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    with torch.no_grad():
        prior = model.prior.log_prob(every)
        told = model._decoded(every)
        each = [model.head.log_prob(x, one.expand(len(x), *one.shape)) for one in told]
        joint = torch.stack(each, dim=1) + prior
        truth, bound = torch.logsumexp(joint, 1), model.log_prob(x)
    assert float(prior.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert float(truth.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert (bound <= truth + 1e-9).all()
    assert float(bound.exp().sum()) <= 1
    own = (every == model.encode(x)[:, None]).all(2).long().argmax(1)
    torch.testing.assert_close(bound, joint.gather(1, own[:, None])[:, 0])


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("quantiser", ["codebook", "fsq"])
def test_every_space_is_rebuilt_sampled_and_scored(space, quantiser):
    model = built(space, quantiser=quantiser, condition=Labels(2)).eval()
    x, labels = space.random(5, seeded()), Labels(2).random(5, seeded())
    code = model.encode(x)
    assert model.code_space.contains(code)
    assert space.contains(model.decode(code))
    assert model.code_vectors(code).shape == (5, model.code_space.length, model.quantiser.width)
    drawn = model.sample(5, condition=labels, generator=seeded())
    assert space.contains(drawn)
    assert torch.isfinite(model.log_prob(x, condition=labels)).all()
    assert model.anomaly_score(x).shape == (5,)
    told = model.diagnose(x, condition=labels)
    assert 0 < told["codes used (share)"] <= 1
    total = told["reconstruction (nats)"] + told["prior (nats)"]
    bound = -float(model.log_prob(x, condition=labels).mean())
    assert total == pytest.approx(bound, rel=1e-4)
    loss = model.train().rebuilding(Batch(x), row_noise(5, seeded()), Clock())
    assert torch.isfinite(loss.value)


def test_the_anomaly_score_of_a_conditional_model_sums_over_labels():
    model = built(Images(1, 6, 6, 2), condition=Labels(3)).eval()
    torch.nn.init.normal_(model.prior.logits)
    x = model.space.random(4, seeded())
    each = torch.stack([model.log_prob(x, condition=torch.full((4,), k)) for k in range(3)])
    expected = -(each.exp().double().mean(0)).log().float()
    torch.testing.assert_close(model.anomaly_score(x), expected.detach(), rtol=1e-4, atol=1e-4)


PRIORS = [
    entry.name
    for entry in shelf.entries()
    if issubclass(entry.cls, Sampler)
    and issubclass(entry.cls, Density)
    and entry.name not in ("vq-vae", "rbm")
    and (entry.fits(Tokens(4, 4)) or entry.name == "pixelcnn")
]


@pytest.mark.parametrize("name", PRIORS)
def test_any_model_of_codes_can_be_the_prior(name, tmp_path):
    """It learns in the second stage, is kept in the same file, and opens again as the same model."""
    space = Images(1, 4, 4, 2)
    x, _ = clustered(space)
    model = built(space, prior=name, steps=1, learning_rate=0.01)
    assert type(model.prior) is shelf.find(name).cls
    assert model.prior.space in (Tokens(4, 4), Images(1, 2, 2, 4))
    before = {key: value.clone() for key, value in model.prior.state_dict().items()}
    played(model, x, 6)
    after = model.prior.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    shelf.save_pretrained(model, tmp_path)
    again = shelf.from_pretrained(tmp_path)
    assert torch.equal(model.log_prob(x[:4]), again.log_prob(x[:4]))
    first, second = (one.sample(3, generator=seeded()) for one in (model, again))
    assert torch.equal(first, second)


def test_a_prior_that_is_counted_is_counted_on_the_codes():
    """The Rewrite turns of a closed form see codes: its frequencies are those of all encoded data."""
    space = Images(1, 4, 4, 2)
    x, _ = clustered(space)
    settings = {"prior": "independent", "prior.prior_weight": 1e-6}
    model = played(built(space, steps=1, **settings), x, 20)
    codes = model.encode(x)
    own = torch.nn.functional.one_hot(codes, 4).float().mean(0)
    expected = own.gather(1, codes.T).T.log().sum(1)
    torch.testing.assert_close(model.prior.log_prob(codes), expected, rtol=1e-4, atol=1e-4)


def test_a_condition_reaches_the_prior():
    space = Images(1, 4, 4, 2)
    x, which = clustered(space)
    model = built(space, condition=Labels(3), prior="nade", steps=1, prior_share=0.7)
    played(model, x, 120, which)
    assert model.prior.condition_space == Labels(3)
    told = torch.stack([model.log_prob(x, condition=torch.full((len(x),), k)) for k in range(3)])
    assert (told.argmax(0) == which).float().mean() > 0.9


def test_the_prior_s_settings_stand_after_a_dot(tmp_path):
    model = built(Images(1, 6, 6, 2), prior="transformer", **{"prior.width": 8, "prior.heads": 2})
    assert model.prior.config.width == 8
    shelf.save_pretrained(model, tmp_path)
    assert shelf.from_pretrained(tmp_path).prior.config == model.prior.config
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["components"]["prior"]["config"]["width"] == 8
    assert card["parameters"] == sum(one.numel() for one in model.parameters())


def test_a_model_of_images_alone_sees_maps_of_codes():
    model = built(Images(1, 6, 10, 2), prior="pixelcnn", steps=1)
    assert model.prior.space == Images(1, 3, 5, 4)
    noise = row_noise(2, seeded())
    seen = model.coded(Batch(model.space.random(2, seeded())), noise).x
    assert model.prior.space.contains(seen)
    assert torch.equal(seen.flatten(1).long(), model.encode(model.space.random(2, seeded())))


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"prior": "transformer-9000"}, "CFG-121", "not on the shelf"),
        ({"prior": "dcgan"}, "CFG-121", "is no Density"),
        ({"prior": "own", "prior.width": 3}, "CFG-120", "not made of"),
        ({"teacher.width": 3}, "CFG-120", "teacher"),
        ({"prior": "transformer", "prior.depth": 3}, "CFG-033", "depth"),
        ({"head": "gaussian"}, "CFG-035", "head"),
        ({"quantiser": "fsq", "codes": 509}, "CFG-122", "509"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings, code, words):
    with pytest.raises(Refusal, match=words) as refusal:
        built(Images(1, 6, 6, 4), **settings)
    assert refusal.value.code == code


def test_a_prior_may_refuse_codes_itself():
    with pytest.raises(Refusal, match="binary"):
        built(Images(1, 6, 6, 4), prior="rbm")


def test_sequences_have_no_maps_of_codes():
    with pytest.raises(Refusal, match="cannot model sequences") as refusal:
        built(Tokens(11, 6), prior="pixelcnn")
    assert refusal.value.code == "CFG-121"


def test_a_prior_without_labels_is_refused_for_a_conditional_model():
    with pytest.raises(Refusal, match="cannot be conditioned") as refusal:
        built(Images(1, 6, 6, 4), prior="markov-chain", condition=Labels(2))
    assert refusal.value.code == "CFG-121"
    assert "transformer" in refusal.value.way_out


def test_a_prior_has_to_be_handed_over():
    with pytest.raises(Refusal) as refusal:
        VQVAE(Images(1, 6, 6, 4), Config())
    assert refusal.value.code == "CFG-223"


def test_a_prior_of_another_kind_is_refused():
    class Guess(torch.nn.Module):
        kind = Kind.ESTIMATE

    with pytest.raises(Refusal) as refusal:
        VQVAE(Images(1, 6, 6, 4), Config(), prior=Guess())
    assert refusal.value.code == "CFG-124"


def test_another_prior_cannot_be_set_on_a_trained_run(tmp_path):
    shelf.save_pretrained(built(Images(1, 6, 6, 2), prior="transformer"), tmp_path)
    with pytest.raises(Refusal) as refusal:
        shelf.from_pretrained(tmp_path, settings={"prior": "markov-chain"})
    assert refusal.value.code == "CKPT-005"
    card = json.loads((tmp_path / "card.json").read_text())
    card["components"]["prior"]["space"]["vocabulary"] = 5
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(Refusal) as refusal:
        shelf.from_pretrained(tmp_path)
    assert refusal.value.code == "CKPT-002"


def test_the_codebook_starts_at_encoded_data():
    space = Images(1, 8, 8, 4)
    x, _ = clustered(space)
    model = built(space)
    said = model._vectors(x).flatten(0, 1)
    played(model, x, 1)
    assert isinstance(model.quantiser, Codebook)
    distances = torch.cdist(model.quantiser.entries, said)
    assert float(distances.min(1).values.max()) < 1e-3


def test_signals_are_standardised_by_channel():
    space = Series(2, 64, 100)
    x = space.random(200, seeded()) * torch.tensor([[3.0], [0.1]]) + torch.tensor([[5.0], [-1.0]])
    model = played(built(space), x, 5)
    torch.testing.assert_close(model.head.shift[:, 0], x.mean((0, 2)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.head.scale[:, 0], x.std((0, 2)), rtol=1e-3, atol=1e-3)


def test_vectors_are_not_for_convolutions():
    with pytest.raises(Refusal):
        built(Vectors(4))


def test_the_floor_models_signals_too():
    space = Series(2, 9, 100)
    model = shelf.build("independent", space)
    x = 3 * space.random(400, seeded()) + 1
    played(model, x, 1)
    expected = torch.distributions.Normal(x.mean(0), x.std(0, correction=0)).log_prob(x)
    torch.testing.assert_close(model.log_prob(x), expected.sum((1, 2)), rtol=1e-4, atol=1e-3)
    assert space.contains(model.sample(3, generator=seeded()))
    known = torch.zeros(4, *space.shape, dtype=torch.bool)
    known[:, :, :4] = True
    filled = model.complete(x[:4], known, generator=seeded())
    assert torch.equal(filled[known], x[:4][known])
