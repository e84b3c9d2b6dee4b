"""The ruler's eyes and its judge."""

import pytest
import torch

from simulacra.evaluation.class_accuracy import ClassAccuracy
from simulacra.evaluation.features import WEIGHTS, FeatureNet, learn_features, learn_judge
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Labels, Series, Table, Tokens, Vectors

from .conftest import DIGITS

COLUMNS = (Column("size"), Column("colour", "category", ("red", "green", "blue")))
OTHERS = [
    Vectors(5),
    Series(2, 90),
    Table(COLUMNS),
    Tokens(20, 30),
    Images(3, 20, 33),
    Images(1, 3, 3),
]


def test_the_classifier_of_digits_is_good(eyes, judge):
    assert eyes.accuracy > 0.97
    assert judge.accuracy > 0.95
    low, high = judge.accuracy_interval
    assert low <= judge.accuracy <= high
    assert "validation" in judge.trained_on
    assert "training" in eyes.trained_on


def test_same_seed_same_net_and_the_global_generator_is_left_alone(digits):
    train = Batch(digits[0].x[:64], digits[0].condition[:64])
    before = torch.random.get_rng_state()
    nets = [learn_features(DIGITS, train=train, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    hashes = [net.describe()["sha256"] for net in nets]
    assert hashes[0] == hashes[1] != hashes[2]


def test_features_do_not_depend_on_the_batch(eyes, digits):
    x = digits[2].x[:50]
    alone = torch.cat([eyes.features(one[None]) for one in x])
    torch.testing.assert_close(eyes.features(x), alone, rtol=1e-4, atol=1e-5)
    assert eyes.features(x).shape == (50, eyes.dimension)


@pytest.mark.parametrize("space", OTHERS, ids=str)
def test_every_space_has_features(space, tmp_path):
    x = space.random(80, torch.Generator().manual_seed(0))
    net = learn_features(space, train=Batch(x))
    found = net.features(x)
    assert found.shape == (80, net.dimension)
    assert torch.isfinite(found).all()
    with pytest.raises(Refusal, match="no classes"):
        net.probabilities(x)
    net.save(tmp_path)
    assert torch.equal(FeatureNet.load(tmp_path).features(x), found)


def test_a_judge_of_vectors_learns_what_can_be_learnt():
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=draw)
    x = torch.randn((200, 4), generator=draw) + 3 * labels[:, None]
    part = Batch(x, labels)
    assert learn_judge(Vectors(4), valid=part, test=part, labels=Labels(3)).accuracy > 0.9
    assert learn_judge(Vectors(4), valid=Batch(x), test=part, labels=None) is None


def test_saved_and_loaded_it_is_the_same(judge, digits, tmp_path):
    judge.save(tmp_path)
    again = FeatureNet.load(tmp_path)
    assert again.describe() == judge.describe()
    assert torch.equal(again.probabilities(digits[2].x), judge.probabilities(digits[2].x))
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(Refusal, match="does not hold the weights"):
        FeatureNet.load(tmp_path)


def test_elements_of_another_space_are_refused(eyes):
    with pytest.raises(Refusal, match="the feature net"):
        eyes.features(torch.zeros((2, 1, 9, 9), dtype=torch.uint8))


def test_real_data_keep_to_their_labels_as_the_judge_is_accurate(digits, judge):
    train = digits[0]
    said = judge.probabilities(train.x).argmax(1)
    (right,) = ClassAccuracy(judge).update(said=said, asked=train.condition).compute()
    assert right.value == pytest.approx(judge.accuracy, abs=0.05)
    assert right.floor == judge.accuracy
    (wrong,) = ClassAccuracy(judge).update(said=said, asked=(train.condition + 1) % 10).compute()
    assert wrong.value < 0.05
