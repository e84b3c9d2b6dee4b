"""Arrays, tables and text: what each gives, and one clear line for what cannot be read."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

from simulacra.data import raw as raw_module
from simulacra.data.arrays import read_array, read_idx
from simulacra.data.open import open_data
from simulacra.data.tables import read_table
from simulacra.data.text import read_text, texts
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Series, Table, Tokens, Vectors


def idx(array):
    kinds = {"uint8": 8, "int32": 12, "float32": 13}
    head = struct.pack(">BBBB", 0, 0, kinds[str(array.dtype)], array.ndim)
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return head + shape + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize(
    ("shape", "kind", "space"),
    [
        ((5, 4, 6), np.uint8, Images(1, 4, 6)),
        ((5, 4, 6, 3), np.uint8, Images(3, 4, 6)),
        ((5, 3, 4, 6), np.uint8, Images(3, 4, 6)),
        ((5, 4, 6), bool, Images(1, 4, 6, 2)),
        ((5, 4, 6), np.uint16, Images(1, 4, 6, 65536)),
        ((5, 4, 6), np.int64, Images(1, 4, 6)),
        ((5, 7), np.float64, Vectors(7)),
        ((5, 7), np.int32, Vectors(7)),
        ((5, 2, 9), np.float32, Series(2, 9)),
    ],
)
def test_shapes_say_what_an_array_is(tmp_path, shape, kind, space):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    np.save(tmp_path / "a.npy", array)
    raw = read_array(tmp_path / "a.npy")
    assert raw.space == space
    assert space.contains(torch.as_tensor(raw.rows))


def test_npz_holds_labels_beside_the_data(tmp_path):
    x, y = np.zeros((4, 3, 3), np.uint8), np.array([3, 10, 3, 7])
    np.savez(tmp_path / "a.npz", x=x, y=y, other=y)
    raw = read_array(tmp_path / "a.npz")
    assert raw.label_names == ("3", "7", "10")
    assert raw.labels.tolist() == [0, 2, 0, 1]
    assert raw.survey.notes == ["not used: the arrays other"]
    np.savez(tmp_path / "t.npz", tokens=np.array([[0, 4], [2, 1]]))
    assert read_array(tmp_path / "t.npz").space == Tokens(2, 5)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(5), "shape"),
        (np.zeros((0, 5)), "shape"),
        (np.array([[1.0, np.nan]]), "row 0 .* not finite"),
        (np.full((2, 3, 3), -1), "from -1"),
        (np.zeros((2, 3, 4, 4)), "images are integers"),
        (np.zeros((2, 9, 5, 5), np.uint8), "integers of shape"),
        (np.zeros((2, 3), complex), "complex"),
    ],
)
def test_arrays_that_mean_nothing_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(Refusal, match=reason):
        read_array(tmp_path / "a.npy")


def test_pickles_are_never_opened(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "hatched"), "w"))

    np.save(tmp_path / "a.npy", np.array([Canary()], object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Canary()))
    np.savez(tmp_path / "c.npz", x=np.zeros(1))
    np.savez(tmp_path / "d.npz", x=np.array([Canary()], object))
    for name in ("a.npy", "b.npy", "d.npz"):
        with pytest.raises(Refusal, match="cannot be read"):
            read_array(tmp_path / name)
    assert not (tmp_path / "hatched").exists()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "int32", "float32"])
def test_idx_files_come_out_as_they_were(tmp_path, packed, kind):
    array = np.random.default_rng(0).integers(0, 200, (3, 4, 5)).astype(kind)
    path = tmp_path / ("a.idx.gz" if packed else "a.idx")
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    assert np.array_equal(read_idx(path), array)


def test_damaged_idx_files_are_refused(tmp_path):
    good = idx(np.zeros((3, 4, 5), np.uint8))
    lying = good[:4] + struct.pack(">I", 1 << 30) + good[8:]
    for name, content in {
        "short.idx": good[:-1],
        "long.idx": good + b"x",
        "magic.idx": b"PK" + good[2:],
        "lying.idx": lying,
        "lying.idx.gz": gzip.compress(lying),
        "short.idx.gz": gzip.compress(good[:-1]),
        "long.idx.gz": gzip.compress(good + b"x"),
        "cut.idx.gz": gzip.compress(good)[:-6],
        "head.idx": good[:6],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Refusal, match="cannot be read") as refused:
            read_array(tmp_path / name)
        assert refused.value.exit_code == 65


def test_rows_beyond_memory_stay_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMULACRA_CACHE", str(tmp_path / "cache"))
    array = np.random.default_rng(0).integers(0, 256, (50, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "b.idx.gz").write_bytes(gzip.compress(idx(array)))
    small = open_data(tmp_path / "a.npy")
    monkeypatch.setattr(raw_module, "memory_limit", lambda: 1000)
    for name in ("a.npy", "b.idx.gz"):
        large = open_data(tmp_path / name)
        assert isinstance(large.train.rows, np.ndarray)
        assert large.fingerprint == small.fingerprint
        for part in ("train", "valid", "test"):
            assert torch.equal(getattr(large, part).all().x, getattr(small, part).all().x)
    assert not list((tmp_path / "cache").iterdir())


def test_tables_tell_numbers_from_texts(tmp_path):
    (tmp_path / "a.csv").write_text("size,colour\n1.5,red\n-2,blue\n3e2,red\n")
    raw = read_table(tmp_path / "a.csv")
    assert raw.space == Table((Column("size"), Column("colour", "category", ("blue", "red"))))
    assert raw.rows.tolist() == [[1.5, 1.0], [-2.0, 0.0], [300.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,2\n3,4\n", ["column 0", "column 1"]),
        ("a;b\n1;2\n", ["a", "b"]),
        ("a\tb\n1\t2\n", ["a", "b"]),
        ('a,a,\n1,"2",3\n', ["a", "a'", "column 2"]),
        ("\ufeffa,b\n1,2\n\n", ["a", "b"]),
        ("x,y\nred,blue\n", ["x", "y"]),
    ],
)
def test_headers_and_delimiters(tmp_path, text, names):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    space = read_table(tmp_path / "a.csv").space
    assert [column.name for column in space.columns] == names


def test_broken_rows_are_named_by_row_and_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1.5,2.5\n3,-inf\n4,5,6\n7,8\n9,inf\n")
    with pytest.raises(Refusal, match=r"'row 3' .* not finite in the column 'b'"):
        read_table(path)
    raw = read_table(path, skip_bad=3)
    assert raw.rows.tolist() == [[1.5, 2.5], [7, 8]]
    assert "'row 4'" not in str(raw.survey.bad[0])
    assert len(raw.survey.bad) == 3


def test_tables_that_cannot_be_read(tmp_path):
    for name, content in {"empty.csv": b"", "bytes.csv": b"a,b\n\xff\xfe,1\n"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Refusal):
            read_table(tmp_path / name)
    lines = "name,size\n" + "".join(f"n{index},{index}\n" for index in range(1500))
    (tmp_path / "names.csv").write_text(lines)
    with pytest.raises(Refusal, match=r"'name' .* more than 1000 different texts"):
        read_table(tmp_path / "names.csv")


def test_parquet_gives_what_csv_gives(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table({"size": [1.5, -2.0, 300.0], "colour": ["red", "blue", "red"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("size,colour\n1.5,red\n-2,blue\n3e2,red\n")
    one, other = read_table(tmp_path / "a.parquet"), read_table(tmp_path / "a.csv")
    assert one.space == other.space
    assert torch.equal(one.rows, other.rows)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(Refusal, match="cannot be read as Parquet"):
        read_table(tmp_path / "b.parquet")


def test_text_is_cut_into_pieces_in_order(tmp_path):
    text = "the quick brown fox jumps over the lazy dog. " * 40
    (tmp_path / "a.txt").write_text(text)
    raw = read_text(tmp_path / "a.txt", length=10)
    assert raw.space == Tokens(10, len(set(text)), "".join(sorted(set(text))))
    assert "".join(texts(raw.rows, raw.space)) == text
    data = open_data(tmp_path / "a.txt", size=10)
    assert max(data.train.index) < min(data.valid.index) < min(data.test.index)
    with pytest.raises(Refusal, match="less than one piece"):
        open_data(tmp_path / "a.txt", size=5000)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refusal, match="no UTF-8"):
        read_text(tmp_path / "b.txt")


def test_another_text_is_read_with_the_letters_that_a_model_knows(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 100)
    (tmp_path / "b.txt").write_text("bd" * 100)
    (tmp_path / "c.txt").write_text("abxy" * 100)
    space = open_data(tmp_path / "a.txt", size=8).space
    again = open_data(tmp_path / "b.txt", like=space)
    assert again.space == space
    assert texts(again.test.first(1).x, space) == ["bdbdbdbd"]
    assert open_data(tmp_path / "c.txt", size=8).space != space
    with pytest.raises(Refusal, match="'xy', which the run has never seen"):
        open_data(tmp_path / "c.txt", like=space)
    with pytest.raises(Refusal, match="an alphabet of 2 for 3 tokens"):
        Tokens(8, 3, "ab")


def test_text_of_many_letters_is_read_and_written_as_bytes(tmp_path):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 600)))
    (tmp_path / "a.txt").write_text(text)
    raw = read_text(tmp_path / "a.txt", length=9)
    assert raw.space == Tokens(9, 256, utf8=True)
    assert "".join(texts(raw.rows, raw.space)) == text
    assert read_text(tmp_path / "a.txt", like=raw.space).space == raw.space
    (tmp_path / "b.txt").write_text("plain letters " * 10)
    assert read_text(tmp_path / "b.txt", like=raw.space).space == raw.space


def test_what_is_not_there_or_of_no_kind(tmp_path):
    with pytest.raises(Refusal, match="is not there"):
        open_data(tmp_path / "nothing")
    (tmp_path / "a.docx").write_text("")
    with pytest.raises(Refusal, match="of no kind"):
        open_data(tmp_path / "a.docx")
