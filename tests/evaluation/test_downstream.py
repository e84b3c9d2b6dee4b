"""Trees taught on samples: right where samples are, near guessing where they teach nothing."""

import time

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from simulacra.evaluation.downstream import Downstream, classes_of, target_of
from simulacra.spaces import Column, Table

SORTS = Column("sort", "category", ("x", "y", "z"))
MANY = Column("street", "category", tuple(str(one) for one in range(300)))
LABELLED = Table((Column("a"), SORTS, Column("b")))
NUMBERS = Table((Column("a"), Column("b")))


def stream(seed):
    return torch.Generator().manual_seed(seed)


def labelled(count, seed):
    a, b = torch.randn((2, count), generator=stream(seed))
    return torch.stack([a, (a + b > 0).float() + (a - b > 1).float(), b], 1)


def numbers(count, seed):
    a, noise = torch.randn((2, count), generator=stream(seed))
    return torch.stack([a, a.sin() + 0.3 * noise], 1)


def shuffled(rows, column, seed):
    rows = rows.clone()
    rows[:, column] = rows[torch.randperm(len(rows), generator=stream(seed)), column]
    return rows


def test_the_target_is_the_last_usable_category_else_the_last_column():
    assert target_of(LABELLED) == 1
    assert target_of(NUMBERS) == 1
    assert target_of(Table((SORTS, SORTS, MANY))) == 1
    single = Column("one", "category", ("only",))
    assert target_of(Table((SORTS, single))) == 0
    assert target_of(Table((Column("a"), MANY))) == 0
    assert target_of(Table((MANY, single))) is None
    assert classes_of(labelled(5, 0), LABELLED)[1] == ("x", "y", "z")
    assert classes_of(numbers(5, 0), NUMBERS) is None


@pytest.mark.parametrize(
    ("space", "make", "control"), [(LABELLED, labelled, 0.5), (NUMBERS, numbers, 0.0)]
)
def test_good_samples_teach_as_much_as_data_and_broken_ones_nothing(space, make, control):
    def read(samples):
        measure = Downstream(space).update(samples=samples, real=make(500, 1))
        (found,) = measure.update(other_real=make(600, 2)).compute()
        return found

    good, broken = read(make(600, 3)), read(shuffled(make(600, 3), 1, 4))
    assert good.low <= good.floor <= good.high
    assert good.value > 0.75
    assert good.control == pytest.approx(control, abs=0.12)
    assert broken.high < good.low
    assert broken.value < good.control + 0.1
    assert repr(space.columns[1].name) in good.how


def test_the_interval_of_r2_is_that_of_repeated_tests():
    said_once = Downstream(NUMBERS)
    values, intervals = [], []
    for seed in range(200):
        real = numbers(200, 100 + seed).double().numpy()
        value, interval = said_once._judged(real, np.sin(real[:, 0]))
        assert value == pytest.approx(r2_score(real[:, 1], np.sin(real[:, 0])))
        values.append(value)
        intervals.append(interval)
    truth = float(np.mean(values))
    held = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.88 < held <= 0.99


def test_what_cannot_be_learned_from_gives_words_or_nothing():
    one = labelled(100, 0)
    one[:, 1] = 2
    (found,) = Downstream(LABELLED).update(samples=one, real=labelled(80, 1)).compute()
    assert found.value == pytest.approx(float((labelled(80, 1)[:, 1] == 2).float().mean()))
    few = Downstream(LABELLED).update(samples=labelled(5, 0), real=labelled(80, 1))
    assert few.compute() == []
    neither = torch.zeros((90, 2))
    assert Downstream(Table((MANY, MANY))).update(samples=neither, real=neither).compute() == []
    alone = Table((Column("a"),))
    lonely = Downstream(alone).update(samples=torch.randn(90, 1), real=torch.randn(90, 1))
    assert lonely.compute() == []
    wide = Table((MANY, Column("a")))
    rows = torch.cat([torch.randint(300, (90, 1)), torch.randn(90, 1)], 1)
    (found,) = Downstream(wide).update(samples=rows, real=rows).compute()
    assert found.unit == "R²"


@pytest.mark.parametrize("classes", [0, 2, 50])
def test_a_thousand_rows_of_fifteen_columns_take_little_time(classes):
    columns = tuple(Column(f"c{index}") for index in range(14))
    last = Column("t", "category", tuple(map(str, range(classes)))) if classes else Column("t")
    rows = [torch.randn((1000, 15), generator=stream(seed)) for seed in range(3)]
    for one in rows:
        one[:, 14] = (one[:, 0] * 99).abs().floor() % classes if classes else one[:, 0]
    measure = Downstream(Table((*columns, last)))
    measure.update(samples=rows[0], real=rows[1], other_real=rows[2])
    begun = time.process_time()
    assert measure.compute()
    assert time.process_time() - begun < 5
