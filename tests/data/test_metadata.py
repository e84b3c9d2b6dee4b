"""What images go with: metadata beside them, and the captioned digits."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from simulacra.data.captions import COLOURS, DIGITS
from simulacra.data.named import read_named
from simulacra.data.open import open_data
from simulacra.data.text import texts
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Table, Tokens

LINES = [
    {"file_name": f"{i}.png", "text": f"a {c} thing", "colour": c, "weight": str(i / 3)}
    for i, c in enumerate(["red", "blue", "green"] * 8)
]


def folder(path, lines=LINES, form="csv", name="metadata"):
    path.mkdir()
    for index, line in enumerate(lines):
        Image.fromarray(np.full((4, 5), index, np.uint8)).save(path / line["file_name"])
    write(path, lines, form, name)
    return path


def write(path, lines, form="csv", name="metadata"):
    columns = list(lines[0])
    if form == "jsonl":
        content = "\n".join(json.dumps(line) for line in lines)
    else:
        rows = [",".join(columns), *(",".join(line[one] for one in columns) for line in lines)]
        content = "\n".join(rows)
    (path / f"{name}.{form}").write_text(content)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_captions_are_read_as_texts(tmp_path, form):
    data = open_data(folder(tmp_path / "set", form=form))
    assert data.condition == Tokens(13, len(set(" abdeghilnrtu")), " abdeghilnrtu")
    assert data.labels is None
    batch = data.everything().all()
    for x, caption in zip(batch.x, texts(batch.condition, data.condition), strict=True):
        assert caption.strip() == LINES[int(x[0, 0, 0])]["text"]


def test_columns_are_classes_attributes_or_numbers(tmp_path):
    path = folder(tmp_path / "set")
    data = open_data(path, label="colour")
    assert data.labels == data.condition == Labels(3, ("blue", "green", "red"))
    table = open_data(path, label="weight, colour").condition
    assert isinstance(table, Table)
    assert [(one.name, one.kind) for one in table.columns] == [
        ("weight", "real"),
        ("colour", "category"),
    ]
    assert isinstance(open_data(path, label="weight").condition, Table)
    with pytest.raises(Refusal, match="no column 'size'"):
        open_data(path, label="size")


def test_a_column_may_name_other_images(tmp_path):
    lines = [{"file_name": f"{i}.png", "sketch": f"sketches/{i}.png"} for i in range(20)]
    path = folder(tmp_path / "set", lines)
    (path / "sketches").mkdir()
    for index in range(20):
        Image.fromarray(np.full((2, 2), 200 - index, np.uint8)).save(
            path / "sketches" / f"{index}.png"
        )
    data = open_data(path)
    assert data.condition == Images(1, 2, 2)
    batch = data.everything().all()
    assert len(batch) == 20  # sketches are no data of their own
    assert (batch.condition[:, 0, 0, 0].long() == 200 - batch.x[:, 0, 0, 0].long()).all()
    write(path, [line | {"size": "3"} for line in lines])
    assert open_data(path).condition == Labels(1, ("3",))  # files only where nothing else is there
    assert open_data(path, label="sketch").condition == Images(1, 2, 2)
    lines[3]["sketch"] = "nowhere.png"
    write(path, lines)
    assert isinstance(open_data(path).condition, Labels | Tokens | Table)


def test_a_zip_gives_what_its_folder_gives(tmp_path):
    path = folder(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for one in path.iterdir():
            archive.write(one, one.relative_to(tmp_path))
    plain, packed = open_data(path), open_data(tmp_path / "set.zip")
    assert packed.condition == plain.condition
    assert torch.equal(packed.train.all().condition, plain.train.all().condition)


def test_captions_tell_data_apart(tmp_path):
    first = open_data(folder(tmp_path / "a"))
    other = [line | {"text": "a blue thing"} for line in LINES]
    second = open_data(folder(tmp_path / "b", other))
    assert first.fingerprint != second.fingerprint


def test_other_data_are_read_as_those_of_a_run(tmp_path):
    data = open_data(folder(tmp_path / "a"))
    few = [line | {"text": "red"} for line in LINES]
    path = folder(tmp_path / "b", few)
    again = open_data(path, like_condition=data.condition)
    assert again.condition == data.condition
    assert texts(again.train.first(1).condition, data.condition) == ["red          "]
    write(path, [line | {"text": "a pink thing"} for line in LINES])
    with pytest.raises(Refusal, match="'kp', which the run has never seen"):
        open_data(path, like_condition=data.condition)
    write(path, [line | {"text": "a red red red thing"} for line in LINES])
    with pytest.raises(Refusal, match="of 19 characters"):
        open_data(path, like_condition=data.condition)
    labels = Labels(2, ("blue", "red"))
    with pytest.raises(Refusal, match="'green', which the run has never seen"):
        open_data(path, label="colour", like_condition=labels)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file_name,text\n0.png", "not as many cells"),
        ("file_name\n0.png", "no column but file_name"),
        ("file_name,text\nx.png,a", "names none of its"),
        ("file_name,text\n,a", "no file_name in line 2"),
        (b"\xff\xfe", "cannot be read"),
        ("file_name,text\n0.png," + "x " * 149 + "xx", "a caption of 300 characters"),
    ],
)
def test_broken_metadata_are_refused(tmp_path, content, said):
    path = folder(tmp_path / "set")
    content = content if isinstance(content, bytes) else content.encode()
    (path / "metadata.csv").write_bytes(content)
    with pytest.raises(Refusal, match=said):
        open_data(path)


def test_a_label_of_a_folder_needs_metadata(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(Refusal, match=r"has no metadata\.csv"):
        open_data(tmp_path, label="text")


def test_captions_say_what_the_digits_show():
    raw = read_named("captioned-digits")
    space, base = raw.condition_space, read_named("digits")
    assert raw.space == Images(3, 8, 8)
    which = np.arange(0, len(raw), 997)
    words = [line.split() for line in texts(raw.conditions[which], space)]
    for index, x, (article, ink, digit, on, ground) in zip(
        which, raw.rows[which], words, strict=True
    ):
        assert (article == "an") == (ink == "orange")
        assert (on, ink != ground) == ("on", True)
        source = base.rows[raw.rows.picks[index], 0].numpy()
        assert DIGITS[base.labels[raw.rows.picks[index]]] == digit
        assert (x[:, source == 16] == np.array(COLOURS[ink])[:, None]).all()
        assert (x[:, source == 0] == np.array(COLOURS[ground])[:, None]).all()


def test_no_digit_is_in_two_parts():
    raw = read_named("captioned-digits")
    parts = [set(raw.rows.picks[(raw.given == part).numpy()].tolist()) for part in range(3)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
