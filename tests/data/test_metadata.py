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
    data = open_data(folder(tmp_path / "set", form=form), conditional=True)
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
    data = open_data(path, conditional=True)
    assert data.condition == Images(1, 2, 2)
    batch = data.everything().all()
    assert len(batch) == 20  # sketches are no data of their own
    assert (batch.condition[:, 0, 0, 0].long() == 200 - batch.x[:, 0, 0, 0].long()).all()
    write(path, [line | {"size": "3"} for line in lines])
    # Columns that name files are taken only where nothing else is there.
    assert open_data(path, conditional=True).condition == Labels(1, ("3",))
    assert open_data(path, label="sketch").condition == Images(1, 2, 2)
    (path / "sketches" / "3.png").unlink()
    for cell in ("nowhere.png", ""):
        lines[3]["sketch"] = cell
        write(path, lines)
        with pytest.raises(Refusal, match=r"3\.png' goes with .*, and there is no such image"):
            open_data(path, label="sketch")


def test_a_zip_gives_what_its_folder_gives(tmp_path):
    path = folder(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for one in path.iterdir():
            archive.write(one, one.relative_to(tmp_path))
    plain, packed = (open_data(one, conditional=True) for one in (path, tmp_path / "set.zip"))
    assert packed.condition == plain.condition
    assert torch.equal(packed.train.all().condition, plain.train.all().condition)


def test_captions_tell_data_apart(tmp_path):
    first = open_data(folder(tmp_path / "a"), conditional=True)
    other = [line | {"text": "a blue thing"} for line in LINES]
    second = open_data(folder(tmp_path / "b", other), conditional=True)
    assert first.fingerprint != second.fingerprint


def test_other_data_are_read_as_those_of_a_run(tmp_path):
    data = open_data(folder(tmp_path / "a"), conditional=True)
    few = [line | {"text": "red"} for line in LINES]
    path = folder(tmp_path / "b", few)
    again = open_data(path, conditional=True, like_condition=data.condition)
    assert again.condition == data.condition
    assert texts(again.train.first(1).condition, data.condition) == ["red          "]
    write(path, [line | {"text": "a pink thing"} for line in LINES])
    with pytest.raises(Refusal, match="'kp', which the run has never seen"):
        open_data(path, conditional=True, like_condition=data.condition)
    write(path, [line | {"text": "a red red red thing"} for line in LINES])
    with pytest.raises(Refusal, match="of 19 characters"):
        open_data(path, conditional=True, like_condition=data.condition)
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
        ("file_name,text\n0.png,a\n0.png,b", "more than one line"),
        ("file_name,text\n0.png, \n1.png,", "is empty"),
        ("file_name,text\n0.png," + "x " * 149 + "xx", "a caption of 300 characters"),
    ],
)
def test_broken_metadata_are_refused(tmp_path, content, said):
    path = folder(tmp_path / "set")
    content = content if isinstance(content, bytes) else content.encode()
    (path / "metadata.csv").write_bytes(content)
    with pytest.raises(Refusal, match=said):
        open_data(path, conditional=True, skip_bad=99)
    assert open_data(path).condition is None  # which is nothing to those who ask for no conditions


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


def test_semicolons_and_line_separators_are_read(tmp_path):
    path = folder(tmp_path / "set")
    write(path, LINES)
    (path / "metadata.csv").write_text((path / "metadata.csv").read_text().replace(",", ";"))
    assert open_data(path, label="colour").labels.count == 3
    (path / "metadata.csv").unlink()
    write(path, [line | {"text": line["text"] + "\u2028."} for line in LINES], "jsonl")
    assert "\u2028" in open_data(path, conditional=True).condition.alphabet


def test_images_without_a_line_and_lines_without_an_image_are_named(tmp_path):
    path = folder(tmp_path / "set")
    write(path, LINES[:-2])
    with pytest.raises(Refusal, match=r"has no line in metadata\.csv.*--skip-bad 2"):
        open_data(path, conditional=True)
    assert len(open_data(path, conditional=True, skip_bad=2).everything()) == 22
    write(path, [*LINES, LINES[0] | {"file_name": "gone.png"}])
    with pytest.raises(Refusal, match=r"'gone\.png'.*is not there"):
        open_data(path, conditional=True)


def test_names_are_the_same_however_accents_are_written(tmp_path):
    lines = [line | {"file_name": f"e\u0301{i}.png"} for i, line in enumerate(LINES)]
    path = folder(tmp_path / "set", lines)
    write(path, [line | {"file_name": f"\u00e9{i}.png"} for i, line in enumerate(LINES)])
    assert len(open_data(path, conditional=True).everything()) == 24


def test_columns_are_named_once_each(tmp_path):
    path = folder(tmp_path / "set")
    for label in ("colour,colour", ","):
        with pytest.raises(Refusal, match="each column once"):
            open_data(path, label=label)
    assert open_data(path, label="colour,").labels.count == 3


def test_a_broken_attribute_is_named_by_its_image(tmp_path):
    lines = [line | {"weight": "inf" if i == 7 else "1.5"} for i, line in enumerate(LINES)]
    path = folder(tmp_path / "set", lines)
    with pytest.raises(Refusal, match=r"row 7\.png.*not finite"):
        open_data(path, label="weight,colour")


def test_folders_that_are_classes_are_those_of_a_run(tmp_path):
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        for index in range(6):
            pixels = np.full((4, 4), index + 10 * ord(name) % 200, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    run = Labels(3, ("a", "b", "c"))
    data = open_data(tmp_path, like_condition=run)
    assert data.condition == run
    assert sorted(set(data.everything().all().condition.tolist())) == [1, 2]
    assert open_data(tmp_path).condition == Labels(2, ("b", "c"))
