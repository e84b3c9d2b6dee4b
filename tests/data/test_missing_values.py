"""Missing numbers, marks, and what a trained model has never seen: from a file to a density."""

import itertools
import math

import pytest
import torch

from simulacra.data.open import open_data
from simulacra.data.tables import read_table
from simulacra.evaluation.tables import kolmogorov_smirnov
from simulacra.layers.columns_by_class import ColumnsByClass
from simulacra.layers.heads import ColumnHead
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Table, space_from_json

SPACE = Table((Column("a", missing=True), Column("b"), Column("c", "category", ("x", "y"))))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_missing_cells_and_marks_are_states(tmp_path):
    path = tmp_path / "a.csv"
    marks = itertools.cycle("3123")
    rows = [
        f"{'?' if i % 5 == 0 else i + 0.5},{next(marks)},{'x' if i % 2 else ''}" for i in range(40)
    ]
    path.write_text("size,mark,kind\n" + "\n".join(rows) + "\n")
    raw = read_table(path)
    size, mark, kind = raw.space.columns
    assert size == Column("size", missing=True)
    assert mark.categories == ("1", "2", "3")
    assert kind.categories == ("", "x")
    assert int(raw.rows[:, 0].isnan().sum()) == 8
    assert raw.space.contains(raw.rows)
    assert space_from_json(raw.space.to_json()) == raw.space
    assert raw.space.may_miss == ("size",)


def test_a_file_is_read_as_the_columns_of_a_trained_model(tmp_path):
    (tmp_path / "old.csv").write_text(
        "n,kind\n" + "".join(f"{i}.5,{'uv'[i % 2]}\n" for i in range(30))
    )
    space = read_table(tmp_path / "old.csv").space
    new = tmp_path / "new.csv"
    new.write_text("n,kind\n7,v\n8,w\n9,u\n")
    with pytest.raises(Refusal, match=r"'row 3' .*'w', never seen before, in the column 'kind'"):
        open_data(new, like=space)
    data = open_data(new, like=space, skip_bad=1)
    assert data.space == space
    assert data.everything().all().x.tolist() == [[7.0, 1.0], [9.0, 0.0]]
    new.write_text("n,sort\n7,v\n")
    with pytest.raises(Refusal, match="'sort' where 'kind' should be"):
        open_data(new, like=space)
    new.write_text("n\n7\n")
    with pytest.raises(Refusal, match="1 columns, and the run was trained on 2"):
        open_data(new, like=space)
    new.write_text("n,kind\n,v\n")
    with pytest.raises(Refusal, match="no number in the column 'n'"):
        open_data(new, like=space)


def total(log_prob):
    """The integral over the first column of p(x), and the chance of its being missing, all else equal."""
    line = torch.linspace(-40, 40, 8001)
    x = torch.zeros(len(line) + 1, 3)
    x[:-1, 0], x[-1, 0] = line, torch.nan
    found = log_prob(x).double().exp()
    return float(found[:-1].sum() * (line[1] - line[0]) + found[-1])


def test_a_number_is_missing_or_somewhere():
    columns = ColumnsByClass(SPACE)
    columns.missing.fill_(-0.7)
    assert total(lambda x: columns.log_factors(x)[:, 0, 0]) == pytest.approx(1, abs=1e-3)
    head = ColumnHead(SPACE)
    head.scale.fill_(2.0)
    raw = torch.randn((1, head.outputs), generator=seeded(0))
    without = ColumnHead(Table(SPACE.columns[1:]))
    without.scale.fill_(2.0)
    rest = without.log_prob(torch.zeros(1, 2), raw[:, 2:]).exp()
    assert total(lambda x: head.log_prob(x, raw.expand(len(x), -1))) == pytest.approx(
        float(rest), abs=1e-3
    )
    drawn = head.draw(raw.expand(3000, -1), row_noise(3000, seeded(1)))
    assert SPACE.contains(drawn)
    assert float(drawn[:, 0].isnan().float().mean()) == pytest.approx(
        float(torch.sigmoid(raw[0, 1])), abs=0.03
    )


def test_the_share_of_missing_numbers_is_learned_and_drawn():
    columns = ColumnsByClass(SPACE)
    x = SPACE.random(4000, seeded(0))
    columns.count(iter([(x, torch.zeros(4000, dtype=torch.long))]), 1.0)
    share = float(x[:, 0].isnan().float().mean())
    assert float(torch.sigmoid(columns.missing[0, 0])) == pytest.approx(share, abs=1e-3)
    there = x[~x[:, 0].isnan(), 0]
    assert float(columns.mean[0, 0]) == pytest.approx(float(there.mean()), abs=1e-4)
    drawn = columns.draw(torch.zeros(4000, dtype=torch.long), row_noise(4000, seeded(1)))
    assert SPACE.contains(drawn)
    assert float(drawn[:, 0].isnan().float().mean()) == pytest.approx(share, abs=0.03)


def test_a_missing_number_lies_apart_from_all_others():
    x, y = torch.tensor([1.0, 2.0, math.nan, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert kolmogorov_smirnov(x, x) == 0
    assert kolmogorov_smirnov(x, y) == pytest.approx(0.25)


def test_a_column_of_a_table_may_be_its_labels(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "size,kind,mark\n" + "".join(f"{i}.5,{'uv'[i % 2]},{i % 3}\n" for i in range(60))
    )
    data = open_data(path, label="kind")
    assert [column.name for column in data.space.columns] == ["size", "mark"]
    assert data.labels.names == ("u", "v")
    both = data.everything().all()
    assert both.condition.tolist() == [i % 2 for i in range(60)]
    again = open_data(path, label="kind", like=data.space)
    assert again.space == data.space
    assert torch.equal(again.everything().all().x, both.x)
    with pytest.raises(Refusal, match="no column 'colour'"):
        open_data(path, label="colour")
    with pytest.raises(Refusal, match="numbers of many values"):
        open_data(path, label="size")
    with pytest.raises(Refusal, match="has none"):
        open_data("digits", label="kind")
