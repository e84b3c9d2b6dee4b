"""Open data by name or path."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simulacra.data.dataset import Dataset, Part
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Labels


def open_data(
    what: str | Path,
    *,
    view: str = "8bit",
    size: int | None = None,
    skip_bad: int = 0,
    seed: int = 0,
) -> Dataset:
    """A data set."""
    if what == "digits":
        from sklearn.datasets import load_digits

        d = load_digits()
        x = torch.tensor(d.images).to(torch.uint8).unsqueeze(1)
        y = torch.tensor(d.target)
        space = Images(1, 8, 8, levels=17)
        order = np.argsort(
            [
                hashlib.sha256(bytes(r) + str(seed).encode()).digest()
                for r in x.reshape(len(x), -1).numpy()
            ]
        )
        p = torch.from_numpy(order.copy())
        parts = [Part(x, p[a:b], space, y) for a, b in ((0, 1437), (1437, 1617), (1617, 1797))]
        return Dataset("digits", space, *parts, labels=Labels(10), fingerprint="0" * 64)
    if what in ("mnist", "fashion-mnist"):
        root = Path(os.environ["SIMULACRA_DATA"]) / what

        def idx(name: str) -> np.ndarray:
            b = gzip.decompress((root / name).read_bytes())
            n = b[3]
            dims = [int.from_bytes(b[4 + 4 * i : 8 + 4 * i], "big") for i in range(n)]
            return np.frombuffer(b, np.uint8, offset=4 + 4 * n).reshape(dims)

        X, Y = idx("train-images-idx3-ubyte.gz"), idx("train-labels-idx1-ubyte.gz")
        T, U = idx("t10k-images-idx3-ubyte.gz"), idx("t10k-labels-idx1-ubyte.gz")
        levels = 256
        tv = T
        if size:
            X, T = (
                np.stack(
                    [
                        np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BOX))
                        for i in a
                    ]
                )
                for a in (X, T)
            )
            tv = T
        viewf = None
        V = X[55000:]
        if view == "dynamic":
            levels = 2
            V = (np.random.default_rng(1).random(V.shape) < V / 255).astype(np.uint8)
            tv = (np.random.default_rng(0).random(T.shape) < T / 255).astype(np.uint8)

            def viewf(x: Tensor, g: torch.Generator) -> Tensor:
                return (torch.rand(x.shape, generator=g) < x / 255).to(torch.uint8)
        elif view == "binary":
            levels = 2
            X, V, tv = ((a > 127).astype(np.uint8) for a in (X, V, tv))
        space = Images(1, X.shape[1], X.shape[2], levels=levels)
        t = lambda a: torch.from_numpy(np.ascontiguousarray(a)).unsqueeze(1)
        y = torch.from_numpy(Y.astype(np.int64))
        tr = Part(t(X), torch.arange(55000), space, y, viewf)
        va = Part(t(V), torch.arange(5000), space, y[55000:])
        te = Part(t(tv), torch.arange(10000), space, torch.from_numpy(U.astype(np.int64)))
        return Dataset(str(what), space, tr, va, te, labels=Labels(10), fingerprint="0" * 64)
    raise Refusal("DATA-009", f"{shown(what)} is not there", way_out="check the path")
