"""Whole training steps against the libraries that users have today, on the same machine in one run.

    pip install -e .[bench]
    python benchmarks/peers.py vae  > benchmarks/results/vae-against-pythae.json
    python benchmarks/peers.py vq-vae > benchmarks/results/vq-vae-against-pythae.json
    python benchmarks/peers.py ddpm > benchmarks/results/ddpm-against-diffusers.json
    python benchmarks/peers.py ddim > benchmarks/results/ddim-against-diffusers.json
    python benchmarks/peers.py dcgan > benchmarks/results/dcgan-against-torchgan.json
    python benchmarks/peers.py stylegan2 > benchmarks/results/stylegan2-against-plain.json
    python benchmarks/peers.py dcgan --device cuda

Each system trains in a process of its own, one after the other and several times over; the figures
are medians over the repetitions. 'as users run it' is the peer's own loop with its defaults (fp32);
'best switches' adds bfloat16, channels-last and torch.compile to it. Both sides see the same data,
batch size, number of steps and learning rate, and end with the same held-out metric. MNIST is read
from the folder that SIMULACRA_DATA names, or fetched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from peer_autoencoders import vae_ours, vae_pythae, vq_vae_ours, vq_vae_pythae
from peer_diffusion import DDPM, ddim_diffusers, ddim_ours, ddpm_diffusers, ddpm_ours
from peer_gans import (
    dcgan_ours,
    dcgan_plain,
    dcgan_torchgan,
    stylegan2_ours,
    stylegan2_plain,
    stylegan2_pytorch,
)

SYSTEMS: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
    "vae": {
        "simulacra": vae_ours,
        "pythae, as users run it": lambda: vae_pythae(False),
        "pythae, best switches": lambda: vae_pythae(True),
    },
    "vq-vae": {
        "simulacra": vq_vae_ours,
        "pythae, as users run it": lambda: vq_vae_pythae(False),
        "pythae, best switches": lambda: vq_vae_pythae(True),
    },
    "ddpm": {
        "simulacra": ddpm_ours,
        "diffusers, as users run it": lambda: ddpm_diffusers(False),
        "diffusers, best switches": lambda: ddpm_diffusers(True),
    },
    "ddim": {
        "simulacra": ddim_ours,
        "diffusers, as users run it": lambda: ddim_diffusers(False),
        "diffusers, best switches": lambda: ddim_diffusers(True),
    },
}

GANS: dict[str, dict[str, Callable[[str], dict[str, Any]]]] = {
    "dcgan": {
        "simulacra": dcgan_ours,
        "torchgan, as users run it": dcgan_torchgan,
        "plain loop with a DataLoader": lambda device: dcgan_plain(False, device),
        "plain loop, best switches": lambda device: dcgan_plain(True, device),
    },
    "stylegan2": {
        "simulacra": stylegan2_ours,
        "plain loop with grouped convolutions": stylegan2_plain,
        "stylegan2-pytorch, as users run it": stylegan2_pytorch,
    },
}
"""Compared on any device; the others on the CPU."""

CUDA_ONLY = "stylegan2-pytorch, as users run it"


def measured(family: str, system: str, options: argparse.Namespace) -> dict[str, Any]:
    """One system in a process of its own."""
    command = [sys.executable, __file__, family, "--system", system]
    command += ["--steps", str(options.steps), "--device", options.device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{system}: {found}", file=sys.stderr)
    return found


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=[*SYSTEMS, *GANS])
    parser.add_argument("--system")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=DDPM["steps"], help="of the DDPM")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of a GAN")
    options = parser.parse_args()
    DDPM["steps"] = options.steps
    of_gans = options.family in GANS
    if options.device != "cpu" and not of_gans:
        parser.error(f"{options.family} is compared on the CPU only")
    systems = [*(GANS if of_gans else SYSTEMS)[options.family]]
    if options.system:
        torch.manual_seed(0)
        if of_gans:
            told_of = GANS[options.family][options.system](options.device)
        else:
            told_of = SYSTEMS[options.family][options.system]()
        print(json.dumps(told_of))
        return
    if options.device == "cpu" and CUDA_ONLY in systems:
        systems.remove(CUDA_ONLY)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for _ in range(options.repeat):
        for name in systems:
            runs[name].append(measured(options.family, name, options))
    medians = {
        name: {key: statistics.median(one[key] for one in several) for key in several[0]}
        for name, several in runs.items()
    }
    speed = {name: one["images per second"] for name, one in medians.items()}
    ratios = {name: speed["simulacra"] / value for name, value in speed.items()}
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if options.device == "cuda":
        machine["device"] = torch.cuda.get_device_name()
    result = {"machine": machine, "repetitions": options.repeat, "medians": medians}
    print(json.dumps(result | {"simulacra is so many times as fast": ratios}, indent=2))


if __name__ == "__main__":
    main()
