"""Every fusion: it follows its equation, an absent source counts as one learned vector, and any number may join."""

import numpy as np
import pytest
import torch

from osler import catalog, recipe
from osler.fusion import Fusion
from osler.problem import Problem

NAMES = catalog.names("fusion")
WIDTHS = {"image": 5, "image.mr": 4, "covariates": 3}


def built(name: str, widths: dict[str, int] = WIDTHS, **options: int) -> Fusion:
    torch.manual_seed(3)
    made: Fusion = catalog.find("fusion", name).build(recipe.options("fusion", name, options), widths=widths).double()
    for weight in made.parameters():
        torch.nn.init.normal_(weight)
    return made.eval()


def vectors(n: int = 6, widths: dict[str, int] = WIDTHS) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {name: torch.randn(n, width, dtype=torch.float64) for name, width in widths.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_fusion_is_one(name: str) -> None:
    made = built(name)
    fused = made(vectors(), torch.ones(6, 3, dtype=torch.bool))
    assert fused.shape == (6, made.features)
    assert [len(one) for one in made.absent] == list(WIDTHS.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_where_a_source_is_absent_does_not_matter(name: str) -> None:
    made, given = built(name), vectors()
    for number, source in enumerate(WIDTHS):
        present = torch.ones(6, 3, dtype=torch.bool)
        present[::2, number] = False
        other = {
            key: torch.where(present[:, number, None], v, 1e6) if key == source else v for key, v in given.items()
        }
        assert torch.equal(made(given, present), made(other, present))
        learned = made.absent[number].expand(6, -1)
        told = {**given, source: torch.where(present[:, number, None], given[source], learned)}
        assert torch.equal(made(given, present), made(told, torch.ones_like(present)))


@pytest.mark.parametrize("name", NAMES)
def test_every_source_counts_and_every_absence_learns(name: str) -> None:
    made = built(name)
    given = {key: value.requires_grad_() for key, value in vectors().items()}
    made(given, torch.ones(6, 3, dtype=torch.bool)).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in given.values())
    made.zero_grad()
    made(vectors(), torch.zeros(6, 3, dtype=torch.bool)).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in made.absent)


@pytest.mark.parametrize("name", NAMES)
def test_cases_do_not_see_each_other(name: str) -> None:
    made, given, present = built(name), vectors(), torch.ones(6, 3, dtype=torch.bool)
    one = made({key: value[2:3] for key, value in given.items()}, present[2:3])
    assert torch.allclose(made(given, present)[2:3], one)


def test_concat_by_hand() -> None:
    made = built("concat", width=4)
    weight, bias = (made.get_parameter(f"layer.{key}").detach().numpy() for key in ("weight", "bias"))
    given = vectors(3)
    for row, fused in enumerate(made(given, torch.ones(3, 3, dtype=torch.bool)).detach().numpy()):
        joined = [float(x) for value in given.values() for x in value[row]]
        for j in range(4):
            u = bias[j] + sum(weight[j, i] * x for i, x in enumerate(joined))
            assert fused[len(joined) + j] == pytest.approx(u / (1 + np.exp(-u)), abs=1e-12)
        assert fused[: len(joined)] == pytest.approx(joined)


def test_without_a_layer_evidence_is_only_added() -> None:
    made = built("concat", width=0)
    given, every = vectors(2), torch.ones(2, 3, dtype=torch.bool)
    assert made.features == 12
    assert torch.equal(made(given, every), torch.cat(list(given.values()), 1))


def test_film_by_hand() -> None:
    """Perez 2018, equation 2: gamma * v + beta, with gamma = 1 + g."""
    made = built("film", width=4)
    get = {key: value.detach().numpy() for key, value in made.named_parameters()}
    given = vectors(3)
    for row, fused in enumerate(made(given, torch.ones(3, 3, dtype=torch.bool)).detach().numpy()):
        beside = [float(x) for key in ("image.mr", "covariates") for x in given[key][row]]
        hidden = []
        for j in range(4):
            u = get["says.0.bias"][j] + sum(get["says.0.weight"][j, i] * x for i, x in enumerate(beside))
            hidden.append(u / (1 + np.exp(-u)))
        said = [get["says.2.bias"][j] + sum(get["says.2.weight"][j, i] * h for i, h in enumerate(hidden))
                for j in range(10)]  # fmt: skip
        for j, v in enumerate(given["image"][row].tolist()):
            assert fused[j] == pytest.approx((1 + said[j]) * v + said[5 + j], abs=1e-12)


def test_cross_attention_by_hand() -> None:
    """Vaswani 2017, equation 1, head by head in plain loops; then the layer after it."""
    made = built("cross_attention", width=4, heads=2)
    w = {key: value.detach().numpy() for key, value in made.named_parameters()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    given = vectors(2)
    for row, fused in enumerate(made(given, torch.ones(2, 3, dtype=torch.bool)).detach().numpy()):
        tokens = [linear(v[row].numpy(), f"token.{i}") for i, v in enumerate(given.values())]
        looks = [linear(norm(z, "first"), "looks") for z in tokens]
        found = []
        for i in range(3):
            taken = np.zeros(4)
            for head in (slice(0, 2), slice(2, 4)):
                score = [looks[i][:4][head] @ looks[j][4:8][head] / np.sqrt(2) for j in range(3)]
                share = np.exp(score) / np.exp(score).sum()
                taken[head] = sum(share[j] * looks[j][8:][head] for j in range(3))
            y = tokens[i] + linear(taken, "takes")
            hidden = linear(norm(y, "second"), "layer.0")
            found += (y + linear(hidden / (1 + np.exp(-hidden)), "layer.2")).tolist()
        assert fused == pytest.approx(found, abs=1e-9)


def test_film_begins_as_the_image_alone() -> None:
    made = catalog.find("fusion", "film").build(recipe.options("fusion", "film", {}), widths=WIDTHS).double()
    given = vectors()
    assert torch.equal(made(given, torch.ones(6, 3, dtype=torch.bool)), given["image"])


def test_impossible_widths_are_refused() -> None:
    with pytest.raises(Problem, match="cannot be -1"):
        built("concat", width=-1)
    with pytest.raises(Problem, match="cannot be 0"):
        built("film", width=0)
    with pytest.raises(Problem, match="cannot have 3 heads in a width of 32"):
        built("cross_attention", heads=3)
    with pytest.raises(Problem, match="needs something beside"):
        built("film", {"image": 3})
