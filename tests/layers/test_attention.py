"""Attention against its definition, and in the type that trains fastest."""

import math

import pytest
import torch

from simulacra.layers.attention import attended


def _by_hand(query, key, value, causal):
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if causal:
        scores = scores + torch.full_like(scores, -math.inf).triu(1)
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_and_its_slopes_are_those_of_the_definition(causal, dtype):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 7, 8, generator=generator).to(dtype) for _ in range(3)]
    given = [part.clone().requires_grad_() for part in parts]
    exact = [part.double().requires_grad_() for part in parts]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = attended(*given, causal=causal)
    wanted = _by_hand(*exact, causal)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    (found.double() * weights).sum().backward()
    (wanted * weights).sum().backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert found.dtype == dtype
    assert torch.allclose(found.double(), wanted, atol=tolerance, rtol=tolerance)
    for one, other in zip(given, exact, strict=True):
        assert torch.allclose(one.grad.double(), other.grad, atol=2 * tolerance, rtol=2 * tolerance)


def test_bfloat16_with_gradients_is_reckoned_in_float32():
    """Whose kernel's way back is the faster one on a processor."""
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(1, 1, 5, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3)
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attended(*given)
    exact = _by_hand(*(one.detach().float() for one in given), causal=False)
    # One rounding of the result, where bfloat16 inside would round many times.
    assert ((found.float() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()
