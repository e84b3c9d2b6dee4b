"""Two processes under torchrun: the losses of one process, within rounding."""

import json
import os
import socket
import subprocess
import sys

import pytest

STEPS = 12


def losses(folder):
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [
        (line["round"], name, value)
        for line in lines
        for name, value in line.items()
        if name.endswith("loss")
    ]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def trained(model, processes, folder, *options):
    words = ["-m", "simulacra", "train", model, "digits", "--budget", f"{STEPS}steps"]
    words += ["--out", str(folder), "--batch-size", "32", "--precision", "fp32", *options]
    if processes > 1:
        start = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        words = [*start, "--master-addr=127.0.0.1", f"--master-port={free_port()}", *words]
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return losses(folder)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("vae", ()),
        ("dcgan", ("--set", "channels=8")),
        ("dcgan", ("--set", "channels=8", "--conditional")),
        ("infogan", ("--set", "channels=8")),
        ("gan", ("--set", "minibatch=discrimination", "--set", "unrolled=1")),
        ("gan", ("--set", "unrolled=1", "--set", "feature_matching=true", "--conditional")),
        ("stylegan2", ("--set", "channels=8", "--set", "latent=8")),
    ],
    ids=[
        "vae",
        "dcgan",
        "conditional dcgan",
        "infogan",
        "minibatch gan",
        "unrolled gan",
        "stylegan2",
    ],
)
def test_two_processes_give_the_losses_of_one(tmp_path, model, options):
    one = trained(model, 1, tmp_path / "one", *options)
    two = trained(model, 2, tmp_path / "two", *options)
    assert [entry[:2] for entry in one] == [entry[:2] for entry in two]
    assert len(one) >= STEPS
    for (turn, name, expected), (_, _, found) in zip(one, two, strict=True):
        # The gradient penalty is near nought at first, so it is held to an absolute error.
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), (turn, name)
