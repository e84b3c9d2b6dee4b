"""Files are whole or not there, and what is wrong with one is said in a line."""

import errno
import os

import pytest

from simulacra.files import read_json, sha256, write_bytes, write_json
from simulacra.refusals import Refusal, shown


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "deep" / "down" / "one.json"
    write_json(path, {"a": [1, 2.5, "ü"]})
    assert read_json(path) == {"a": [1, 2.5, "ü"]}
    assert [one.name for one in path.parent.iterdir()] == ["one.json"]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "one"
    write_bytes(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refusal, match="no space") as refusal:
        write_bytes(path, b"new and longer")
    assert refusal.value.exit_code == 74
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_litter(tmp_path, monkeypatch):
    def interrupted(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "one", b"x")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Refusal, match="cannot write"):
        write_bytes(tmp_path / "file" / "one", b"x")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    path = tmp_path / "one.json"
    path.write_bytes(content)
    with pytest.raises(Refusal) as refusal:
        read_json(path)
    assert refusal.value.code == "FILE-003"


def test_missing_and_huge_files_are_refused(tmp_path):
    with pytest.raises(Refusal, match="is not there"):
        read_json(tmp_path / "none.json")
    (tmp_path / "big.json").write_bytes(b'{"a": "' + b"x" * 100 + b'"}')
    with pytest.raises(Refusal, match="larger than"):
        read_json(tmp_path / "big.json", largest=50)


def test_numbers_that_json_lacks_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "one.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_sum_is_sha_256():
    assert sha256(b"abc").startswith("ba7816bf8f01cfea")


def test_a_refusal_is_one_line():
    line = Refusal("DATA-001", "two\nlines", way_out="one\tis  enough").line()
    assert line == "error[DATA-001]: two lines: one is enough"
    assert "\x1b" not in shown("\x1b[31mred")
    assert len(shown("x" * 1000)) <= 82
