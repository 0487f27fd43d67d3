"""Poolings: what holds for each, and each against its definition."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from osler import catalog
from osler.poolings import attention, average, gem
from osler.poolings import max as maximum
from osler.problem import Problem

NAMES = catalog.names("poolings")
SIZES = [(5, 7), (3, 4, 5), (1, 1)]


def built(name: str, features: int = 6, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    module = catalog.find("poolings", name)
    pooling: nn.Module = module.build(module.Options(**options), features=features)
    return pooling


def maps(*size: int, batch: int = 2, features: int = 6) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, features, *size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_a_map_becomes_a_vector_that_does_not_depend_on_the_order_of_places(name: str, size: tuple[int, ...]) -> None:
    pooling, x = built(name), maps(*size)
    vectors = pooling(x)
    assert vectors.shape == (2, 6)
    shuffled = x.flatten(2)[:, :, torch.randperm(math.prod(size))].reshape(x.shape)
    torch.testing.assert_close(pooling(shuffled), vectors)
    torch.testing.assert_close(pooling(x[:1]), vectors[:1])
    assert (vectors >= x.flatten(2).amin(2) - 1e-6).all()
    assert (vectors <= x.flatten(2).amax(2) + 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_numerical_one(name: str) -> None:
    pooling = built(name).double()
    x = (maps(2, 3).double() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(pooling, x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(built(name), "weights")])
def test_the_weights_of_the_places_sum_to_one(name: str, size: tuple[int, ...]) -> None:
    pooling, x = built(name), maps(*size)
    weights = pooling.weights(x)
    assert weights.shape == (2, *size)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.flatten(1).sum(1), torch.ones(2))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_finite_and_near(name: str) -> None:
    pooling, x = built(name), maps(5, 7) * 3e3
    with torch.autocast("cpu", torch.bfloat16):
        low = pooling(x.bfloat16())
    assert low.isfinite().all()
    torch.testing.assert_close(low.float(), pooling(x.bfloat16().float()), rtol=0.02, atol=1)


def test_average_and_maximum_by_hand() -> None:
    x = torch.tensor([[[[1.0, -2.0], [3.0, 6.0]]]])
    assert average.build(average.Options(), features=1)(x).tolist() == [[2.0]]
    assert maximum.build(maximum.Options(), features=1)(x).tolist() == [[6.0]]


def test_the_generalised_mean_lies_between_average_and_maximum() -> None:
    x = maps(5, 7)
    torch.testing.assert_close(built("gem", p=1.0)(x), x.mean((2, 3)))
    torch.testing.assert_close(built("gem", p=2.0)(x), x.square().mean((2, 3)).sqrt())
    torch.testing.assert_close(built("gem", p=1e4)(x), x.amax((2, 3)), rtol=1e-3, atol=1e-3)
    vectors = [built("gem", p=p)(x) for p in (1.0, 2.0, 3.0, 8.0)]
    assert all((low < high).all() for low, high in pairwise(vectors))


def test_the_generalised_mean_is_safe_for_empty_and_huge_maps_and_its_exponent_learns() -> None:
    pooling = built("gem", p=8.0)
    x = torch.stack([torch.zeros(6, 4, 4), torch.full((6, 4, 4), 1e30), maps(4, 4, batch=1)[0]]).requires_grad_()
    vectors = pooling(x)
    vectors[2].sum().backward()
    assert vectors.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()
    # A larger exponent means a larger mean, so the derivative with respect to it is positive.
    assert float(pooling.log_p.grad) > 0
    assert not built("gem", learned=False).log_p.requires_grad


def test_an_exponent_that_is_not_positive_is_refused() -> None:
    with pytest.raises(Problem, match="positive"):
        gem.build(gem.Options(p=0.0), features=3)


def test_linear_attention_by_hand() -> None:
    pooling = attention.build(attention.Options(score="linear"), features=2)
    with torch.no_grad():
        pooling.place.weight[:] = torch.tensor([[1.0, 0.0]])
    # Scores log 1, log 2, log 5 and the same shift at each place: shares 1/8, 2/8, 5/8.
    x = torch.tensor([[[[0.0, math.log(2), math.log(5)]], [[8.0, 16.0, 24.0]]]])
    torch.testing.assert_close(pooling.weights(x), torch.tensor([[[0.125, 0.25, 0.625]]]))
    assert pooling(x)[0, 1].item() == pytest.approx(1 + 4 + 15, rel=1e-5)


@pytest.mark.parametrize("score", ["linear", "tanh"])
def test_attention_is_the_softmax_of_the_stated_score(score: Any) -> None:
    pooling, x = built("attention", score=score, hidden=4).double(), maps(2, 3).double()
    matrix = torch.cat([pooling.query.weight, pooling.place.weight], 1)
    shares = torch.zeros(2, 2, 3, dtype=torch.float64)
    for b in range(2):
        h = x[b].mean((1, 2))
        for i in range(2):
            for j in range(3):
                s = matrix @ torch.cat([h, x[b, :, i, j]]) + pooling.query.bias
                shares[b, i, j] = (s if score == "linear" else pooling.v.weight @ s.tanh()).exp().item()
        shares[b] /= shares[b].sum()
    torch.testing.assert_close(pooling.weights(x), shares)
    torch.testing.assert_close(pooling(x), (x * shares[:, None]).sum((2, 3)))


def test_in_a_linear_score_the_query_cancels_and_in_tanh_it_counts() -> None:
    for score, counts in (("linear", False), ("tanh", True)):
        pooling, x = built("attention", score=score).double(), maps(3, 3).double()
        before = pooling.weights(x)
        with torch.no_grad():
            pooling.query.weight.add_(1)
        assert torch.allclose(pooling.weights(x), before, rtol=1e-9) is not counts
