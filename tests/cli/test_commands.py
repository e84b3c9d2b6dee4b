"""The command line as a user meets it: from training to use, each command a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image


def refused(done, code, *words):
    """One line that names everything in ``words``, the exit code, and no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]


@pytest.fixture(scope="module")
def place(simulacra, tmp_path_factory):
    """A folder with two small runs in it, trained by the commands of the README."""
    folder = tmp_path_factory.mktemp("cli")
    for model, *options in (("vae",), ("dcgan", "--set", "channels=8", "--conditional")):
        done = simulacra(
            "train", model, "digits", "--budget", "40steps", "--out", model, *options, cwd=folder
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == model
    return folder


def test_a_verb_or_option_that_there_is_not(simulacra, tmp_path):
    refused(simulacra("trian", "vae", cwd=tmp_path), 2, "USE-001", "trian")
    refused(simulacra("train", "--budgt", "3m", cwd=tmp_path), 2, "USE-001", "--budgt")
    refused(simulacra("sample", cwd=tmp_path), 2, "USE-001", "'run'")


def test_help_answers_without_torch(simulacra, tmp_path):
    begun = time.perf_counter()
    done = simulacra("--help", cwd=tmp_path)
    assert time.perf_counter() - begun < 3
    assert done.returncode == 0
    assert "compare" in done.stdout
    code = "import sys, simulacra.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_map_of_families(simulacra, tmp_path):
    done = simulacra("models", cwd=tmp_path)
    for name in ("independent", "gaussian-mixture", "pixelcnn", "realnvp", "vae", "ddpm", "dcgan"):
        assert name in done.stdout
    assert "implicit" in done.stdout


def test_samples_are_a_picture_or_an_array_and_repeat(simulacra, place):
    for out in ("a.png", "a.npy"):
        done = simulacra("sample", "vae", "--num-samples", 9, "--out", out, cwd=place)
        assert done.stdout.strip() == out, done.stderr
    simulacra("sample", "vae", "--num-samples", 9, "--out", "b.npy", cwd=place)
    first, again = np.load(place / "a.npy"), np.load(place / "b.npy")
    assert first.shape == (9, 1, 8, 8)
    assert np.array_equal(first, again)
    with Image.open(place / "a.png") as image:
        assert min(image.size) > 100


def test_scores_are_a_table_with_units(simulacra, place):
    done = simulacra("score", "vae", "--count", 5, cwd=place)
    head, *rows = done.stdout.splitlines()
    assert "log_prob (nats; lower)" in head
    assert "anomaly_score" in head
    assert len(rows) == 5


def test_a_single_image_can_be_scored(simulacra, place):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(place / "one.png")
    done = simulacra("score", "vae", "one.png", cwd=place)
    refused(done, 65, "one.png", "0..255", "0..16")


def test_points_of_the_plane_are_drawn_and_their_modes_counted(simulacra, tmp_path):
    done = simulacra(
        "train",
        "gaussian-mixture",
        "ring",
        "--budget",
        "3steps",
        "--set",
        "components=8",
        "--out",
        "run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    done = simulacra("sample", "run", "--num-samples", 300, "--out", "a.png", cwd=tmp_path)
    with Image.open(tmp_path / done.stdout.strip()) as drawn:
        assert drawn.size == (720, 720)
    assert list((tmp_path / "run" / "pictures").glob("round-*.png"))
    refused(
        simulacra("sample", "run", "--out", "a.csv", cwd=tmp_path), 78, "CFG-053", ".png or .npy"
    )
    done = simulacra("evaluate", "run", "--num-samples", 200, "--budget", "5s", cwd=tmp_path)
    for line in ("modes reached: = 8 of 8", "high-quality samples: ≈ 0.9", "reverse KL of modes"):
        assert line in done.stdout, done.stderr
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 3


def test_crossings(simulacra, place):
    done = simulacra(
        "train", "ladder-vae", "digits", "--budget", "20steps", "--out", "ladder", cwd=place
    )
    assert done.returncode == 0, done.stderr
    for words in ((), ("--level", 2, "--count", 3, "--out", "m.npy")):
        done = simulacra("mix", "ladder", *words, cwd=place)
        assert (place / done.stdout.strip()).is_file(), done.stderr
    assert np.load(place / "m.npy").shape == (4 * 4, 1, 8, 8)
    for code, words in (
        ("CFG-233", ("--level", 3)),
        ("CFG-234", ("--count", 200)),
        ("CFG-234", ("--count", 0)),
    ):
        refused(simulacra("mix", "ladder", *words, cwd=place), 78, code)
    refused(simulacra("mix", "vae", cwd=place), 78, "CAN-001", "cross data", "Mixer")


def test_codes_reconstructions_and_evaluation(simulacra, place):
    codes = simulacra("encode", "vae", "--count", 20, cwd=place)
    assert np.load(place / codes.stdout.strip()).shape == (20, 16), codes.stderr
    done = simulacra("encode", "vae", "--project", "codes.svg", cwd=place)
    assert done.stdout.strip() == "codes.svg", done.stderr
    assert "PCA of 180 codes of 16 numbers" in done.stderr
    assert "perplexity 30, seed 0" in done.stderr
    done = simulacra("encode", "vae", "--project", "codes.png", cwd=place)
    refused(done, 78, "'codes.png'", "ends in .svg")
    done = simulacra("reconstruct", "vae", cwd=place)
    assert (place / done.stdout.strip()).is_file(), done.stderr
    for words in ((), ("--traverse", "--datum", 3), ("--traverse", "--steps", 5, "--out", "t.npy")):
        done = simulacra("interpolate", "vae", *words, cwd=place)
        assert (place / done.stdout.strip()).is_file(), done.stderr
    assert np.load(place / "t.npy").shape == (8 * 5, 1, 8, 8)
    for code, words in (
        ("CFG-133", ("--steps", 1)),
        ("CFG-135", ("--traverse", "--datum", 180)),
        ("CFG-053", ("--out", "a.csv")),
    ):
        refused(simulacra("interpolate", "vae", *words, cwd=place), 78, code)
    refused(simulacra("interpolate", "dcgan", cwd=place), 78, "CAN-001", "interpolate", "Encoder")
    told = simulacra("evaluate", "vae", "--num-samples", 200, "--json", cwd=place)
    judged = json.loads(told.stdout)
    named = {reading["name"]: reading for reading in judged["readings"]}
    assert named["bits per dimension"]["kind"] == "lower"
    assert named["Fréchet distance"]["floor"] < named["Fréchet distance"]["control"]
    assert "active units (of the latent dimensions)" in judged["diagnoses"]
    again = simulacra("evaluate", "vae", "--num-samples", 200, cwd=place)
    assert "≤" in again.stdout
    page = (place / "vae" / "report.html").read_text(encoding="utf-8")
    for word in ("Fréchet distance", "test of itself", "data:image/png;base64,", "without a model"):
        assert word in page
    assert "The strangest data, and where they are strange" in page
    assert "Codes of test data in the plane" in page
    assert "From datum to datum" in page
    assert "One unit of a code at a time" in page
    assert page.count("<circle") == 2 * 180 + 10
    told = next(one for one in judged["readings"] if one["name"] == "bits per dimension")
    row = page[page.index("<b>bits per dimension</b>") :].split("</tr>")[0]
    assert f'title="{told["how"]} (n = 180, test, seed 0)"' in row
    assert f"<td class=how>{told['how']}" in row
    assert "http" not in page


def test_anomalies_raise_alarms_and_say_how_rare_they_are(simulacra, place):
    done = simulacra("anomalies", "vae", "--false-alarms", 0.1, "--count", 150, cwd=place)
    lines = done.stdout.splitlines()
    assert (
        lines[0]
        == "index,score (-log p less the length of a lossless code),p_value (n = 180 clean),alarm"
    )
    rows = np.array([[float(one) for one in line.split(",")] for line in lines[1:]])
    assert rows.shape == (150, 4)
    assert np.array_equal(rows[:, 3] == 1, rows[:, 2] <= 0.1)
    assert rows[:, 3].mean() < 0.25
    assert "raise an alarm above" in done.stderr
    words = ("anomalies", "vae", "--score", "likelihood", "--all-strange")
    found = simulacra(*words, cwd=place)
    assert "anomaly detection: " in found.stdout, found.stderr
    refused(simulacra("anomalies", "dcgan", cwd=place), 78, "no likelihood", "who scores")
    refused(simulacra("anomalies", "vae", "--score", "magic", cwd=place), 78, "choose one of")
    few = simulacra("anomalies", "vae", "--false-alarms", 0.001, cwd=place)
    refused(few, 80, "cannot promise", "at least 999 clean data")


def test_maps_say_which_entries_are_strange(simulacra, place):
    words = ("anomalies", "vae", "--out", "a.csv", "--maps")
    done = simulacra(*words, "maps.png", cwd=place)
    assert "each above its map: dark 0 to bright" in done.stderr, done.stderr
    with Image.open(place / "maps.png") as image:
        assert min(image.size) > 100
    done = simulacra(*words, "maps.npy", "--count", 30, cwd=place)
    maps = np.load(place / "maps.npy")
    assert maps.shape == (30, 1, 8, 8)
    rows = (place / "a.csv").read_text().splitlines()
    assert "score (reconstruction error)" in rows[0]
    scores = [float(row.split(",")[1]) for row in rows[1:]]
    assert maps.reshape(30, -1).sum(1) == pytest.approx(scores, rel=1e-4)
    refused(simulacra(*words, "maps.csv", cwd=place), 78, "'maps.csv'", ".png or .npy")
    refused(simulacra(*words, "m.png", "--score", "own", cwd=place), 78, "choose --score reconst")


def test_the_ruler_is_tested_by_name(simulacra, place):
    done = simulacra("doctor", "ruler", cwd=place)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("\nok ") == 6
    refused(simulacra("doctor", "magic", cwd=place), 78, "ask for machine or ruler")


def test_a_class_can_be_asked_for(simulacra, place):
    done = simulacra("sample", "dcgan", "--condition", 3, "--num-samples", 4, cwd=place)
    assert done.returncode == 0, done.stderr
    asked = simulacra("sample", "dcgan", "--label", 10, cwd=place)
    refused(asked, 78, "--condition is '10'", "one of 0, 1")
    refused(simulacra("sample", "vae", "--label", 1, cwd=place), 78, "not conditional")


def test_wrong_uses_get_one_line_each(simulacra, place):
    (place / "empty").mkdir(exist_ok=True)
    (place / "words").mkdir(exist_ok=True)
    (place / "words" / "a.png").write_text("these are words")
    (place / "one").mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(place / "one" / "a.png")
    (place / "two").mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(place / "two" / "a.png")
    Image.new("L", (9, 8)).save(place / "two" / "b.png")
    rows = "\n".join(f"{i},{i % 3}.5" for i in range(40))
    (place / "table.csv").write_text(f"a,b\n{rows}\n")

    def train(*words):
        return simulacra("train", *words, "--budget", "5steps", "--out", "never", cwd=place)

    refused(train("vae", "nothing/here"), 65, "'nothing/here' is not there", "digits")
    refused(train("vae", "empty"), 65, "'empty' holds no images")
    refused(train("vae", "one"), 65, "'one' holds 1 datum", "at least 10")
    refused(train("vae", "two"), 65, "'b.png' 9 x 8", "--size")
    refused(train("vae", "words"), 65, "'a.png'", "is not an image", "--skip-bad 1")
    refused(train("pixelcnn", "table.csv"), 78, "cannot model table rows", "realnvp")
    refused(train("vea", "digits"), 78, "'vea'", "vae")
    refused(train("vae", "digits", "--set", "latnt=3"), 78, "'latnt'", "latent")
    refused(train("vae", "digits", "--set", "latent=many"), 78, "latent", "int")
    refused(train("vae", "digits", "--view", "sepia"), 78, "sepia", "binary")
    refused(train("vae", "table.csv", "--conditional"), 78, "no labels")
    assert not (place / "never").exists()
    refused(simulacra("score", "dcgan", cwd=place), 78, "dcgan has no likelihood", "Sampler")
    refused(simulacra("sample", "empty", cwd=place), 66, "'empty' is no run")
    refused(simulacra("sample", "nowhere", cwd=place), 66, "'nowhere' is not there")
    refused(simulacra("train", "vae", "--out", "vae", cwd=place), 66, "'vae' is not empty")
    refused(simulacra("train", "--resume", "empty", cwd=place), 66, "'empty' is no run")
    refused(simulacra("train", "--resume", "vae", cwd=place), 78, "has finished", "--budget")
    more = ("--resume", "vae", "--budget", "99steps", "--set", "latent=2")
    refused(simulacra("train", "gan", *more, cwd=place), 78, "MODEL and --set", "--resume")
    refused(train("vae", "digits", "--batch-size", "0"), 78, "the batch size is 0")
    refused(simulacra("encode", "vae", "--count", "0", cwd=place), 2, "'--count'", "1")
    refused(simulacra("sample", "vae", "--strength", "1", cwd=place), 78, "--strength", "--from")
    refused(simulacra("compare", "digits", "--models", "vea", cwd=place), 78, "'vea'")
    refused(simulacra("compare", "digits", "--budget", "soon", cwd=place), 78, "'soon'", "3m")


def test_a_changed_byte_in_the_weights_is_found(simulacra, place, tmp_path):
    import shutil

    shutil.copytree(place / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    refused(simulacra("sample", "vae", cwd=tmp_path), 66, "model.safetensors", "changed")


def test_a_full_disk_loses_nothing(simulacra, place):
    done = simulacra("sample", "vae", "--out", "/dev/full/a.png", cwd=place)
    assert done.returncode == 74
    assert done.stderr.startswith("error[IO-")


def test_ctrl_c_keeps_the_run_and_resume_goes_on(simulacra, tmp_path):
    words = [sys.executable, "-m", "simulacra", "train", "vae", "digits", "--budget", "3000steps"]
    child = subprocess.Popen(
        [*words, "--out", "run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 75, told
    assert "--resume run" in told
    assert "Traceback" not in told
    done = simulacra("train", "--resume", "run", "--budget", "100steps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert simulacra("sample", "run", cwd=tmp_path).returncode == 0


def test_any_moment_can_be_interrupted_without_a_traceback(tmp_path):
    for wait in (0.05, 0.4, 1.2):
        child = subprocess.Popen(
            [sys.executable, "-m", "simulacra", "evaluate", "nowhere"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(wait)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
        assert child.returncode in (66, 130, -2), told


def test_rows_are_drawn_given_some_columns(simulacra, tmp_path):
    stream = np.random.default_rng(0)
    sex, size = stream.integers(2, size=400), stream.normal(size=400)
    pairs = enumerate(zip(sex, size, strict=True))
    lines = [f"{'FM'[s]},{v + 6 * s:.3f},{i % 3 - 1}.5" for i, (s, v) in pairs]
    (tmp_path / "people.csv").write_text("\n".join(["sex,height,other", *lines]) + "\n")
    words = ("gaussian-mixture", "people.csv", "--budget", "20steps", "--out", "run")
    done = simulacra("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ask = ("sample", "run", "--num-samples", "60", "--out", "rows.csv")
    done = simulacra(*ask, "--given", "sex=M", "--given", "other=0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, *rows = (line.split(",") for line in (tmp_path / "rows.csv").read_text().splitlines())
    assert header == ["sex", "height", "other"]
    assert {(row[0], row[2]) for row in rows} == {("M", "0.5")}
    assert np.mean([float(row[1]) > 3 for row in rows]) > 0.7
    assert all(len(row[1].partition(".")[2]) <= 3 for row in rows), "as many decimals as the data"
    refused(simulacra(*ask, "--given", "sex=X", cwd=tmp_path), 78, "CFG-142", "'X'", "F, M")
    refused(simulacra(*ask, "--given", "age=3", cwd=tmp_path), 78, "CFG-141", "height")
    refused(simulacra(*ask, "--given", "height", cwd=tmp_path), 78, "CFG-140", "column=value")
    refused(simulacra(*ask, "--given", "height=tall", cwd=tmp_path), 78, "CFG-143", "'tall'")
    finer = ("--given", "other=0.5625")
    done = simulacra(*ask[:3], "9", *ask[4:-1], "finer.csv", *finer, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "finer.csv").read_text().splitlines()[1:]
    assert {row.split(",")[2] for row in made} == {"0.5625"}, "what was given stays as it was"
    words = ("complete", "run", "finer.csv", "--known", "sex,other", "--out", "c.csv")
    done = simulacra(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    filled = (tmp_path / "c.csv").read_text().splitlines()[1:]
    assert {row.split(",")[2] for row in filled} == {row.split(",")[2] for row in made}
    refused(simulacra("complete", "run", "--known", "sx", cwd=tmp_path), 78, "CFG-141", "sex")


def test_columns_are_not_given_of_pictures(simulacra, place):
    refused(simulacra("sample", "vae", "--given", "a=1", cwd=place), 78, "CFG-144", "images")
