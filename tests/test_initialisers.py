"""Initialisers: statistics are torch's own, zero means zero, fits are least squares, and chance germinates nothing."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from compiling import compiled
from hosts_and_data import (
    EXACT,
    FITTED,
    KEY,
    Convolved,
    Looping,
    Partly,
    Tokens,
    active,
    cut,
    data,
    made,
    relu_mlp,
    squares,
    tanh_mlp,
    whole,
)
from torch import nn

import esper
from esper.errors import ArgumentError, SeedError, UnknownLayerError
from esper.growth.birth import DoNotGerminate, Initialised
from esper.growth.initialisers import initialise, initialiser
from esper.growth.line_search import Trial
from esper.growth.statistics import layer_statistics
from esper.lifecycle import SeedLifecycleState as State

# ---- the kernels at birth -------------------------------------------------------------------------------


SITES = {
    "low_rank": (tanh_mlp, "2", "low_rank", (5,)),
    "gelu": (relu_mlp, "0", "mlp", (5,)),
    "relu": (relu_mlp, "2", "relu_units", (5,)),
    "tanh": (relu_mlp, "0", "tanh_units", (5,)),
    "tokens": (Tokens, "mix", "relu_units", (4, 5)),
    "conv": (partial(Convolved, kernel_size=3, padding=1), "conv", "conv", (2, 6, 6)),
    "conv, circular": (
        partial(Convolved, kernel_size=3, padding=1, padding_mode="circular"),
        "conv",
        "conv",
        (2, 6, 6),
    ),
}


@cache
def place(site):
    """The host, batches of it and what the initialisers look at."""
    build, layer, _, shape = SITES[site]
    model, batches = esper.wrap(made(build), seeds_per_layer=1), data(*shape)
    seen = layer_statistics(squares, model, batches, layers=[layer])[layer]
    # Fitted and checked on the same few data: whether a fit generalises is another test.
    trial = Trial(squares, model, batches, batches, errors=0.0)
    return model, batches, {"gradmax": seen, "tiny": seen, "least_squares": trial}


@cache
def grown(site, name, **options):
    _, layer, kernel, _ = SITES[site]
    model, _, evidence = place(site)
    init = initialiser(name, evidence.get(name))
    found, _ = esper.germinate(model, None, layer=layer, blueprint=kernel, key=KEY, options=options, init=init)
    return found, layer


@jax.jit
def forward(model, x):
    return model(x)


optimised = compiled(lambda model, x: model(x))


@pytest.mark.parametrize("name", EXACT + FITTED)
@pytest.mark.parametrize("site", SITES)
def test_germination_changes_no_bit(site, name):
    model, batches, _ = place(site)
    found, layer = grown(site, name)
    assert found.seeds.lifecycle[model.structure.row(layer), 0] == State.TRAINING
    left, right = (np.asarray(optimised(one, batches[0][0])) for one in (found, model))
    assert np.array_equal(left.view(np.uint32), right.view(np.uint32))


WIDTHS = [("low_rank", 5), ("gelu", 1), ("gelu", 24), ("relu", 7), ("relu", 24), ("tanh", 8), ("conv", 16)]


@pytest.mark.parametrize("name", ["pairs", "gradmax"])
@pytest.mark.parametrize(("site", "width"), WIDTHS)
def test_the_exact_ones_are_zero_to_the_last_bit_with_the_kernel_on(site, width, name):
    model, batches, _ = place(site)
    found, layer = grown(site, name, **{"rank" if site == "low_rank" else "width": width})
    every = cut(batches, 1)[0][0]
    for run, x in ((forward, every), (optimised, every[:13]), (optimised, every[:1])):
        assert np.array_equal(run(active(found, layer), x), run(model, x))


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("site", SITES)
def test_the_fitted_ones_are_not(site, name):
    model, batches, _ = place(site)
    found, layer = grown(site, name)
    assert np.abs(forward(active(found, layer), batches[0][0]) - forward(model, batches[0][0])).max() > 1e-3


def test_the_members_of_a_pair_have_no_weight_of_zero():
    found, _ = grown("gelu", "pairs")
    weights = jax.tree.map(np.asarray, found.params["kernels"]["0"][0])
    assert all(np.all(weights[part] != 0) for part in ("0.weight", "0.bias", "2.weight"))
    assert np.array_equal(weights["0.weight"][::2], weights["0.weight"][1::2])
    assert np.array_equal(weights["2.weight"][:, ::2], -weights["2.weight"][:, 1::2])


@jax.jit
@partial(jax.grad, argnums=0)
def gradients(kernels, model, batch):
    return squares(model.replace(params={**model.params, "kernels": kernels}), batch)


@pytest.mark.parametrize("name", EXACT + FITTED)
@pytest.mark.parametrize("site", SITES)
def test_every_parameter_is_alive_within_two_steps(site, name):
    batch = whole(place(site)[1])
    found, layer = grown(site, name)
    kernels = found.params["kernels"]
    alive = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), kernels)
    for _ in range(2):
        grads = gradients(kernels, active(found, layer), batch)
        alive = jax.tree.map(lambda seen, grad: seen | (np.asarray(grad) != 0), alive, grads)
        kernels = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, kernels, grads)
    assert all(leaf.any() for leaf in jax.tree.leaves(alive))
    first = alive[layer][0]["0.weight"]
    assert first.reshape(len(first), -1).any(axis=1).all(), "a unit without a gradient"


# ---- what each promises ---------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["low_rank", "gelu", "relu", "tanh"])
def test_gradmax_has_the_largest_gradient_of_its_kind(site):
    """Of 200 draws under the same constraint: output weights with orthogonal columns of that norm."""
    _, batches, _ = place(site)
    last = "1.weight" if site == "low_rank" else "2.weight"
    found, layer = grown(site, "gradmax", **{"rank" if site == "low_rank" else "width": 2})
    kernel, model = found.params["kernels"][layer][0], active(found, layer)

    @jax.jit
    def norms(outgoing):
        def norm(w):
            grads = gradients({layer: {0: {**kernel, last: w}}}, model, whole(batches))
            return optax.tree.norm(grads, squared=True)

        return jax.lax.map(norm, outgoing)

    chosen = np.asarray(kernel[last], np.float64)
    copies = 2 if site == "relu" else 1
    directions = chosen.shape[1] // copies
    columns = np.linalg.norm(chosen, axis=0)
    np.testing.assert_allclose(columns, columns[0], rtol=1e-6)
    random = np.linalg.qr(np.random.default_rng(0).normal(size=(200, len(chosen), directions)))[0]
    random = columns[0] * np.repeat(random, copies, axis=2)
    random[:, :, 1::2] *= -1 if copies == 2 else 1
    squared = np.asarray(norms(np.concatenate([chosen[None], random]).astype(np.float32)))
    assert (squared[0] >= squared[1:] * (1 - 1e-5)).all()
    assert squared[0] > 1.2 * np.median(squared[1:])


def born(site, name):
    """The kernel's parameters, the model with it on, and the reported gain."""
    drawn, layer = grown(site, "zero_output")
    found, outcome = initialise(drawn, layer=layer, init=initialiser(name, place(site)[2][name]), key=KEY)
    return found.params["kernels"][layer][0], active(found, layer), outcome.report.gain


@pytest.mark.parametrize("site", ["low_rank", "gelu", "relu", "tanh", "tokens", "conv"])
def test_gradmax_reports_the_squared_gradient_of_the_incoming_weights(site):
    kernel, model, gain = born(site, "gradmax")
    layer = SITES[site][1]
    grads = gradients({layer: {0: kernel}}, model, whole(place(site)[1]))[layer][0]
    incoming = sum(float(jnp.sum(grads[part] ** 2)) for part in ("0.weight", "0.bias") if part in grads)
    np.testing.assert_allclose(incoming, gain, rtol=1e-4)


@pytest.mark.parametrize("site", ["low_rank", "gelu", "relu", "tokens", "conv"])
def test_tiny_reports_the_slope_of_the_loss_by_alpha(site):
    """Not for tanh, which is linear only near 0. The output is linear in the last layer: its gradient tells."""
    kernel, model, gain = born(site, "tiny")
    layer = SITES[site][1]
    last = {part for part in kernel if not part.startswith("0.")}
    off = {part: leaf * 0 if part in last else leaf for part, leaf in kernel.items()}
    grads = gradients({layer: {0: off}}, model, whole(place(site)[1]))[layer][0]
    along = -sum(float(jnp.vdot(grads[part], kernel[part])) for part in last)
    np.testing.assert_allclose(along, gain, rtol=1e-4)


def linear_problem(noise=0.0, seed=0):
    """A linear host, and targets that are off by a linear map of its input."""
    model = esper.wrap(made(lambda: nn.Linear(6, 4)), seeds_per_layer=1)
    draw = np.random.default_rng(seed)
    # Correlated, but well conditioned: normal equations of float32 sums square the condition, and the ridge shows.
    x = draw.normal(size=(8, 16, 6)) @ (np.eye(6) + 0.3 * draw.normal(size=(6, 6)))
    off = x @ draw.normal(size=(6, 4)) + noise * draw.normal(size=(8, 16, 4))
    x = x.astype(np.float32)
    return model, (x, (np.asarray(model(x)) + off).astype(np.float32)), off.reshape(-1, 4)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_rank_least_squares_is_lstsq_of_that_rank(rank):
    model, batches, off = linear_problem(noise=0.3)
    x = batches[0].reshape(-1, 6).astype(np.float64)
    trial = Trial(squares, model, batches, batches)
    found, _ = esper.germinate(
        model, None, layer="", blueprint="low_rank", options={"rank": rank}, key=KEY,
        init=initialiser("least_squares", trial),
    )  # fmt: skip
    # The best map of a rank, by another way than the normal equations: the fit's own rows, truncated.
    full = np.linalg.lstsq(x, off, rcond=None)[0]
    _, _, right = np.linalg.svd(x @ full)
    wanted = full @ right[:rank].T @ right[:rank]
    kernel = found.params["kernels"][""][0]
    np.testing.assert_allclose(kernel["1.weight"] @ kernel["0.weight"], wanted.T, rtol=1e-4, atol=1e-4)
    floor = np.sum((off - x @ wanted) ** 2) / 2 / len(x)
    np.testing.assert_allclose(squares(active(found, ""), whole(batches)), floor, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "relu_units"])
def test_least_squares_of_a_hidden_layer_is_lstsq_on_its_features(kind):
    model, batches, off = linear_problem(noise=0.3)
    x = torch.from_numpy(batches[0].reshape(-1, 6))
    drawn, _ = esper.germinate(model, None, layer="", blueprint=kind, options={"width": 8}, key=KEY)
    init = initialiser("least_squares", Trial(squares, model, batches, batches, scales=(1.0,)))
    found, outcome = initialise(drawn, layer="", init=init, key=KEY)
    weights = {name: torch.from_numpy(np.array(leaf)) for name, leaf in found.params["kernels"][""][0].items()}
    act = nn.GELU() if kind == "mlp" else nn.ReLU()
    features = act(x.double() @ weights["0.weight"].double().T + weights["0.bias"]).numpy()
    features = np.column_stack([features, np.ones(len(features))])
    wanted = np.linalg.lstsq(features, off, rcond=None)[0]
    made_of = np.column_stack([weights["2.weight"].numpy(), weights["2.bias"].numpy()])
    np.testing.assert_allclose(made_of, wanted.T, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    assert outcome.report.scale == 1.0 and outcome.report.check.mean > 0
    before = drawn.params["kernels"][""][0]
    assert np.array_equal(before["0.weight"], weights["0.weight"].numpy())


@pytest.mark.parametrize("scale", [0.25, 8.0])
def test_the_line_search_finds_the_scale_and_folds_it_in(scale):
    model, batches, _ = linear_problem()

    # With the loss this much flatter, the negative gradient is so much shorter than what is off.
    found, _ = esper.germinate(
        model, None, layer="", blueprint="low_rank", key=KEY,
        init=initialiser("least_squares", Trial(_FLATTER[scale], model, batches, batches)),
    )  # fmt: skip
    one = jax.tree.map(lambda array: array[0], batches)
    assert squares(active(found, ""), one) < 1e-6 * squares(model, one)


def _flatter(scale):
    return lambda model, batch: squares(model, batch) / scale


_FLATTER = {scale: _flatter(scale) for scale in (0.25, 8.0)}


def test_tiny_descends_further_than_random_directions_of_its_size():
    for key in range(5):
        model, batches, _ = linear_problem(noise=1.0, seed=key)
        one = whole(batches)
        seen = layer_statistics(squares, model, batches, layers=[""])[""]
        found, _ = esper.germinate(
            model, None, layer="", blueprint="low_rank", options={"rank": 2}, key=KEY, init=initialiser("tiny", seen)
        )
        live = active(found, "")

        @jax.jit
        def loss(down, up, live=live, one=one):
            return squares(
                live.replace(params={**live.params, "kernels": {"": {0: {"0.weight": down, "1.weight": up}}}}), one
            )

        kernel = found.params["kernels"][""][0]
        x = batches[0].reshape(-1, 6)

        def size(down, up, x=x):
            return np.sqrt(np.mean(np.sum((x @ np.asarray(up @ down).T) ** 2, -1)))

        step = 1e-2
        best = loss(kernel["0.weight"], step * kernel["1.weight"])
        draw = np.random.default_rng(key)
        for _ in range(20):
            down, up = draw.normal(size=(2, 6)).astype(np.float32), draw.normal(size=(4, 2)).astype(np.float32)
            up *= step * size(kernel["0.weight"], kernel["1.weight"]) / size(down, up)
            assert best < loss(down, up)
            assert best < loss(down, -up)


def fitted_already(model, batches):
    fit = (batches[0], np.asarray(model(batches[0])))
    return fit, fit


def shuffled(model, batches):
    """What is off belongs to other rows in `fit`; `check` is other data, with nothing to find."""
    draw = np.random.default_rng(7)
    noise = draw.normal(size=(16, 16, 4)).astype(np.float32)
    x = draw.normal(size=(16, 16, 6)).astype(np.float32)
    targets = np.asarray(model(x)) + noise
    return (x[:4], targets[:4]), (x[4:], targets[4:])


@pytest.mark.parametrize("kind", ["low_rank", "mlp", "relu_units"])
@pytest.mark.parametrize("nothing_there", [fitted_already, shuffled])
def test_where_there_is_nothing_to_find_nothing_germinates(nothing_there, kind):
    model, batches, _ = linear_problem()
    fit, check = nothing_there(model, batches)
    opt_state = optax.adam(1e-3).init(model.params)
    drawn, _ = esper.germinate(model, None, layer="", blueprint=kind, key=KEY)
    init = initialiser("least_squares", Trial(squares, model, fit, check))
    same, outcome = initialise(drawn, layer="", init=init, key=KEY)
    assert isinstance(outcome, DoNotGerminate) and outcome.report.scale == 0 and same is drawn
    found, moved = esper.germinate(model, opt_state, layer="", blueprint=kind, key=KEY, init=init)
    assert found is model and moved is opt_state


def test_tiny_is_line_searched_where_it_is_given_a_trial():
    model, batches, _ = linear_problem()
    drawn, _ = esper.germinate(model, None, layer="", blueprint="mlp", key=KEY)
    _, outcome = initialise(drawn, layer="", init=initialiser("tiny", Trial(squares, model, batches, batches)), key=KEY)
    assert isinstance(outcome, Initialised) and outcome.report.scale == 1.0
    assert outcome.report.check.having < 1e-6 * outcome.report.check.without


# ---- arguments ------------------------------------------------------------------------------------------


def test_any_function_of_the_drawn_parameters_is_an_initialiser():
    model, _, _ = place("gelu")

    def ones(params, kernel, key):
        assert (kernel.layer, kernel.blueprint) == ("0", "mlp")
        return {name: jnp.ones_like(leaf) for name, leaf in params.items()}

    found, _ = esper.germinate(model, None, layer="0", blueprint="mlp", key=KEY, init=ones)
    assert all(bool(jnp.all(leaf == 1)) for leaf in jax.tree.leaves(found.params["kernels"]))


BAD_INITS = {
    "a parameter too few": (lambda p: {"0.weight": p["0.weight"]}, r"'mlp' at layer '0'.*\['0.weight'\].*'2.bias'"),
    "another shape": (lambda p: {**p, "0.weight": p["0.weight"].T}, r"0.weight as float32\[5, 32\].*float32\[32, 5\]"),
    "another dtype": (
        lambda p: {**p, "2.bias": p["2.bias"].astype(jnp.bfloat16)},
        r"2.bias as bfloat16\[12\].*float32",
    ),
}


@pytest.mark.parametrize("name", BAD_INITS)
def test_an_initialiser_keeps_names_shapes_and_dtypes(name):
    change, message = BAD_INITS[name]
    model, _, _ = place("gelu")
    with pytest.raises(SeedError, match=message):
        esper.germinate(
            model, None, layer="0", blueprint="mlp", key=KEY, init=lambda params, kernel, key: change(params)
        )


def on(blueprint, name, site="gelu", layer=None, **options):
    model, _, evidence = place(site)
    seen = evidence.get(name)
    layer = layer or SITES[site][1]
    init = initialiser(name, seen)
    return esper.germinate(model, None, layer=layer, blueprint=blueprint, options=options, key=KEY, init=init)


def observed(build, layer, shape=(5,)):
    return layer_statistics(squares, esper.wrap(made(build), target_layers=None), data(*shape), layers=[layer])


def one_batch():
    model, batches, _ = place("gelu")
    trial = Trial(squares, model, batches, cut(batches, 1))
    return esper.germinate(model, None, layer="0", blueprint="mlp", key=KEY, init=initialiser("least_squares", trial))


BAD_CALLS = {
    "unknown name": (lambda: initialiser("gradmix"), ArgumentError, "'gradmix'.*zero_output, pairs, gradmax"),
    "no statistics": (lambda: initialiser("gradmax"), ArgumentError, "'gradmax' works from a Statistics, not"),
    "no trial": (lambda: initialiser("least_squares", place("gelu")[2]["tiny"]), ArgumentError, "from a Trial, not"),
    "evidence for pairs": (lambda: initialiser("pairs", place("gelu")[2]["tiny"]), ArgumentError, "from no evidence"),
    "another layer's": (
        lambda: on("mlp", "tiny", layer="2"),
        SeedError,
        "at layer '2': the statistics are of layer '0'",
    ),
    "softmax": (lambda: on("softmax_units", "pairs"), SeedError, "'softmax_units' at layer '0' is not two layers"),
    "three layers": (lambda: on("three_layers", "pairs"), SeedError, "is not two layers around a pointwise"),
    "fed the output": (lambda: on("after", "pairs"), SeedError, "is fed the layer's output"),
    "dead and no bias": (
        lambda: on("relu_units", "gradmax", bias=False),
        SeedError,
        "dead.*give its first layer a bias",
    ),
    "flat at zero": (lambda: on("square_units", "gradmax"), SeedError, r"f'\(0\) = 0"),
    "even": (lambda: on("square_units", "tiny"), SeedError, "its activation is even"),
    "unknown layer": (lambda: observed(relu_mlp, "9"), UnknownLayerError, "'9'.*'0', '2'"),
    "detached": (lambda: observed(Partly, "cut"), SeedError, "'cut': no gradient of this loss reaches it"),
    "in a loop": (lambda: observed(Looping, "inner"), SeedError, "'inner' is called inside higher_order.while_loop"),
    "no batch axis": (
        lambda: layer_statistics(squares, place("gelu")[0], (np.ones(5), np.ones(3)), layers=["0"]),
        ArgumentError,
        r"\[batches, examples\].*\(3,\), \(5,\)",
    ),
    "one batch to check on": (one_batch, ArgumentError, "give at least two"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_layers_without_rows_are_refused_by_name():
    model = esper.wrap(made(Partly), target_layers=["token", "head"])
    with pytest.raises(SeedError, match="'token' is a Embedding; statistics are of Linear, Conv1d"):
        layer_statistics(squares, model, data(5), layers=["token"])


def test_a_kernel_that_is_not_there_cannot_be_initialised():
    with pytest.raises(SeedError, match="'0', seed 0 holds no kernel"):
        initialise(place("gelu")[0], layer="0", init=initialiser("pairs"), key=KEY)


def test_reports_are_plain_values():
    model, _, evidence = place("gelu")
    drawn, _ = esper.germinate(model, None, layer="0", blueprint="mlp", key=KEY)
    for name in EXACT + FITTED:
        _, outcome = initialise(drawn, layer="0", init=initialiser(name, evidence.get(name)), key=KEY)
        assert outcome.report.initialiser == name
        assert outcome.report.rank == len(outcome.report.singular_values)
        assert np.isnan(outcome.report.gain) == (name in ("zero_output", "pairs"))
