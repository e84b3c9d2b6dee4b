"""Tables as they are written and read again: formulas, signs, and cells without anything."""

import pytest
import torch

from simulacra.data.tables import guarded, read_table, unguarded
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
