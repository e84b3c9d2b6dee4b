"""Samples are elements of the space, and depend on their seed alone."""

import torch

from simulacra.contract import Gradual, MeanSampler, Sampler, Variator


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def same(first, second):
    if first.is_floating_point():
        return torch.allclose(first, second, rtol=1e-4, atol=1e-4)
    return torch.equal(first, second)


def test_samples_lie_in_the_space(having):
    model = having(Sampler).trained
    x = model.sample(9, generator=seeded(0))
    assert x.shape == (9, *model.space.shape)
    assert x.dtype == model.space.dtype
    assert model.space.contains(x)
    assert len(model.sample(0, generator=seeded(0))) == 0


def test_a_seed_names_its_samples(having):
    model = having(Sampler).trained
    first, again = (model.sample(16, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.sample(16, generator=seeded(4)))
    assert not torch.equal(model.sample(16), model.sample(16))


def test_one_generator_goes_on(having):
    model = having(Sampler).trained
    stream = seeded(0)
    assert not torch.equal(model.sample(16, generator=stream), model.sample(16, generator=stream))


def test_the_global_generator_is_left_alone(having):
    model = having(Sampler).trained
    before = torch.get_rng_state()
    x = model.sample(4, generator=seeded(0))
    model.sample(4)
    if hasattr(model, "log_prob"):
        model.log_prob(x)
    assert torch.equal(before, torch.get_rng_state())


def test_a_sample_does_not_depend_on_its_neighbours(having):
    model = having(Sampler).trained
    many = model.sample(23, generator=seeded(5))
    assert same(model.sample(7, generator=seeded(5)), many[:7])
    assert same(model.sample(1, generator=seeded(5)), many[:1])


def test_sampling_changes_nothing(having):
    model = having(Sampler).new()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.sample(8, generator=seeded(0))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_means_depend_on_their_seed_and_on_no_neighbour(having):
    model = having(MeanSampler).trained
    means = model.sample_mean(23, generator=seeded(5))
    assert means.dtype == model.space.dtype
    assert model.space.contains(means)
    assert same(model.sample_mean(7, generator=seeded(5)), means[:7])


def test_a_trajectory_ends_where_samples_are(having):
    model = having(Gradual).trained
    states = model.trajectory(3, generator=seeded(6))
    assert len(states) > 1
    assert all(model.space.contains(one) for one in states)
    assert same(states[-1], model.sample(3, generator=seeded(6)))
    assert not torch.equal(states[0], states[-1])


def test_variations_depend_on_their_seed_and_on_no_neighbour(having):
    model = having(Variator).trained
    x = model.space.random(5, seeded(0))
    varied = model.vary(x, strength=0.7, generator=seeded(1))
    assert model.space.contains(varied)
    assert same(varied[:2], model.vary(x[:2], strength=0.7, generator=seeded(1)))
    assert not torch.equal(varied, model.vary(x, strength=0.7, generator=seeded(2)))
