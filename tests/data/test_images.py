"""Reading images: every mode, mixed kinds, trees and zips, and what is refused by name."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simulacra.data.check import check
from simulacra.data.images import read_images
from simulacra.data.open import open_data, require_enough
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels


def draw(path: Path, *shape: int, mode: str | None = None, seed: int = 0, **options):
    """A random picture of that shape, saved without loss where the format can."""
    high, kind = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    pixels = np.random.default_rng(seed).integers(0, high, shape).astype(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode=mode if mode == "CMYK" else None).save(path, **options)
    return pixels


def only(folder: Path, **options) -> tuple[np.ndarray, Images]:
    raw = read_images(folder, **options)
    assert isinstance(raw.space, Images)
    assert raw.space.contains(torch.as_tensor(raw.rows))
    return torch.as_tensor(raw.rows).numpy(), raw.space


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.bmp", "a.tiff"])
def test_lossless_formats_come_out_as_they_were(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    pixels = draw(tmp_path / name, 5, 7, 3, **options)
    rows, space = only(tmp_path)
    assert space == Images(3, 5, 7)
    assert np.array_equal(rows[0], pixels.transpose(2, 0, 1))


def test_gray_stays_gray_and_16_bits_stay_16_bits(tmp_path):
    gray = draw(tmp_path / "gray" / "a.png", 4, 6)
    rows, space = only(tmp_path / "gray")
    assert space == Images(1, 4, 6)
    assert np.array_equal(rows[0, 0], gray)
    deep = draw(tmp_path / "deep" / "a.png", 4, 6, mode="I;16")
    rows, space = only(tmp_path / "deep")
    assert space == Images(1, 4, 6, levels=65536)
    assert np.array_equal(rows[0, 0], deep)


def test_a_mix_comes_out_as_its_richest_member(tmp_path):
    gray = draw(tmp_path / "a.png", 4, 4)
    deep = draw(tmp_path / "b.png", 4, 4, mode="I;16")
    colour = draw(tmp_path / "c.png", 4, 4, 3)
    clear = draw(tmp_path / "d.png", 4, 4, 4)
    rows, space = only(tmp_path)
    assert space == Images(4, 4, 4, levels=65536)
    assert np.array_equal(rows[0, 0], gray.astype(int) * 257)
    assert (rows[0, 3] == 65535).all()
    assert np.array_equal(rows[1, 2], deep)
    assert np.array_equal(rows[2, :3], colour.transpose(2, 0, 1).astype(int) * 257)
    assert np.array_equal(rows[3], clear.transpose(2, 0, 1).astype(int) * 257)


def test_alpha_that_is_opaque_everywhere_is_left_out(tmp_path):
    pixels = draw(tmp_path / "a.png", 3, 3, 3)
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "b.png")
    rows, space = only(tmp_path)
    assert space == Images(3, 3, 3)
    assert np.array_equal(rows[0], rows[1])


def test_palettes_give_their_colours(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2], pixels[2:] = (200, 10, 30), (0, 90, 255)
    Image.fromarray(pixels).quantize(8).save(tmp_path / "a.png")
    rows, space = only(tmp_path)
    assert space == Images(3, 4, 4)
    assert np.array_equal(rows[0], pixels.transpose(2, 0, 1))
    gray = draw(tmp_path / "gray" / "a.png", 4, 4) // 64 * 64
    Image.fromarray(gray).quantize(8).save(tmp_path / "gray" / "a.png")
    assert only(tmp_path / "gray")[1] == Images(1, 4, 4)


def test_cmyk_becomes_rgb_and_is_told(tmp_path):
    draw(tmp_path / "a.tif", 4, 4, 4, mode="CMYK")
    raw = read_images(tmp_path)
    assert raw.space == Images(3, 4, 4)
    assert any("CMYK" in note for note in raw.survey.notes)


def test_pictures_stand_upright_by_their_exif(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    rows, space = only(tmp_path)
    assert space == Images(1, 6, 4)
    assert np.array_equal(rows[0, 0], np.rot90(pixels, -1))


def test_two_sizes_need_a_stated_one(tmp_path):
    draw(tmp_path / "a.png", 8, 8)
    draw(tmp_path / "b.png", 8, 12)
    with pytest.raises(Refusal, match=r"'b.png' 12 x 8.*--size") as refused:
        read_images(tmp_path)
    assert refused.value.code == "DATA-014"
    rows, space = only(tmp_path, size=4)
    assert space == Images(1, 4, 4)
    with Image.open(tmp_path / "a.png") as image:
        means = np.asarray(image).reshape(4, 2, 4, 2).mean((1, 3))
    assert np.abs(rows[0, 0] - means).max() <= 1


def test_resizing_cuts_the_longer_side_to_its_middle(tmp_path):
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rows, _ = only(tmp_path, size=4)
    assert (rows == 200).all()


def test_resizing_keeps_16_bits(tmp_path):
    pixels = np.full((8, 8), 40_000, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rows, space = only(tmp_path, size=4)
    assert space.levels == 65536
    assert (rows == 40_000).all()


def test_folders_are_classes(tmp_path):
    for index, name in enumerate(["10", "9", "9", "2"]):
        draw(tmp_path / name / f"{index}.png", 4, 4, seed=index)
    raw = read_images(tmp_path)
    assert raw.label_names == ("2", "9", "10")
    assert raw.labels.tolist() == [2, 0, 1, 1]  # files in the order of their paths: 10, 2, 9


def test_folders_called_train_and_test_are_parts(tmp_path):
    for index in range(40):
        part = "test" if index < 8 else "train"
        draw(tmp_path / part / f"class {index % 2}" / f"{index}.png", 4, 4, seed=index)
    data = open_data(tmp_path)
    assert (len(data.train), len(data.valid), len(data.test)) == (29, 3, 8)
    assert data.labels == Labels(2, ("class 0", "class 1"))


def test_a_zip_gives_what_its_folder_gives(tmp_path):
    folder = tmp_path / "set"
    for index in range(4):
        draw(folder / f"{index % 2}" / f"{index}.png", 4, 4, seed=index)
    (folder / "notes.txt").write_text("not an image")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for one in folder.rglob("*"):
            archive.write(one, one.relative_to(tmp_path))
    packed, plain = read_images(tmp_path / "set.zip"), read_images(folder)
    assert torch.equal(packed.rows, plain.rows)
    assert torch.equal(packed.labels, plain.labels)
    assert packed.label_names == plain.label_names
    assert packed.survey.ignored == plain.survey.ignored == 1


def test_broken_files_are_named_or_counted(tmp_path):
    for index in range(3):
        draw(tmp_path / f"{index}.png", 16, 16, 3, seed=index)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:300])
    (tmp_path / "text.png").write_text("these are words")
    with pytest.raises(Refusal, match=r"'text.png' in .* is not an image") as refused:
        read_images(tmp_path)
    assert refused.value.exit_code == 65
    with pytest.raises(Refusal, match="--skip-bad 2"):
        read_images(tmp_path, skip_bad=1)
    raw = read_images(tmp_path, skip_bad=2)
    assert len(raw) == 3
    assert [name for name, _ in raw.survey.bad] == ["text.png", "cut.png"]


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    draw(tmp_path / "secret.png", 4, 4)
    draw(tmp_path / "set" / "a.png", 4, 4)
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(Refusal, match=r"'b.png' .* leads out of the folder"):
        read_images(tmp_path / "set")


def test_too_many_pixels_are_refused_before_they_are_read(tmp_path):
    Image.new("1", (9000, 8000)).save(tmp_path / "a.png")
    with pytest.raises(Refusal, match="9000 x 8000 pixels"):
        read_images(tmp_path)


def test_an_empty_folder_and_one_image(tmp_path):
    with pytest.raises(Refusal, match="holds no images"):
        open_data(tmp_path)
    draw(tmp_path / "a.png", 4, 4)
    data = open_data(tmp_path / "a.png")
    assert len(data.everything()) == 1
    with pytest.raises(Refusal, match="holds 1 datum; give at least 10"):
        require_enough(data)


def test_check_tells_everything_and_refuses_nothing(tmp_path):
    draw(tmp_path / "a.png", 8, 8)
    draw(tmp_path / "b.png", 9, 8)
    (tmp_path / "c.png").write_text("words")
    told = "\n".join(check(tmp_path).lines())
    assert "8 x 8: 1" in told
    assert "8 x 9: 1" in told
    assert "'c.png' is not an image" in told
    assert "would be refused" in told
    assert "--size" in told
