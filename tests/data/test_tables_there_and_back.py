"""Tables as they are written and read again: formulas, signs, and cells without anything."""

import pytest
import torch

from simulacra.data.tables import guarded, read_table, unguarded
from simulacra.refusals import Refusal
from simulacra.runs.using import table_lines
from simulacra.spaces import Column, Table

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
