"""What is kept opens again, in a new process, as the same model."""

import json
import subprocess
import sys
from dataclasses import asdict

import safetensors.torch
import torch

from simulacra import shelf
from simulacra.contract import Density, Sampler
from simulacra.shelf import config_from_json, describe, from_pretrained, save_pretrained

ANSWER = """
import sys, pathlib, torch, safetensors.torch
from simulacra.shelf import from_pretrained
torch.set_num_threads(1)
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    model = from_pretrained(folder)
    told = {}
    if hasattr(model, "sample"):
        told["sample"] = model.sample(5, generator=torch.Generator().manual_seed(0))
    if hasattr(model, "log_prob"):
        x = model.space.random(5, torch.Generator().manual_seed(1))
        told["log_prob"] = model.log_prob(x).detach()
    safetensors.torch.save_file(told, folder / "answer.safetensors")
"""


def test_a_new_process_gives_the_same_answers(all_toys, tmp_path):
    for name, toys in all_toys.items():
        save_pretrained(toys.trained, tmp_path / name)
    subprocess.run([sys.executable, "-c", ANSWER, str(tmp_path)], check=True)
    for name, toys in all_toys.items():
        model = toys.trained
        told = safetensors.torch.load_file(tmp_path / name / "answer.safetensors")
        if isinstance(model, Sampler):
            here = model.sample(5, generator=torch.Generator().manual_seed(0))
            assert torch.equal(told["sample"], here), name
        if isinstance(model, Density):
            x = model.space.random(5, torch.Generator().manual_seed(1))
            assert torch.equal(told["log_prob"], model.log_prob(x).detach()), name


def test_a_kept_model_says_what_it_is(toys, tmp_path):
    model = toys.trained
    save_pretrained(model, tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["model"] == toys.entry.name
    again = from_pretrained(tmp_path)
    assert (again.config, again.space) == (model.config, model.space)
    assert not again.training


def test_a_config_survives_json(toys):
    config = toys.new().config
    kind = type(config)
    recommended = toys.entry.cls.recommend(toys.new().space, 1000)
    for one in (config, kind(), recommended):
        plain = json.loads(json.dumps(asdict(one)))
        assert config_from_json(kind, plain) == one


def test_a_model_is_built_by_its_name(toys):
    space = toys.new().space
    first, again, other = (
        shelf.build(toys.entry.name, space, num_examples=500, seed=seed) for seed in (1, 1, 2)
    )
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    if list(first.parameters()):
        assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert describe(first)["model"] == toys.entry.name
