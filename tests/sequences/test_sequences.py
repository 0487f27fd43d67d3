"""Along time: each network against its equation, step by step, and what is no moment never counts."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from osler import catalog
from osler.problem import Problem
from osler.sequences import Temporal, rhythm, self_attention

NAMES = catalog.names("sequences")
READINGS = ("literal", "tanh", "frames")
EVERY = [(name, {}) for name in NAMES] + [("attention", {"reading": reading}) for reading in READINGS[1:]]
EVERY += [("gru", {"layers": 2}), ("lstm", {"layers": 2}), ("self_attention", {"layers": 2, "width": 16})]
ATTENDING = [(name, options) for name, options in EVERY if name in ("attention", "self_attention")]
each = pytest.mark.parametrize(("name", "options"), EVERY, ids=lambda value: str(value))


def built(name: str, features: int = 5, seed: int = 0, **options: Any) -> Temporal:
    torch.manual_seed(seed)
    module = catalog.find("sequences", name)
    made: Temporal = module.build(module.Options(**options), features=features).double()
    for weight in made.parameters():
        # Nothing may hide behind a bias of 0.
        nn.init.normal_(weight, std=0.7)
    return made


def sequence(*lengths: int, longest: int = 6, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Moments in front, then nonsense; gaps of all sizes."""
    torch.manual_seed(seed)
    x = torch.randn(len(lengths), longest, 5, dtype=torch.float64)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    gaps = torch.rand(len(lengths), longest, dtype=torch.float64) * 9
    gaps[:, 0] = 1
    return torch.where(mask[..., None], x, torch.nan), mask, torch.where(mask, gaps, torch.nan)


def is_blind(name: str, options: dict[str, Any]) -> bool:
    """To order and to times: a set of moments. In the literal reading the state cancels."""
    return name in ("mean", "max") or (name == "attention" and options.get("reading", "literal") == "literal")


def cat(*parts: Tensor) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


# --- what holds for every network ---------------------------------------------------------------------------


@each
def test_nonsense_that_is_no_moment_changes_nothing_and_gets_no_gradient(name: str, options: dict[str, Any]) -> None:
    network = built(name, **options)
    x, mask, gaps = sequence(6, 3, 1)
    together = network(x.requires_grad_(), mask, gaps)
    assert together.shape == (3, network.features)
    together.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad[~mask] == 0).all()
    assert all(w.grad is None or w.grad.isfinite().all() for w in network.parameters())
    for row, length in enumerate((6, 3, 1)):
        alone = network(x[row : row + 1, :length], mask[row : row + 1, :length], gaps[row : row + 1, :length])
        torch.testing.assert_close(alone[0], together[row])


@each
@settings(max_examples=15, deadline=None)
@given(where=st.lists(st.booleans(), min_size=1, max_size=7).filter(any), seed=st.integers(0, 99))
def test_holes_may_be_anywhere(name: str, options: dict[str, Any], where: list[bool], seed: int) -> None:
    network, count = built(name, seed=seed, **options), sum(where)
    x, mask, gaps = sequence(count, longest=count, seed=seed)
    holed = torch.tensor([where])
    spread = [torch.full((1, len(where), *part.shape[2:]), torch.nan, dtype=torch.float64) for part in (x, gaps)]
    for part, whole in zip((x, gaps), spread, strict=True):
        whole[holed] = part[mask]
    torch.testing.assert_close(network(spread[0], holed, spread[1]), network(x, mask, gaps))
    if hasattr(network, "weights"):
        given_to = network.weights(spread[0], holed, spread[1])
        torch.testing.assert_close(given_to[holed], network.weights(x, mask, gaps)[0])
        assert (given_to[~holed] == 0).all()


@each
def test_the_gradient_is_the_numerical_one(name: str, options: dict[str, Any]) -> None:
    network = built(name, **options)
    x, mask, gaps = sequence(3, 2, longest=3)
    known = torch.where(mask[..., None], x, 0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda moments: network(moments, mask, gaps), known)


@each
def test_order_counts_where_it_should(name: str, options: dict[str, Any]) -> None:
    network, (x, mask, _) = built(name, **options), sequence(5, longest=5)
    even = torch.ones_like(x[:, :, 0])
    forward, backward = network(x, mask, even), network(x.flip(1), mask, even)
    blind = is_blind(name, options)
    assert torch.allclose(forward, backward) is blind


@each
def test_gaps_count_where_they_should(name: str, options: dict[str, Any]) -> None:
    network, (x, mask, gaps) = built(name, **options), sequence(5, longest=5)
    stretched = torch.cat([gaps[:, :1], gaps[:, 1:] * 3], 1)
    blind = is_blind(name, options)
    assert torch.allclose(network(x, mask, gaps), network(x, mask, stretched)) is blind
    assert network.timed is (name not in ("mean", "max"))


@pytest.mark.parametrize(("name", "options"), ATTENDING, ids=lambda value: str(value))
def test_the_weights_of_the_moments_sum_to_one(name: str, options: dict[str, Any]) -> None:
    network, (x, mask, gaps) = built(name, **options), sequence(6, 3, 1)
    weights = network.weights(x, mask, gaps)
    assert (weights >= 0).all() and (weights[~mask] == 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert weights[2].tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mean", "max")])
def test_a_length_of_nothing_is_refused(name: str) -> None:
    module = catalog.find("sequences", name)
    with pytest.raises(Problem, match="is 0"):
        module.build(module.Options(**{"width" if name == "self_attention" else "hidden": 0}), features=3)


def test_heads_share_the_width() -> None:
    with pytest.raises(Problem, match="30 among 4 heads"):
        self_attention.build(self_attention.Options(width=30, heads=4), features=3)


def test_rhythm_by_hand() -> None:
    assert rhythm(torch.tensor([[1.0, 0.0, 3.0, 7.0]])).squeeze(2).tolist() == [[0.0, -1.0, 1.0, 2.0]]


# --- each against its equation, in float64, one step after another ------------------------------------------


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def test_mean_and_maximum_by_hand() -> None:
    x, mask, gaps = sequence(6, 3, 1)
    for row, length in enumerate((6, 3, 1)):
        for k in range(5):
            seen = [float(x[row, t, k]) for t in range(length)]
            assert float(built("mean")(x, mask, gaps)[row, k]) == pytest.approx(math.fsum(seen) / length)
            assert float(built("max")(x, mask, gaps)[row, k]) == max(seen)


def states(network: Any, x: Tensor, gaps: Tensor) -> list[Tensor]:
    """h_0, h_1, ... by h_t = tanh(W h_{t-1} + U x_t + b), and what an uneven gap adds."""
    part = network.state
    h = [torch.zeros(len(part.W.weight), dtype=torch.float64)]
    for t in range(len(x)):
        uneven = part.G.weight[:, 0] * (math.log2(1 + float(gaps[t])) - 1)
        h.append(torch.tanh(part.W.weight @ h[-1] + part.U.weight @ x[t] + part.U.bias + uneven))
    return h


@pytest.mark.parametrize("even", [True, False])
def test_rnn_is_the_equation(even: bool) -> None:
    network: Any = built("rnn", hidden=4)
    x, mask, gaps = sequence(6, 3, 1)
    gaps = torch.where(mask, 1.0, torch.nan).double() if even else gaps
    found = network(x, mask, gaps)
    for row, length in enumerate((6, 3, 1)):
        h = torch.zeros(4, dtype=torch.float64)
        if even:
            # As it stands in the source text, and nothing else.
            for t in range(length):
                h = torch.tanh(network.state.W.weight @ h + network.state.U.weight @ x[row, t] + network.state.U.bias)
        else:
            h = states(network, x[row, :length], gaps[row])[-1]
        torch.testing.assert_close(found[row], network.y.weight @ h + network.y.bias)


@pytest.mark.parametrize("layers", [1, 2])
def test_gru_is_the_equation(layers: int) -> None:
    network: Any = built("gru", hidden=4, layers=layers)
    x, mask, gaps = sequence(6, 3, 1)
    found = network(x, mask, gaps)
    for row, length in enumerate((6, 3, 1)):
        inputs = [torch.cat([x[row, t], torch.log2(1 + gaps[row, t, None]) - 1]) for t in range(length)]
        for layer in range(layers):
            w, u = (getattr(network.cells, f"weight_{kind}_l{layer}").chunk(3) for kind in ("ih", "hh"))
            b, c = (getattr(network.cells, f"bias_{kind}_l{layer}").chunk(3) for kind in ("ih", "hh"))
            h, above = torch.zeros(4, dtype=torch.float64), []
            for v in inputs:
                r = sigmoid(w[0] @ v + b[0] + u[0] @ h + c[0])
                z = sigmoid(w[1] @ v + b[1] + u[1] @ h + c[1])
                n = torch.tanh(w[2] @ v + b[2] + r * (u[2] @ h + c[2]))
                h = (1 - z) * n + z * h
                above.append(h)
            inputs = above
        torch.testing.assert_close(found[row], inputs[-1])


@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_is_the_equation(layers: int) -> None:
    network: Any = built("lstm", hidden=4, layers=layers)
    x, mask, gaps = sequence(6, 3, 1)
    found = network(x, mask, gaps)
    for row, length in enumerate((6, 3, 1)):
        inputs = [torch.cat([x[row, t], torch.log2(1 + gaps[row, t, None]) - 1]) for t in range(length)]
        for layer in range(layers):
            w, u = (getattr(network.cells, f"weight_{kind}_l{layer}").chunk(4) for kind in ("ih", "hh"))
            b, e = (getattr(network.cells, f"bias_{kind}_l{layer}").chunk(4) for kind in ("ih", "hh"))
            h = c = torch.zeros(4, dtype=torch.float64)
            above = []
            for v in inputs:
                i, f, g, o = (w[k] @ v + b[k] + u[k] @ h + e[k] for k in range(4))
                c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
                h = sigmoid(o) * torch.tanh(c)
                above.append(h)
            inputs = above
        torch.testing.assert_close(found[row], inputs[-1])


def score(network: Any, reading: str, h: Tensor, x: Tensor) -> Tensor:
    """s(h, x), of [h ; x] joined."""
    matrix = torch.cat([network.by_state.weight, network.by_moment.weight], 1)
    joined = matrix @ torch.cat([h, x]) + network.by_state.bias
    return network.v.weight[0] @ torch.tanh(joined) if reading == "tanh" else joined[0]


@pytest.mark.parametrize("reading", READINGS)
def test_attention_is_the_equation(reading: str) -> None:
    network: Any = built("attention", reading=reading, hidden=4)
    x, mask, gaps = sequence(6, 3, 1)
    found, weights, matrix = network(x, mask, gaps), network.weights(x, mask, gaps), network.matrix(x, mask, gaps)
    for row, length in enumerate((6, 3, 1)):
        h = states(network, x[row, :length], gaps[row])
        rows = []
        for t in range(length):
            # h[t] is the state before moment t, counted from 0.
            before = [h[u] if reading == "frames" else h[t] for u in range(length)]
            e = [torch.exp(score(network, reading, before[u], x[row, u])) for u in range(length)]
            rows.append(torch.stack(e) / sum(e))
            torch.testing.assert_close(matrix[row, t, :length], rows[t])
        torch.testing.assert_close(weights[row, :length], rows[-1])
        torch.testing.assert_close(found[row], sum(rows[-1][u] * x[row, u] for u in range(length)))
    assert (matrix[~mask[:, None, :].expand_as(matrix)] == 0).all()


def test_in_the_literal_reading_the_state_and_the_bias_cancel() -> None:
    """exp(v h + v x + b) / sum exp(v h + v x' + b): what does not depend on x' stands above and below the line."""
    network: Any = built("attention", reading="literal", hidden=4)
    x, mask, gaps = sequence(6, longest=6)
    matrix = network.matrix(x, mask, gaps)
    of_x_alone = torch.softmax(x @ network.by_moment.weight[0], 1)
    torch.testing.assert_close(matrix, of_x_alone[:, None].expand_as(matrix))
    found = network(x, mask, gaps)
    for part in (network.state.W.weight, network.state.U.weight, network.by_state.weight, network.by_state.bias):
        nn.init.normal_(part, std=3)
    torch.testing.assert_close(network(x, mask, gaps), found)
    # The document's own a_t, the diagonal of A, need not sum to 1 in the form that does see the state.
    bent: Any = built("attention", reading="tanh", hidden=4)
    assert abs(float(bent.matrix(x, mask, gaps)[0].detach().diagonal().sum()) - 1) > 1e-3


def test_self_attention_is_the_equation() -> None:
    network: Any = built("self_attention", width=12, heads=3, layers=2)
    x, mask, gaps = sequence(6, 3, 1)
    found, weights = network(x, mask, gaps), network.weights(x, mask, gaps)

    def normed(v: Tensor, layer: nn.LayerNorm) -> Tensor:
        centred = v - v.mean()
        return centred / torch.sqrt(centred.square().mean() + layer.eps) * layer.weight + layer.bias

    def waves(at: float) -> Tensor:
        angles = [at / 10_000 ** (2 * i / 12) for i in range(6)]
        return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)

    for row, length in enumerate((6, 3, 1)):
        times = [float(gaps[row, 1 : t + 1].sum()) for t in range(length)]
        places = [cat(waves(float(t)), waves(times[t])) for t in range(length)]
        tokens = [network.enter(x[row, t]) + network.place.weight @ places[t] for t in range(length)]
        for layer in network.layers:
            q, k, v = (
                [(w @ normed(token, layer.before) + b).chunk(3) for token in tokens]
                for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
            )
            after = []
            for t in range(length):
                heads = []
                for one in range(3):
                    e = torch.stack([torch.exp(q[t][one] @ k[u][one] / math.sqrt(4)) for u in range(length)])
                    heads.append(sum(e[u] / e.sum() * v[u][one] for u in range(length)))
                y = tokens[t] + layer.out(cat(*heads))
                after.append(y + layer.dense(normed(y, layer.between)))
            tokens = after
        tokens = [normed(token, network.norm) for token in tokens]
        e = torch.stack([torch.exp(network.v.weight[0] @ token) for token in tokens])
        torch.testing.assert_close(weights[row, :length], e / e.sum())
        torch.testing.assert_close(found[row], sum(e[t] / e.sum() * tokens[t] for t in range(length)))


def test_with_even_gaps_time_says_what_the_number_says() -> None:
    """Then the two halves of ``place`` see the same waves, and only their sum counts."""
    network: Any = built("self_attention", width=8, heads=2)
    x, mask, _ = sequence(6, 3)
    even = torch.where(mask, 1.0, torch.nan).double()
    before = network(x, mask, even)
    moved = torch.randn(8, 8, dtype=torch.float64)
    with torch.no_grad():
        network.place.weight += torch.cat([moved, -moved], 1)
    torch.testing.assert_close(network(x, mask, even), before)


# --- what they learn ----------------------------------------------------------------------------------------


def learned(name: str, x: Tensor, y: Tensor, steps: int = 150, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    module = catalog.find("sequences", name)
    network = module.build(module.Options(**options), features=x.shape[2])
    whole = nn.Sequential()
    whole.sequence, whole.head = network, nn.Linear(network.features, 1)
    optimizer = torch.optim.AdamW(whole.parameters(), 0.01)
    mask, gaps = torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(x.shape[:2])
    for _ in range(steps):
        loss = nn.functional.binary_cross_entropy_with_logits(whole.head(network(x, mask, gaps))[:, 0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return whole


def auroc(whole: Any, x: Tensor, y: Tensor) -> float:
    mask, gaps = torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(x.shape[:2])
    with torch.no_grad():
        logit = whole.head(whole.sequence(x, mask, gaps))[:, 0]
    above = logit[y == 1][:, None] - logit[y == 0]
    return float(((above > 0).double() + (above == 0).double() / 2).mean())


def growing(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Something that grows or shrinks by the same steps: the set of moments is the same, only the order tells."""
    torch.manual_seed(seed)
    y = (torch.arange(count) % 2).float()
    size = torch.linspace(-1, 1, 8) * (0.5 + torch.rand(count, 1))
    size = torch.where(y[:, None] == 1, size, size.flip(1))
    direction = torch.tensor([1.0, -0.5, 0.3, 0.0])
    return size[..., None] * direction + 0.1 * torch.randn(count, 8, 4), y


@pytest.mark.parametrize(
    ("name", "options"), [(name, {}) for name in NAMES] + [("attention", {"reading": r}) for r in READINGS[1:]]
)
def test_what_lies_in_the_order_alone_is_learned_by_those_that_see_it(name: str, options: dict[str, Any]) -> None:
    whole = learned(name, *growing(128, seed=0), **options)
    found = auroc(whole, *growing(1000, seed=1))
    assert abs(found - 0.5) <= 0.05 if is_blind(name, options) else found >= 0.95


def test_attention_finds_the_one_moment_among_sixty() -> None:
    def planted(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(seed)
        x, y, at = torch.randn(count, 60, 8), (torch.arange(count) % 2).float(), torch.randint(0, 60, (count,))
        x[torch.arange(count), at] += y[:, None] * torch.tensor([5.0, -5.0, 5.0, 0, 0, 0, 0, 0])
        return x, y, at

    x, y, _ = planted(256, 0)
    whole: Any = learned("attention", x, y, steps=60)
    x, y, at = planted(1000, 1)
    with torch.no_grad():
        weights = whole.sequence.weights(x, torch.ones(1000, 60, dtype=torch.bool), torch.ones(1000, 60))
    assert float((weights.argmax(1) == at)[y == 1].double().mean()) >= 0.9
    assert auroc(whole, x, y) >= 0.95
