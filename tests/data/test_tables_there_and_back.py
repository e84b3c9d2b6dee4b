"""Tables as they are written and read again: formulas, signs, decimals, and cells without anything."""

import json
import math

import pytest
import torch

from simulacra.data.tables import guarded, read_table, unguarded
from simulacra.evaluation.case import draw
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.runs.using import sample_in_chunks, table_lines
from simulacra.spaces import Column, Table, space_from_json

TEXTS = (
    "",
    "-1",
    "-x",
    "=cmd",
    "'quoted",
    "'=cmd",
    "''@",
    "+1 day",
    "-",
    "+2.5",
    "-1e3",
    "a,b",
    'c"d',
)


def there_and_back(path, x, space):
    path.write_text("\n".join(table_lines(x, space)) + "\n")
    return read_table(path, like=space).rows


def test_every_category_is_read_back_as_it_was(tmp_path):
    column = Column("=name", "category", TEXTS)
    x = torch.arange(len(TEXTS)).float()[:, None]
    assert torch.equal(there_and_back(tmp_path / "one.csv", x, Table((column,))), x)
    last = x.flip(0)
    assert torch.equal(there_and_back(tmp_path / "one.csv", last, Table((column,))), last)
    wide = Table((column, Column("size")))
    both = torch.cat([x, x / 2], 1)
    assert torch.equal(there_and_back(tmp_path / "two.csv", both, wide), both)
    anew = read_table(tmp_path / "two.csv").space.columns[0]
    assert (anew.name, set(anew.categories)) == ("=name", set(TEXTS))


@pytest.mark.parametrize("text", ["", "-1", "+2.5", "-1e3", "'quoted", "it's", "a=b", "1-2"])
def test_what_is_no_formula_is_written_as_it_is(text):
    assert guarded(text) == text


@pytest.mark.parametrize("text", ["=cmd", "@x", "-x", "+1 day", "-", "\t=1", "\r1", "-1+cmd|x"])
def test_formulas_are_harmless_and_come_back(text):
    assert guarded(text) == f"'{text}"
    assert unguarded(guarded(text)) == text
    assert unguarded(guarded(f"'{text}")) == f"'{text}"


def test_a_run_reads_its_own_whole_numbers_and_gaps(tmp_path):
    lines = [
        "change,grade",
        *(f"{index % 4 - 2},{'A' if index % 3 else ''}" for index in range(40)),
    ]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    raw = read_table(tmp_path / "a.csv")
    assert raw.space.columns[0].categories == ("-2", "-1", "0", "1")
    assert list(table_lines(raw.rows, raw.space)) == lines


def read(path, text):
    path.write_text(text)
    return read_table(path)


@pytest.mark.parametrize("blank", ["", '""', " ", "?"])
def test_empty_cells_of_a_single_column_are_missing_numbers(tmp_path, blank):
    raw = read(tmp_path / "a.csv", f"\nh\n1.5\n{blank}\n2.5\n{blank}\n-3.5\n\n \n\n")
    assert raw.space.may_miss == ("h",)
    assert raw.rows[:, 0].isnan().tolist() == [False, True, False, True, False]
    assert raw.survey.notes == []


def test_a_column_may_begin_and_end_with_written_gaps(tmp_path):
    raw = read(tmp_path / "a.csv", 'h\n""\n1.5\n2.5\n""\n')
    assert raw.rows[:, 0].isnan().tolist() == [True, False, False, True]


def test_rows_of_empty_cells_are_missing_but_at_the_end(tmp_path):
    raw = read(tmp_path / "a.csv", "a,b\n1.5,x\n,\n2.5,y\n\n3.5,x\n , \n,\n\n")
    assert raw.rows.nan_to_num(nan=-1).tolist() == [[1.5, 1], [-1, 0], [2.5, 2], [3.5, 1]]
    assert raw.survey.notes == ["lines or rows without anything, which are left out: 3"]
    assert raw.survey.bad == []


def test_blank_lines_are_no_broken_rows_for_a_trained_model(tmp_path):
    text = "a,b\n" + "".join(f"{index}.5,{'xy'[index % 2]}\n" for index in range(30)) + "\n"
    space = read(tmp_path / "a.csv", text).space
    (tmp_path / "b.csv").write_text("a,b\n1.5,x\n\n2.5,y\n")
    assert len(read_table(tmp_path / "b.csv", like=space)) == 2
    others = Table(space.columns[:1])
    (tmp_path / "b.csv").write_text("a,b\n1.5,x\n\n2.5,y\n,\n")
    assert len(read_table(tmp_path / "b.csv", label="b", like=others)) == 2
    (tmp_path / "b.csv").write_text("a,b\n1.5,x\n,\n2.5,y\n")
    with pytest.raises(Refusal, match=r"'row 3' .* no number in the column 'a'"):
        read_table(tmp_path / "b.csv", like=space)


def test_numbers_have_the_decimals_of_their_data(tmp_path):
    lines = [f"{index},{index / 8},{index / 7},{index % 9 / 4 - 1:.2f}0,x" for index in range(40)]
    raw = read(tmp_path / "a.csv", "id,eighth,seventh,quarter,kind\n" + "\n".join(lines) + "\n")
    assert [column.decimals for column in raw.space.columns] == [0, 3, None, 2, None]
    again = space_from_json(json.loads(json.dumps(raw.space.to_json())))
    assert [column.decimals for column in again.columns] == [0, 3, None, 2, None]
    made = torch.tensor([[37.9901161, 1.23456, 1.23456, -0.001, 0], [-0.4, 171.3929, 0.1, 7.1, 0]])
    assert list(table_lines(again.rounded(made), again))[1:] == [
        "38,1.235,1.23456001,0,x",
        "0,171.393,0.100000001,7.1,x",
    ]
    back = there_and_back(tmp_path / "b.csv", again.rounded(made), again)
    assert torch.equal(back, again.rounded(made))
    assert again.contains(again.rounded(made))


def test_what_is_known_keeps_more_decimals_than_its_column():
    column = Column("a", decimals=0)
    assert [column.text(value) for value in (37.5, 38.0, 1.6e9)] == ["37.5", "38", "1600000000"]
    assert Column("a", missing=True, decimals=1).text(math.nan) == "nan"


def test_columns_of_older_runs_are_left_as_they_were(tmp_path):
    raw = read(tmp_path / "a.csv", "a,b\n" + "".join(f"{index},{index}.5\n" for index in range(40)))
    card = raw.space.to_json()
    for column in card["columns"]:
        del column["decimals"]
    old = space_from_json(card)
    assert old == raw.space, "decimals make no other space"
    x = torch.tensor([[37.9901161, 1.23456]])
    assert torch.equal(old.rounded(x), x)
    assert list(table_lines(x, old))[1:] == ["37.9901161,1.23456001"]


def test_missing_numbers_stay_missing_when_they_are_rounded():
    space = Table((Column("a", missing=True, decimals=1), Column("b", "category", ("u", "v"))))
    x = torch.tensor([[math.nan, 1.0], [0.26, 0.0]])
    assert space.rounded(x).nan_to_num(nan=-1).flatten().tolist() == pytest.approx([-1, 1, 0.3, 0])


def test_numbers_that_become_the_same_in_32_bits_are_told(tmp_path):
    path = tmp_path / "big.csv"
    path.write_text("stamp,h\n" + "".join(f"{1_700_000_000 + 7 * i},{i / 7}\n" for i in range(300)))
    (note,) = read_table(path).survey.notes
    assert "of the column 'stamp' become" in note
    assert "subtract a constant" in note
    assert "'h'" not in note
    path.write_text("stamp,h\n" + "".join(f"{7 * i},{i / 7}\n" for i in range(300)))
    raw = read_table(path)
    assert raw.space.columns[0].decimals == 0
    assert raw.survey.notes == []


def test_samples_that_are_written_and_judged_are_rounded():
    space = Table((Column("a", decimals=0), Column("b")))

    class Numbers:
        condition_space = None

        def sample(self, count, *, condition=None, generator=None):
            return 30 * torch.rand((count, 2), generator=generator)

    model = Numbers()
    model.space = space
    made = sample_in_chunks(model, 50, torch.Generator().manual_seed(0))
    nothing = Batch(torch.zeros(1, 2))
    judged = draw(model, 50, space=space, train=nothing, seed=0, seconds=9.0).x
    for x in (made, judged):
        assert torch.equal(x[:, 0], x[:, 0].round())
        assert not torch.equal(x[:, 1], x[:, 1].round())
