"""Autoencoder: its forms against autograd, closed forms and principal components, on every space."""

import math

import pytest
import torch

from simulacra.contract import Density, Sampler, require_capability
from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.layers.rebuilding import Rebuilding
from simulacra.models.latent.autoencoder import Autoencoder, Config
from simulacra.play import Play
from simulacra.probability.noise import BatchNoise
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Table, Tokens, Vectors

MIXED = Table(
    (
        Column("a"),
        Column("b", "category", ("x", "y", "z")),
        Column("c", missing=True),
        Column("d", "category", ("u", "v")),
    )
)
SPACES = [Images(1, 3, 3, 2), Images(3, 4, 5, 256), Vectors(3), Tokens(4, 6), MIXED]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(rows, seed=0):
    return BatchNoise(seeded(seed), rows)


def jacobians(model, numbers):
    """The whole Jacobian of the code for each row, by autograd."""
    function = torch.autograd.functional.jacobian
    return torch.stack([function(lambda one: model._encoded(one[None])[0], row) for row in numbers])


def squared_norms(model, numbers):
    return jacobians(model, numbers).square().flatten(1).sum(1)


def test_it_promises_no_likelihood_and_no_samples():
    model = Autoencoder.toy()
    assert not hasattr(model, "log_prob")
    for one in (Density, Sampler):
        with pytest.raises(Refusal, match="Encoder, Decoder, Scorer, Diagnosable"):
            require_capability(model, one, to="do it")


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_space_has_codes_and_comes_back(space):
    model = Autoencoder(space, Config(hidden=(8,), code=2, corruption_level=0.3)).eval()
    x = space.random(7, seeded())
    assert model.code_space.contains(model.encode(x))
    assert space.contains(model.decode(model.encode(x)))
    loss = model.rebuilding_loss(Batch(x), noise(7), Clock())
    assert torch.isfinite(loss.value)
    assert torch.isfinite(model.anomaly_score(x)).all()
    assert all(math.isfinite(value) for value in model.diagnose(x).values())


@pytest.mark.parametrize("side", [8, 13, 28])
def test_convolutions_fit_all_sides(side):
    space = Images(2, side, side + 1, 4)
    config = Config(network="convolutional", code=3, channels=4, contraction_weight=0.1)
    model = Autoencoder(space, config)
    x = space.random(2, seeded())
    assert model.decode(model.encode(x)).shape == x.shape
    assert torch.isfinite(model.rebuilding_loss(Batch(x), noise(2), Clock()).value)


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
def test_the_penalty_of_a_single_layer_is_autograds_jacobian(activation):
    config = Config(hidden=(), code=4, activation=activation, contraction_weight=1.0)
    model = Autoencoder(Images(1, 3, 4, 9), config).double()
    numbers = model.door.numbers(model.space.random(5, seeded()))
    expected = squared_norms(model, numbers)
    assert float(expected.std()) > 0 or activation == "linear"
    found = model.contraction(numbers, noise(5))
    torch.testing.assert_close(found, expected.mean())
    torch.testing.assert_close(model._whole_jacobian(numbers), expected)


def test_random_signs_expect_the_whole_jacobian():
    config = Config(hidden=(9,), code=4, probes=4000, contraction_weight=1.0)
    model = Autoencoder(Images(1, 3, 3, 9), config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    numbers = model.door.numbers(model.space.random(3, seeded()))
    jacobian = jacobians(model, numbers)
    expected = squared_norms(model, numbers).mean()
    # Var ||v' J||^2 = 2 sum_{j != k} (J J')_jk^2 for random signs.
    gram = jacobian @ jacobian.mT
    off = gram.square().sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).square().sum(1)
    spread = float((2 * off).mean().sqrt()) / (3 * 4000) ** 0.5
    found = float(model.contraction(numbers, noise(3)))
    assert found == pytest.approx(float(expected), abs=5 * spread)
    assert 5 * spread < 0.1 * float(expected), "the test could not fail"


def test_the_penalty_has_the_gradient_of_the_jacobian():
    """One code number: v is a sign, its square 1, and the estimate exact, gradients and all."""
    model = Autoencoder(Images(1, 2, 3, 9), Config(hidden=(5,), code=1)).double()
    numbers = model.door.numbers(model.space.random(4, seeded()))
    encoder = list(model.encoder.parameters())
    found = torch.autograd.grad(model.contraction(numbers, noise(4)), encoder, allow_unused=True)
    step = 1e-6
    for parameter, gradient in zip(encoder[:2], found[:2], strict=True):
        place = (0,) * parameter.ndim
        told = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[place] += sign * step
                told.append(float(squared_norms(model, numbers).mean()))
                parameter[place] -= sign * step
        assert float(gradient[place]) == pytest.approx((told[0] - told[1]) / (2 * step), rel=1e-4)


def test_corruption_is_explicit():
    x = Images(1, 8, 8, 5).random(200, seeded()).clamp(min=1)
    clean = Autoencoder(Images(1, 8, 8, 5), Config(hidden=(4,), code=2))
    numbers = clean.door.numbers(x)
    assert torch.equal(clean.corrupted(numbers, noise(200)), numbers)
    masked = Autoencoder(clean.space, Config(hidden=(4,), code=2, corruption_level=0.3))
    spoilt = masked.corrupted(numbers, noise(200))
    assert torch.equal(spoilt, masked.corrupted(numbers, noise(200)))
    assert not torch.equal(spoilt, masked.corrupted(numbers, noise(200, seed=1)))
    kept = spoilt != 0
    assert torch.equal(spoilt[kept], numbers[kept])
    assert float(kept.double().mean()) == pytest.approx(0.7, abs=0.02)
    blurred = Autoencoder(
        clean.space, Config(hidden=(4,), code=2, corruption="gaussian", corruption_level=0.3)
    )
    away = blurred.corrupted(numbers, noise(200)) - numbers
    assert float(away.std()) == pytest.approx(0.3, rel=0.03)
    assert float(away.mean()) == pytest.approx(0, abs=0.02)


def test_a_category_is_masked_as_a_whole():
    model = Autoencoder(MIXED, Config(hidden=(4,), code=2, corruption_level=0.5))
    x = MIXED.random(300, seeded())
    ones = model.corrupted(model.door.numbers(x), noise(300))[:, 3:6].sum(1)
    assert set(ones.tolist()) == {0.0, 1.0}


def test_the_error_is_of_the_clean_datum():
    """A decoder that says the same of everything has the same error, whatever the encoder reads."""
    losses = []
    for level in (0.0, 0.9):
        model = Autoencoder(Images(1, 4, 4, 5), Config(hidden=(4,), code=2, corruption_level=level))
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                parameter.zero_()
        x = model.space.random(9, seeded())
        losses.append(model.rebuilding_loss(Batch(x), noise(9), Clock()).value.item())
    assert losses[0] == losses[1]
    expected = (x.double() / 4 - 0.5).square().sum((1, 2, 3)).mean() / 16
    assert losses[0] == pytest.approx(float(expected), rel=1e-6)


def test_sparsity_in_both_forms():
    code = torch.rand(50, 3, generator=seeded()).double()
    plain = Autoencoder(Vectors(4), Config(hidden=(), code=3))
    assert float(plain.sparsity(-code)) == pytest.approx(float(code.sum(1).mean()))
    model = Autoencoder(
        Vectors(4),
        Config(hidden=(), code=3, activation="sigmoid", sparsity="kl", sparsity_target=0.2),
    )
    mean = code.mean(0)
    coin = [torch.distributions.Bernoulli(one) for one in (torch.full((3,), 0.2).double(), mean)]
    expected = torch.distributions.kl_divergence(*coin).sum()
    torch.testing.assert_close(model.sparsity(code), expected)
    assert float(model.sparsity(torch.full((5, 3), 0.2))) == pytest.approx(0, abs=1e-6)


def played(model, x, rounds):
    part = Part(x, torch.arange(len(x)), model.space)
    stream = Stream(part, model.config.batch_size, seed=0)
    play = Play(model, model.game(), seed=0)
    for report in play.rounds(stream, lambda clock: clock.rounds / rounds):
        assert not report.skipped
    return play


def test_a_linear_one_finds_the_principal_components():
    """Without hidden layers on vectors the least error is that of PCA (Bourlard & Kamp 1988)."""
    x = torch.randn(400, 2, generator=seeded()) @ torch.randn(2, 5, generator=seeded(1))
    x = x + 0.2 * torch.randn(400, 5, generator=seeded(2)) + 3
    model = Autoencoder(Vectors(5), Config(hidden=(), code=2, batch_size=100, learning_rate=0.03))
    play = played(model, x, 900)
    centred = x.double() - x.double().mean(0)
    least = torch.linalg.svdvals(centred)[2:].square().sum() / len(x)
    with play.averaged():
        again = model.decode(model.encode(x))
    found = (again - x).double().square().sum(1).mean()
    assert float(least) <= float(found) * (1 + 1e-6)
    assert float(found) == pytest.approx(float(least), rel=0.05)


def test_the_error_of_what_is_strange_is_larger():
    x = torch.zeros(300, 1, 4, 4, dtype=torch.uint8)
    rows = torch.randint(4, (300,), generator=seeded())
    x[torch.arange(300), 0, rows] = 4
    model = Autoencoder(
        Images(1, 4, 4, 5), Config(hidden=(16,), code=2, batch_size=50, learning_rate=0.01)
    )
    with played(model, x, 200).averaged():
        assert model.anomaly_score(x).max() < model.anomaly_score(x.transpose(2, 3)).min()


@pytest.mark.parametrize(
    ("space", "settings", "code"),
    [
        (Vectors(3), {"network": "convolutional"}, "CFG-165"),
        (Vectors(3), {"sparsity": "kl", "sparsity_weight": 1.0}, "CFG-166"),
        (Vectors(3), {"sparsity_target": 1.0}, "CFG-167"),
        (Vectors(3), {"code": 0}, "CFG-168"),
    ],
)
def test_contradictions_are_refused(space, settings, code):
    with pytest.raises(Refusal) as refusal:
        Autoencoder(space, Config(**settings))
    assert refusal.value.code == code


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_numbers_lead_back_to_their_elements(space):
    door = Rebuilding(space)
    x = space.random(50, seeded())
    door.fit(iter([x[:20], x[20:]]))
    numbers = door.numbers(x)
    assert numbers.shape == (50, door.reads)
    torch.testing.assert_close(
        door.elements(numbers), x, equal_nan=True, rtol=1e-5, atol=1e-6, check_dtype=True
    )
    assert not door.errors(numbers, numbers, "squared").any()


def test_errors_of_a_table_against_a_count_by_hand():
    door = Rebuilding(MIXED)
    x = torch.tensor([[1.0, 2.0, torch.nan, 0.0], [0.0, 0.0, 2.0, 1.0]])
    assert door.numbers(x).tolist() == [[1, 0, 1, 0, 0, 1, 1, 0], [0, 2, 0, 1, 0, 0, 0, 1]]
    told = door.rebuilt(torch.tensor([[3.0, 9.0, 0.0, 0, 0, 0, 0, 0]]).expand(2, -1))
    # A value that is missing cannot be missed; whether it is missing can.
    thirds, halves = 2 / 9 + 4 / 9, 0.5
    by_hand = [4 + 0.25 + thirds + halves, 9 + 49 + 0.25 + thirds + halves]
    found = door.errors(door.numbers(x), told, "squared")
    assert found.tolist() == pytest.approx(by_hand)
    absolute = [2 + 0.5 + 4 / 3 + 1, 3 + 7 + 0.5 + 4 / 3 + 1]
    assert door.errors(door.numbers(x), told, "absolute").tolist() == pytest.approx(absolute)


def test_scores_do_not_depend_on_their_neighbours():
    model = Autoencoder.toy().eval()
    x = model.space.random(9, seeded())
    assert torch.allclose(model.anomaly_score(x)[:4], model.anomaly_score(x[:4]), atol=1e-6)
