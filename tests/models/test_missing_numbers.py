"""NADE and MADE of tables whose numbers may be missing: a density over both, and draws that agree."""

import pytest
import torch

from simulacra.contract import Kind
from simulacra.data.dataset import Part, Stream
from simulacra.models.autoregressive.linear_autoregressive import LinearAutoregressive
from simulacra.models.autoregressive.made import MADE
from simulacra.models.autoregressive.nade import NADE
from simulacra.models.flows.maf import MAF
from simulacra.models.flows.realnvp import RealNVP
from simulacra.play import Play
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Table

SPACE = Table((Column("a", missing=True), Column("c", "category", ("x", "y"))))


@pytest.mark.parametrize("model", [NADE, MADE])
def test_missing_or_somewhere_and_drawn_as_often(model):
    draw = torch.Generator().manual_seed(0)
    x = SPACE.random(500, draw)
    x[:, 1] = x[:, 0].isnan().float()
    model = model(SPACE, model.recommend(SPACE, 500))
    play = Play(model, model.game(), seed=0)
    source = Stream(Part(x, torch.arange(500), SPACE), 64, seed=0)
    for _ in play.rounds(source, lambda clock: clock.rounds / 300):
        pass
    model.eval()
    line = torch.linspace(-12, 12, 2401)
    points = torch.cat([line, torch.tensor([torch.nan])])
    shares = []
    for category in (0.0, 1.0):
        rows = torch.stack([points, torch.full_like(points, category)], 1)
        p = model.log_prob(rows).detach().double().exp()
        shares.append((float(p[:-1].sum() * 0.01), float(p[-1])))
    assert sum(map(sum, shares)) == pytest.approx(1, abs=2e-3)
    drawn = model.sample(4000, generator=draw)
    assert SPACE.contains(drawn)
    gone = drawn[:, 0].isnan()
    for category, (_, missing) in enumerate(shares):
        share = float((gone & (drawn[:, 1] == category)).float().mean())
        assert share == pytest.approx(missing, abs=0.03)
    # That they go together was learned.
    assert shares[1][1] > 3 * shares[0][1]


@pytest.mark.parametrize("flow", [MAF, RealNVP])
def test_flows_bound_them(flow):
    space = Table((Column("a", missing=True), Column("b")))
    model = flow(space)
    assert model.kind is Kind.LOWER
    x = model.sample(50, generator=torch.Generator().manual_seed(0))
    assert space.contains(x)
    assert 0 < x[:, 0].isnan().float().mean() < 1
    assert model.log_prob(x).isfinite().all()


def test_a_model_without_a_state_for_them_says_so():
    with pytest.raises(Refusal, match="missing, as in 'a'"):
        LinearAutoregressive(Table((Column("a", missing=True), Column("b"))))
