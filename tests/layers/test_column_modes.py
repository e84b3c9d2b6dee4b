"""Numbers by the mode that they are near: there and back, gaps, spikes, and modes that nothing needs."""

import pytest
import torch

from simulacra.layers.column_modes import MODES, ColumnModes
from simulacra.layers.table_reals import NEVER
from simulacra.probability.noise import BatchNoise
from simulacra.spaces import Column, Table

TABLE = Table(
    (
        Column("two humps"),
        Column("colour", "category", ("red", "green", "blue")),
        Column("gaps", missing=True),
        Column("constant"),
        Column("mostly nothing"),
    )
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(count=4000):
    g = seeded()
    hump = torch.where(torch.rand(count, generator=g) < 0.3, 100.0, -100.0)
    hump = hump + torch.randn(count, generator=g)
    colour = torch.randint(3, (count,), generator=g).float()
    gaps = torch.randn(count, generator=g)
    gaps[torch.rand(count, generator=g) < 0.2] = torch.nan
    nothing = torch.where(
        torch.rand(count, generator=g) < 0.9, 0.0, 7000 * torch.rand(count, generator=g)
    )
    return torch.stack([hump, colour, gaps, torch.full((count,), 7.0), nothing], dim=1)


@pytest.fixture(scope="module")
def fitted():
    part = ColumnModes(TABLE).double()
    part.fit([rows()])
    return part


def test_rows_come_back(fitted):
    x = rows()
    entered = fitted.enter(x, BatchNoise(seeded(), len(x)))
    assert entered.shape == (len(x), fitted.size)
    assert entered.abs().max() <= 1
    back = fitted.leave(entered)
    # What lies further than four deviations from its mode is brought to them.
    apart = (back - x).abs().nan_to_num()
    assert apart[:, :4].max() < 0.5
    assert apart[:, :4].mean() < 1e-3
    assert torch.equal(back[:, 4] == 0, x[:, 4] == 0), "what stands out comes back as it was"
    assert apart[:, 4].mean() < 1
    assert torch.equal(back[:, 3], x[:, 3])
    assert torch.equal(back.isnan(), x.isnan())


def test_humps_are_modes_of_their_own_and_a_constant_has_one(fitted):
    held = [one > NEVER for one in fitted.log_weight]
    kept = fitted.mean[0][held[0]]
    assert float(kept.min()) == pytest.approx(-100, abs=1)
    assert float(kept.max()) == pytest.approx(100, abs=1)
    assert int(held[2].sum()) == 1
    share = fitted.log_frequencies.exp().split(fitted.widths)
    assert float(share[2][MODES]) == pytest.approx(0.2, abs=0.02)
    assert all(float(one.sum()) == pytest.approx(1.0, abs=1e-5) for one in share)


def test_what_a_network_makes_is_a_row_without_modes_that_nothing_needs(fitted):
    raw = torch.randn(500, fitted.size, generator=seeded()).double()
    uniform = torch.rand(500, fitted.width, generator=seeded(1)).double()
    made = fitted.made(raw, uniform)
    numbers = len(fitted.numbers)
    for part in made[:, numbers:].split(fitted.widths, 1):
        torch.testing.assert_close(part.sum(1), torch.ones(500).double())
    never = fitted.log_frequencies <= NEVER
    assert made[:, numbers:][:, never].max() == 0
    assert TABLE.contains(fitted.leave(made))


def test_a_gumbel_softmax_chooses_as_often_as_a_softmax(fitted):
    raw = torch.zeros(20_000, fitted.size).double()
    at = len(fitted.numbers) + fitted.widths[0]
    raw[:, at : at + 3] = torch.tensor([0.0, 1.0, -1.0])
    uniform = torch.rand(20_000, fitted.width, generator=seeded(2)).double()
    chosen = fitted.leave(fitted.made(raw, uniform))[:, 1].long()
    found = torch.bincount(chosen, minlength=3) / 20_000
    expected = torch.softmax(torch.tensor([0.0, 1.0, -1.0]), 0)
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0)


def test_categories_and_gaps_are_counted_on_all_rows():
    """Of more rows than tell the mixtures, six are of a category and nine have a gap."""
    count = 30_000
    x = torch.zeros(count, 2)
    x[:6, 0], x[20:29, 1] = 2, torch.nan
    space = Table((Column("kind", "category", ("a", "b", "c")), Column("gaps", missing=True)))
    part = ColumnModes(space).double()
    part.fit(x.split(7000))
    kinds, gaps = part.log_frequencies.exp().split(part.widths)
    assert kinds[2].item() == pytest.approx(6 / count, rel=0.05)
    assert gaps[MODES].item() == pytest.approx(9 / count, rel=0.05)
    assert gaps.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("times", [1, 3])
def test_one_value_left_beside_those_that_stand_out_is_a_mode_of_its_own(times):
    x = torch.zeros(100, 2)
    x[:40, 0], x[50 : 50 + times, 0] = 3.0, 4.5
    x[:, 1] = torch.nan
    x[7, 1] = 2.0
    part = ColumnModes(Table((Column("spikes"), Column("rare", missing=True)))).double()
    part.fit([x])
    back = part.leave(part.enter(x, BatchNoise(seeded(), len(x))))
    assert torch.equal(back.nan_to_num(), x.nan_to_num())
    assert torch.equal(back.isnan(), x.isnan())
    spikes, rare = part.log_frequencies.exp().split(part.widths)
    assert sorted(spikes.tolist())[-3] == pytest.approx(times / 100, rel=0.1)
    assert float(rare[MODES]) == pytest.approx(0.99, abs=0.01)
