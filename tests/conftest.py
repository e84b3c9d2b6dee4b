"""One thread a worker and for what it starts, and the same global seed before every test."""

import os

# Before torch is loaded, and for child processes too: sums in another number of threads end in other
# bits, and several processes of several threads wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
