"""Rational-quadratic splines: monotonic, smooth, inverted exactly, the identity outside."""

import pytest
import torch

from simulacra.probability.splines import (
    LEAST_BIN,
    LEAST_SLOPE,
    inverse_spline,
    numbers_of_a_spline,
    spline,
)

BOUND = 3.0


def told(rows, bins, scale=1.0):
    return scale * torch.randn(rows, numbers_of_a_spline(bins), dtype=torch.float64)


def everywhere(rows, count=2001):
    side = torch.linspace(-1.2 * BOUND, 1.2 * BOUND, count, dtype=torch.float64)
    return side.expand(rows, count)


def plain(x, one):
    """One spline at one place, by Gregory & Delbourgo's formula written out (eq. 4)."""
    bins = (len(one) + 1) // 3

    def knots(raw):
        share = LEAST_BIN + (1 - bins * LEAST_BIN) * torch.softmax(raw, 0)
        return torch.cat([torch.zeros(1), share.cumsum(0)]) * 2 * BOUND - BOUND

    xs, ys = knots(one[:bins]), knots(one[bins : 2 * bins])
    # The slope is 1 where the raw number is 0: softplus(0 + c) + least = 1.
    shift = torch.log(torch.expm1(torch.tensor(1 - LEAST_SLOPE, dtype=torch.float64)))
    inner = LEAST_SLOPE + torch.log1p(torch.exp(one[2 * bins :] + shift))
    d = torch.cat([torch.ones(1), inner, torch.ones(1)])
    k = next(k for k in range(bins) if x < xs[k + 1] or k == bins - 1)
    w, h = xs[k + 1] - xs[k], ys[k + 1] - ys[k]
    s, xi = h / w, (x - xs[k]) / w
    above = h * (s * xi**2 + d[k] * xi * (1 - xi))
    return ys[k] + above / (s + (d[k + 1] + d[k] - 2 * s) * xi * (1 - xi))


@pytest.mark.parametrize("bins", [1, 2, 5, 8])
def test_it_is_the_papers_formula(bins):
    splines = told(4, bins)
    x = torch.linspace(-0.999 * BOUND, 0.999 * BOUND, 13, dtype=torch.float64)
    y, _ = spline(x.expand(4, 13), splines[:, None].expand(4, 13, -1), BOUND)
    expected = torch.stack([torch.stack([plain(one, row) for one in x]) for row in splines])
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("bins", [1, 3, 8])
def test_it_rises_everywhere_and_comes_back(bins, scale):
    x = everywhere(20)
    numbers = told(20, bins, scale)[:, None].expand(20, x.shape[1], -1)
    y, log_slope = spline(x, numbers, BOUND)
    assert (y.diff(dim=1) > 0).all()
    assert torch.isfinite(log_slope).all()
    # Slopes near 1e3 or 1e-3 cost as many digits.
    tolerance = 1e-11 if scale < 1 else 1e-8 if scale < 10 else 1e-6
    torch.testing.assert_close(inverse_spline(y, numbers, BOUND), x, atol=tolerance, rtol=tolerance)


def test_the_slope_is_autograds():
    x = everywhere(10, 300).clone().requires_grad_()
    y, log_slope = spline(x, told(10, 6)[:, None].expand(10, 300, -1), BOUND)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope.exp(), slope)


def test_slopes_are_continuous_over_knots_and_ends():
    x = everywhere(5, 200_001)
    _, log_slope = spline(x, told(5, 4, 0.5)[:, None].expand(5, x.shape[1], -1), BOUND)
    assert log_slope.diff(dim=1).abs().max() < 1e-2


def test_outside_is_the_identity():
    x = torch.tensor([[-100.0, -BOUND, BOUND, 7.0]], dtype=torch.float64)
    numbers = told(1, 4)[:, None].expand(1, 4, -1)
    y, log_slope = spline(x, numbers, BOUND)
    assert torch.equal(y, x)
    assert torch.equal(log_slope, torch.zeros_like(x))
    assert torch.equal(inverse_spline(x, numbers, BOUND), x)


def test_zeros_are_the_identity():
    x = everywhere(1)
    y, log_slope = spline(x, torch.zeros(1, x.shape[1], numbers_of_a_spline(8)).double(), BOUND)
    torch.testing.assert_close(y, x)
    assert log_slope.abs().max() < 1e-6


def test_knots_themselves_come_back_in_single_precision():
    numbers = told(50, 8).float()
    share = LEAST_BIN + (1 - 8 * LEAST_BIN) * torch.softmax(numbers[:, :8], -1)
    x = (share.cumsum(-1) * 2 - 1) * BOUND
    numbers = numbers[:, None].expand(50, 8, -1)
    y, log_slope = spline(x, numbers, BOUND)
    assert torch.isfinite(log_slope).all()
    torch.testing.assert_close(inverse_spline(y, numbers, BOUND), x, atol=1e-4, rtol=1e-4)


def test_gradients_are_finite_and_those_of_finite_differences():
    numbers = told(3, 4).requires_grad_()
    x = torch.tensor([-1.0, 0.3, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: spline(*given, BOUND), (x, numbers))
    assert torch.autograd.gradcheck(lambda *given: inverse_spline(*given, BOUND), (x, numbers))
