"""Every measure takes rows in any batches and any order, and says where its numbers come from."""

import itertools
import math

import pytest
import scipy.stats
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from simulacra.contract import Kind
from simulacra.evaluation.annealed import GAP, Annealing
from simulacra.evaluation.anomaly import Detection, area_under_curve, average_precision
from simulacra.evaluation.associations import associations
from simulacra.evaluation.diversity import Diversity
from simulacra.evaluation.downstream import Downstream
from simulacra.evaluation.frechet import INFINITE, NAME, NORMALISED, FrechetDistance
from simulacra.evaluation.inception_score import InceptionScore, inception_score
from simulacra.evaluation.kernel_distance import KernelDistance
from simulacra.evaluation.likelihood import Likelihood
from simulacra.evaluation.manifold import Neighbourhoods
from simulacra.evaluation.measure import Provenance
from simulacra.evaluation.memorisation import COPIES, NEARER, Memorisation
from simulacra.evaluation.modes import Modes
from simulacra.evaluation.ngrams import NGrams
from simulacra.evaluation.prediction import Prediction
from simulacra.evaluation.ruler import MEASURES
from simulacra.evaluation.tables import Columns
from simulacra.probability.annealing import Partition
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Table, Tokens

WHERE = Provenance(split="test", seed=3, features="classifier 0123456789ab")
TABLE = Table((Column("a"), Column("b"), Column("c", "category", ("x", "y", "z"))))
NUMBERS = Table(TABLE.columns[:2])


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of(count, width, seed):
    return torch.randn((count, width), generator=stream(seed), dtype=torch.float64)


def table_rows(count, seed):
    numbers = rows_of(count, 2, seed)
    numbers[:, 1] += numbers[:, 0]
    category = (numbers[:, :1] > 0).double() + torch.randint(2, (count, 1), generator=stream(seed))
    return torch.cat([numbers, category], 1)


def cases():
    x, y, z = rows_of(300, 8, 1), rows_of(240, 8, 2) + 0.3, rows_of(300, 8, 3)
    chances = torch.softmax(3 * rows_of(200, 5, 4), 1)
    words = torch.randint(4, (80, 12), generator=stream(5))
    others = torch.randint(3, (80, 12), generator=stream(6))
    classes = torch.randint(5, (200,), generator=stream(7))
    return {
        "frechet": (FrechetDistance, {"samples": x, "real": y, "other_real": z, "gaussian": 2 * z}),
        "kernel": (KernelDistance, {"samples": x, "real": y, "other_real": z}),
        "manifold": (Neighbourhoods, {"samples": x, "real": y, "other_real": z}),
        "diversity": (Diversity, {"samples": x, "real": y, "other_real": z}),
        "inception": (InceptionScore, {"samples": chances, "real": chances[:50]}),
        "memory": (Memorisation, {"samples": x, "trained": y, "held_out": z}),
        "likelihood": (
            lambda where: Likelihood(Images(1, 2, 2, 4), Kind.EXACT, where),
            {"log_prob": -x[:, 0].exp()},
        ),
        "annealing": (
            lambda where: Annealing(30, where),
            {"upward": x[:, 0], "downward": y[:, 1] + 1},
        ),
        "modes": (lambda where: Modes(5, where), {"samples": classes, "real": classes.flip(0)}),
        "detection": (
            lambda where: Detection("s", where),
            {"strange": x[:, 0], "ordinary": y[:, 1]},
        ),
        "n-grams": (
            lambda where: NGrams(Tokens(12, 4), where),
            {"samples": words, "real": others},
        ),
        "prediction": (
            Prediction,
            {"chances": chances, "labels": chances.argmax(1), "taught": classes},
        ),
        "columns": (
            lambda where: Columns(TABLE, where),
            {"samples": table_rows(150, 8), "real": table_rows(120, 9)},
        ),
        "downstream": (
            lambda where: Downstream(TABLE, where),
            {"samples": table_rows(150, 8), "real": table_rows(120, 9)},
        ),
        "downstream of a number": (
            lambda where: Downstream(NUMBERS, where),
            {"samples": table_rows(150, 8)[:, :2], "real": table_rows(120, 9)[:, :2]},
        ),
    }


ORDERED = {"n-grams", "columns"}
"""Their intervals are bootstrapped by position, so only their values are blind to order."""


@pytest.mark.parametrize("name", cases())
def test_blind_to_batches_and_order(name):
    make, roles = cases()[name]
    whole = make(WHERE).update(**roles).compute()
    parts = make(WHERE)
    for role, rows in roles.items():
        order = rows
        if name not in {"memory", "manifold", "frechet"}:
            order = rows[torch.randperm(len(rows), generator=stream(9))]
        for part in order.split(37):
            parts.update(**{role: part})
    for one, other in zip(whole, parts.compute(), strict=True):
        assert one.name == other.name
        assert one.count == other.count
        assert other.value == pytest.approx(one.value, rel=1e-6, abs=1e-6)
        if one.low is not None and name not in ORDERED:
            assert other.low == pytest.approx(one.low, rel=1e-6, abs=1e-6)
        assert one.seed == 3
        assert one.split == "test"
        assert one.how
        if one.low is not None:
            assert one.low <= one.value <= one.high


def test_every_measure_says_what_it_needs_and_takes():
    for one in MEASURES:
        assert one.ROLES, one
        assert one.__doc__
        assert set(one.REQUIRED) <= set(one.ROLES)
    assert len({one.__name__ for one in MEASURES}) == len(MEASURES)


def test_a_wrong_role_and_missing_rows_are_named():
    with pytest.raises(TypeError, match="samples, real, other_real, not fake"):
        KernelDistance().update(fake=rows_of(3, 2, 0))
    with pytest.raises(Refusal, match="got no real"):
        KernelDistance().update(samples=rows_of(30, 2, 0)).compute()
    with pytest.raises(Refusal, match="kernel distance"):
        FrechetDistance().update(samples=rows_of(15, 8, 0), real=rows_of(99, 8, 1)).compute()


def test_readings_name_the_net_that_saw_the_data():
    make, roles = cases()["kernel"]
    (reading,) = make(WHERE).update(**roles).compute()
    assert reading.features == WHERE.features
    assert WHERE.features in reading.text()


def test_extrapolation_takes_most_of_the_bias_away():
    real = rows_of(20_000, 16, 0)
    found = FrechetDistance().update(samples=rows_of(400, 16, 1), real=real).compute()
    values = {one.name: one.value for one in found}
    assert abs(values[INFINITE]) < 0.35 * values[NAME]


def test_normalised_distance_is_nought_for_real_and_one_for_the_gaussian():
    real, other, control = rows_of(2000, 6, 0), rows_of(500, 6, 1), 2 * rows_of(500, 6, 2)
    for samples, wanted in ((other, 0.0), (control, 1.0)):
        measure = FrechetDistance().update(samples=samples, real=real)
        found = measure.update(other_real=other, gaussian=control).compute()
        value = next(one.value for one in found if one.name == NORMALISED)
        assert value == pytest.approx(wanted, abs=1e-9)


def test_areas_agree_with_scikit_learn():
    strange = torch.randint(9, (120,), generator=stream(1)).double() + 1
    ordinary = torch.randint(9, (300,), generator=stream(2)).double()
    labels = [1] * len(strange) + [0] * len(ordinary)
    scores = torch.cat([strange, ordinary]).numpy()
    area, variance = area_under_curve(strange, ordinary)
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = average_precision_score(labels, scores)
    assert average_precision(strange, ordinary) == pytest.approx(expected, abs=1e-12)
    draws = []
    for seed in range(300):
        one = torch.randint(9, (120,), generator=stream(1000 + seed)).double() + 1
        two = torch.randint(9, (300,), generator=stream(5000 + seed)).double()
        draws.append(area_under_curve(one, two)[0])
    assert math.sqrt(variance) == pytest.approx(float(torch.tensor(draws).std()), rel=0.2)


def test_inception_score_from_one_to_the_number_of_classes():
    sure = torch.eye(7).repeat(10, 1)
    assert inception_score(sure) == pytest.approx(7)
    assert inception_score(torch.full((50, 7), 1 / 7)) == pytest.approx(1)
    assert inception_score(sure[:1].repeat(30, 1)) == pytest.approx(1)


def test_a_memoriser_is_found_and_fresh_data_are_not():
    trained, held_out, fresh = rows_of(500, 20, 0), rows_of(500, 20, 1), rows_of(400, 20, 2)
    copies = trained[:400] + 0.01 * fresh
    for samples, copied, nearer in ((copies, 1.0, 1.0), (fresh, 0.0, 0.5)):
        measure = Memorisation().update(samples=samples, trained=trained, held_out=held_out)
        found = {one.name: one for one in measure.compute()}
        assert found[COPIES].value == pytest.approx(copied, abs=0.01)
        assert found[NEARER].low <= nearer <= found[NEARER].high


def test_copies_of_what_stands_twice_are_found():
    trained = rows_of(100, 4, 0).repeat(2, 1)
    assert Memorisation.copied(trained[:50].float(), trained.float()).all()
    assert not Memorisation.copied(rows_of(50, 4, 1).float(), trained.float()).any()


def test_a_collapsed_set_has_no_diversity():
    real = rows_of(200, 5, 0)
    same = real[:1].repeat(100, 1) + 1e-3 * rows_of(100, 5, 1)
    (found,) = Diversity().update(samples=same, real=real).compute()
    assert found.value < 0.01
    (found,) = Diversity().update(samples=rows_of(200, 5, 2), real=real).compute()
    assert found.low < 1 < found.high


def test_modes_are_counted_and_weighed():
    reference = torch.tensor([0.5, 0.25, 0.25, 0.0])
    samples = torch.tensor([0] * 60 + [1] * 40 + [-1] * 20)
    found = {one.name: one for one in Modes(4, shares=reference).update(samples=samples).compute()}
    assert found["modes reached"].value == 2
    assert found["modes reached"].floor == pytest.approx(3)
    assert found["high-quality samples"].value == pytest.approx(100 / 120)
    expected = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.25)
    assert found["reverse KL of modes"].value == pytest.approx(expected)


@pytest.mark.parametrize("name", cases())
def test_every_reading_has_a_unit_and_a_mark_and_counts_samples_as_samples(name):
    make, roles = cases()[name]
    for one in make(WHERE).update(**roles).compute():
        assert one.unit, one.name
        assert one.kind is not None, one.name
        assert "samples" not in roles or "samples" in one.count, one.name


def test_samples_of_modes_are_not_called_test_data():
    samples = torch.tensor([0, 1, 1, -1])
    told = Modes(2, shares=torch.tensor([0.5, 0.5])).update(samples=samples).compute()
    assert [one.counted for one in told] == ["n = 4 samples", "n = 4 samples", "n = 3 samples"]
    more = Modes(2).update(samples=samples[:3], real=samples[:2]).compute()
    assert {one.counted for one in more} == {"n = 3 samples + 2 real"}


def test_an_estimated_constant_widens_the_interval_and_is_told():
    space, log_prob = Images(1, 2, 2, 2), -rows_of(500, 1, 0)[:, 0].square() - 3
    partition = Partition(rows_of(40, 1, 1)[:, 0] + 7, rows_of(40, 1, 2)[:, 0] + 8.5, 25)
    plain = Likelihood(space, Kind.ESTIMATE).update(log_prob=log_prob).compute()
    unsure = Likelihood(space, Kind.ESTIMATE, partition=partition)
    for one, other in zip(plain, unsure.update(log_prob=log_prob).compute(), strict=True):
        scale = one.value / plain[0].value
        reach, wider = one.high - one.value, other.high - other.value
        assert other.value == one.value
        added = 1.96 * scale * partition.standard_error
        assert wider == pytest.approx(math.hypot(reach, added), rel=1e-3)
        assert other.text().split(": ")[1].startswith("≈")
        assert partition.text() in other.how
        assert "40 chains of 25 temperatures" in other.how
        assert f"{partition.gap:.2f} nats" in other.how


def test_the_gap_covers_what_it_is_made_of():
    upward, downward = rows_of(60, 1, 1)[:, 0], rows_of(90, 1, 2)[:, 0] + 1
    (found,) = Annealing(30).update(upward=upward, downward=downward).compute()
    assert found.name == GAP
    below, above = upward.exp().mean().log(), -(-downward).exp().mean().log()
    assert found.value == pytest.approx(float(above - below))
    assert found.count == {"forward": 60, "reverse": 90}
    assert "30 temperatures" in found.how
    assert found.low < found.value < found.high


def test_perplexity_of_a_uniform_guess_is_the_vocabulary():
    space = Tokens(6, 9)
    log_prob = torch.full((40,), -6 * math.log(9))
    found = Likelihood(space, Kind.EXACT).update(log_prob=log_prob).compute()
    assert found[-1].name == "perplexity"
    assert found[-1].value == pytest.approx(9, rel=1e-6)


def test_equal_tables_have_no_distance_and_broken_pairs_are_seen():
    real = table_rows(2000, 0)
    shuffled = real.clone()
    for column in range(3):
        order = torch.randperm(len(real), generator=stream(column))
        shuffled[:, column] = real[order, column]
    measure = Columns(TABLE)
    assert measure.marginals(real, real) == 0
    assert measure.associations(real, real) == 0
    assert measure.marginals(shuffled, real) == 0
    assert measure.associations(shuffled, real) > 0.3
    assert measure.marginals(real + torch.tensor([1.0, 1.0, 0.0]), real) > 0.2


def test_all_pairs_of_columns_are_looked_at_and_counted():
    """What binds the last two of 30 columns, 435 pairs, counts as much as what binds the first two."""
    names = [f"c{index}" for index in range(30)]
    space = Table(tuple(Column(name) for name in names))
    real = space.random(500, stream(0))
    for pair in ([0, 1], [28, 29]):
        bound = real.clone()
        bound[:, pair[1]] = bound[:, pair[0]]
        measure = Columns(space, Provenance(seed=0))
        assert measure.associations(bound, real) > 1.5 / 435
        reading = measure.update(samples=bound, real=real).compute()[1]
        assert "all 435 pairs of columns" in reading.how


def test_of_very_many_columns_a_random_part_is_looked_at_and_told():
    space = Table(tuple(Column(f"c{index}") for index in range(120)))
    real = space.random(60, stream(0))
    one, again, other = (
        Columns(space, Provenance(seed=seed)).update(samples=real, real=real).compute()[1]
        for seed in (0, 0, 1)
    )
    assert "4,950 of 7,140 pairs of columns, of 100 random ones" in one.how
    assert one == again
    seen = [Columns(space, Provenance(seed=seed))._seen for seed in (0, 0, 1)]
    assert seen[0] == seen[1] != seen[2]
    assert other.how == one.how
    large = tuple(
        Column(f"c{index}", "category", tuple(map(str, range(1000)))) for index in range(30)
    )
    assert 2 <= len(Columns(Table(large))._seen) < 30


def test_associations_of_all_pairs_are_those_of_each_alone():
    letters = ("a", "b", "c", "never")
    columns = (
        Column("n"),
        Column("gaps", missing=True),
        Column("still"),
        *(
            Column(f"k{index}", "category", letters[:count])
            for index, count in enumerate((4, 3, 1))
        ),
    )
    x = Table(columns).random(400, stream(0))
    x[:, 2] = 0.1
    x[:, 3] = torch.where(x[:, 0] > 0, 2.0, x[:, 3].clamp(max=1))
    found = associations(x, columns)
    for one, other in itertools.combinations(range(6), 2):
        pair = associations(x[:, [one, other]], [columns[one], columns[other]])
        assert float(found[one, other]) == pytest.approx(float(pair[0, 1]), abs=1e-12)
    assert torch.equal(found, found.T)
    assert not found[2].any()
    assert found[5].max() < 1e-12
    rows = scipy.stats.spearmanr(x[:, 0], x[:, 1].nan_to_num(nan=-1e9)).statistic
    assert float(found[0, 1]) == pytest.approx(rows, abs=1e-9)
    table = torch.zeros(3, 3).index_put_((x[:, 3].long(), x[:, 4].long()), torch.tensor(1.0), True)
    expected = scipy.stats.contingency.association(table.long().numpy(), method="cramer")
    assert float(found[3, 4]) == pytest.approx(expected, abs=1e-9)
    groups = [x[x[:, 3] == code, 0].double() for code in range(3)]
    between = sum(len(one) * (one.mean() - x[:, 0].double().mean()) ** 2 for one in groups)
    ratio = (between / (x[:, 0].double().var(correction=0) * 400)).sqrt()
    assert float(found[0, 3]) == pytest.approx(float(ratio), abs=1e-6)
