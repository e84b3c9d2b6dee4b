"""The length of a weight average on the command line."""

import json

from PIL import Image


def refused(done, code, *words):
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_the_length_of_an_average_is_chosen_afterwards(simulacra, tmp_path):
    words = ("train", "made", "digits", "--budget", "60steps", "--set", "hidden=32")
    done = simulacra(*words, "--snapshots", 16, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = simulacra("average", "run", "--length", 0.2, "--length", 0.05, cwd=tmp_path)
    head, first, second, kept = done.stdout.splitlines()
    assert "bits/dim (n = 180 valid)" in head
    assert [line.split()[:2] for line in (first, second, kept)] == [
        ["0.05", "="],
        ["0.2", "="],
        ["kept", "="],
    ]
    assert "the run's own" in first
    assert len(list(tmp_path.iterdir())) == 1
    done = simulacra("average", "run", "--out", "other", "--count", 50, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "other"
    best = next(line for line in done.stdout.splitlines() if "best" in line.split())
    card = json.loads((tmp_path / "other" / "card.json").read_text())
    assert f"{card['average']['length']:g}" == best.split()[0]
    for verb in (("sample", "other", "--out", "a.png"), ("score", "other", "--count", 3)):
        done = simulacra(*verb, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 100
    refused(simulacra("average", "run", "--out", "other", cwd=tmp_path), 78, "CFG-247", "other")
    refused(simulacra("average", "run", "--length", 0, cwd=tmp_path), 78, "CFG-246", "0.05")
    short = ("average", "run", "--length", 0.001)
    refused(simulacra(*short, cwd=tmp_path), 78, "CFG-243", "--snapshots", "0.001")
    refused(simulacra("average", "run", "--count", 0, cwd=tmp_path), 78, "CFG-248")
    # A folder that was made so has no snapshots, and no checkpoint to go on from.
    refused(simulacra("average", "other", cwd=tmp_path), 78, "CFG-242", "--snapshots 16")
    more = ("train", "--resume", "other", "--budget", "80steps")
    refused(simulacra(*more, cwd=tmp_path), 66, "CKPT-011")


def test_what_has_no_measure_is_given_one_length(simulacra, tmp_path):
    words = ("train", "gan", "ring", "--budget", "40steps", "--set", "average=0.05")
    done = simulacra(*words, "--snapshots", 16, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused(simulacra("average", "run", cwd=tmp_path), 78, "CFG-244", "--length and --out")
    several = ("average", "run", "--length", 0.1, "--length", 0.2, "--out", "other")
    refused(simulacra(*several, cwd=tmp_path), 78, "CFG-244")
    done = simulacra(*several[:4], *several[6:], cwd=tmp_path)
    assert done.stdout.splitlines() == ["other"], done.stderr
    assert simulacra("sample", "other", "--out", "a.png", cwd=tmp_path).returncode == 0


def test_snapshots_that_make_nothing_are_refused(simulacra, tmp_path):
    few = ("train", "made", "digits", "--snapshots", 1, "--dry-run")
    refused(simulacra(*few, cwd=tmp_path), 78, "CFG-240")
    none = ("train", "independent", "digits", "--budget", "2steps", "--snapshots", 4)
    refused(simulacra(*none, cwd=tmp_path), 78, "CFG-241", "independent")
    assert not (tmp_path / "runs").exists()
