"""Every blueprint keeps its promises beside every kind of layer, in every blend; what does not fit is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import esper
from esper.blending import BLENDS
from esper.errors import SeedError, UnknownBlueprintError
from esper.growth.check import check_blueprint
from esper.growth.cost import cost
from esper.lifecycle import SeedLifecycleState as State
from esper.torch_frontend.blueprints import blueprint, names_for, zero_output

KEY = jax.random.key(2)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(6, 9), nn.Dropout(0.1), nn.Linear(9, 6)

    def forward(self, x):
        return self.down(self.drop(nn.functional.gelu(self.up(x))))


class Residual(nn.Module):
    def __init__(self, stride=1):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(4, 4, 3, stride, 1), nn.GroupNorm(2, 4)
        self.skip = nn.Conv2d(4, 4, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return self.skip(x) + torch.relu(self.norm(self.conv1(x)))


def in_map(layer, channels=4):
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), layer, nn.Flatten(2))


def block(first, second):
    return nn.Sequential(first, nn.Tanh(), second)


def rows(*shape):
    return lambda: torch.randn(*shape)


IMAGES = rows(2, 3, 8, 8)
FIRST = {
    "linear": (lambda: nn.Sequential(nn.Linear(12, 7)), "0", rows(3, 12)),
    "linear on sequences": (lambda: nn.Sequential(nn.Linear(6, 7), nn.Tanh()), "0", rows(2, 5, 6)),
    "the root": (lambda: nn.Linear(12, 7), "", rows(3, 12)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(11, 6)), "0", lambda: torch.randint(0, 11, (2, 5))),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2)), "0", rows(2, 5, 6)),
    "transformer layer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)),
        "0",
        rows(2, 5, 8),
    ),
    "a module of one's own": (lambda: nn.Sequential(Mlp()), "0", rows(2, 5, 6)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, 2, 1)), "0", rows(2, 3, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect")), "0", IMAGES),
    "conv2d, dilated, padded by name": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 1, "same", 2)), "0", IMAGES),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 3)), "0", rows(2, 2, 4, 5, 4)),
    "grouped conv2d": (lambda: in_map(nn.Conv2d(4, 8, 3, groups=2)), "1", IMAGES),
    "transposed conv2d": (lambda: in_map(nn.ConvTranspose2d(4, 3, 3, 2, 1, 1)), "1", IMAGES),
    "batch norm": (lambda: in_map(nn.BatchNorm2d(4)), "1", IMAGES),
    "batch norm of rows": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), "1", rows(4, 5)),
    "batch norm of signals": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), "1", rows(2, 3, 9)),
    "group norm": (lambda: in_map(nn.GroupNorm(2, 4)), "1", IMAGES),
    "residual block": (lambda: in_map(Residual()), "1", IMAGES),
    "residual block of stride 2": (lambda: in_map(Residual(2)), "1", IMAGES),
    "two linear layers": (lambda: nn.Sequential(block(nn.Linear(5, 6), nn.Linear(6, 5))), "0", rows(3, 5)),
    "two convolutions": (lambda: in_map(block(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 1))), "1", IMAGES),
}
MAPS = ("conv", "separable")
REFUSED = {
    "rows": {*MAPS, "attention"},
    "sequences": {*MAPS},
    "maps": {"conv1d"},
}
KIND = {
    "linear": "rows",
    "the root": "rows",
    "batch norm of rows": "rows",
    "two linear layers": "rows",
    "linear on sequences": "sequences",
    "embedding": "sequences",
    "layer norm": "sequences",
    "transformer layer": "sequences",
    "a module of one's own": "sequences",
}
COPIED = {"layer norm", "transformer layer", "a module of one's own", "group norm", "residual block"}
COPIED |= {"two linear layers", "two convolutions"}
WIDENED = {"two linear layers", "two convolutions"}


def fits(name, recipe):
    if recipe == "copy":
        return name in COPIED
    if recipe == "widen":
        return name in WIDENED
    return recipe not in REFUSED[KIND.get(name, "maps")]


CATALOGUE = names_for("Module")


def built(name):
    torch.manual_seed(0)
    host, layer, example = FIRST[name]
    model = esper.wrap(host(), target_layers=lambda path, _: path == layer, seeds_per_layer=1)
    return model, layer, example()


@pytest.mark.parametrize("name", FIRST)
def test_a_blueprint_keeps_its_promises_or_says_why_it_does_not_fit(name):
    model, layer, x = built(name)
    for recipe in CATALOGUE:
        if fits(name, recipe):
            found = check_blueprint(model, x, layer=layer, blueprint=recipe, key=KEY)
            assert found.parameters > 0 and found.flops > 0 and found.bytes == 4 * found.parameters, recipe
        else:
            with pytest.raises((SeedError, UnknownBlueprintError), match="blueprint"):
                check_blueprint(model, x, layer=layer, blueprint=recipe, key=KEY)


# Layer, recipe and blend in turn, so that each recipe meets each blend at least once and each kind of layer is met.
PAIRS = [(name, recipe) for name in FIRST for recipe in CATALOGUE if fits(name, recipe)]
TURNS = [(name, recipe, BLENDS[place % len(BLENDS)]) for place, (name, recipe) in enumerate(PAIRS)][::3]


def awake(model, layer, recipe, blend):
    grown, _ = esper.germinate(model, None, layer=layer, blueprint=recipe, key=KEY, blend=blend)
    kernel = grown.params["kernels"][layer][0]
    stirred = {n: a + 0.2 * jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) for n, a in kernel.items()}
    grown = grown.replace(params={**grown.params, "kernels": {layer: {0: stirred}}})
    return esper.set_alpha(esper.transition(grown, layer=layer, to=State.GRAFTING), layer=layer, alpha=0.75)


@pytest.mark.parametrize(("name", "recipe", "blend"), TURNS)
def test_a_live_kernel_does_in_torch_what_it_does_here(name, recipe, blend):
    model, layer, x = built(name)
    before = model(x)
    grown = awake(model, layer, recipe, blend)
    assert not torch.allclose(grown(x), before)
    certificate = esper.unwrap(grown, probe=x).esper_certificate  # raises where they disagree
    assert certificate["calls"] == 1


@pytest.mark.parametrize("recipe", [recipe for recipe in CATALOGUE if fits("two linear layers", recipe)])
def test_every_recipe_meets_every_blend(recipe):
    for blend in BLENDS:
        model, layer, x = built("two linear layers")
        check_blueprint(model, x, layer=layer, blueprint=recipe, key=KEY, blend=blend)
        esper.unwrap(awake(model, layer, recipe, blend), probe=x)


def test_blends_are_what_they_are_said_to_be():
    host, x = nn.Linear(3, 3), jnp.asarray([[1.0, -2.0, 0.5]])
    model = esper.wrap(host, seeds_per_layer=1)
    h, a = model(x), 0.75
    for blend in BLENDS:
        grown = awake(model, "", "low_rank", blend)
        kernel = grown.params["kernels"][""][0]
        prefix = "kernel." if blend == "gate" else ""
        k = x @ kernel[f"{prefix}0.weight"].T @ kernel[f"{prefix}1.weight"].T
        if blend == "gate":
            k = k * jax.nn.sigmoid(x @ kernel["gate.weight"].T + kernel["gate.bias"])
        wanted = {"lerp": h + a * (k - h), "multiply": h * (1 + a * k)}.get(blend, h + a * k)
        np.testing.assert_allclose(grown(x), wanted, rtol=1e-6)


def test_kernels_of_one_layer_join_in_order_of_seed():
    x = jnp.asarray([[1.0, -2.0, 0.5]])
    model = esper.wrap(nn.Linear(3, 3), seeds_per_layer=2)
    grown = model
    for seed, blend in ((1, "multiply"), (0, "add")):
        grown, _ = esper.germinate(grown, None, layer="", seed=seed, blueprint="low_rank", key=KEY, blend=blend)
        grown = esper.transition(grown, layer="", seed=seed, to=State.GRAFTING)
        grown = esper.set_alpha(grown, layer="", seed=seed, alpha=0.5)
    kernels = jax.tree.map(lambda leaf: leaf + 0.3, grown.params["kernels"])
    grown = grown.replace(params={**grown.params, "kernels": kernels})
    first, second = (x @ kernels[""][seed]["0.weight"].T @ kernels[""][seed]["1.weight"].T for seed in (0, 1))
    np.testing.assert_allclose(grown(x), (model(x) + 0.5 * first) * (1 + 0.5 * second), rtol=1e-6)
    esper.unwrap(grown, probe=torch.ones(2, 3))


def test_one_of_ones_own_takes_five_lines():
    @blueprint("test_doubled", kinds=("Linear",), placement="sequential")
    def doubled(site, width=3):
        inner = nn.Linear(site.features_out, width)
        return nn.Sequential(inner, nn.Tanh(), zero_output(nn.Linear(width, site.features_out)))

    model, layer, x = built("linear")
    assert check_blueprint(model, x, layer=layer, blueprint="test_doubled", key=KEY).parameters == 7 * 3 + 3 + 3 * 7 + 7
    assert "test_doubled" in names_for("Linear") and "test_doubled" not in names_for("LayerNorm")
    with pytest.raises(ValueError, match="already"):
        blueprint("test_doubled", kinds=("Linear", "Conv1d"))(doubled)
    blueprint("test_doubled", kinds=("LayerNorm",))(doubled)  # another kind is another recipe
    with pytest.raises(UnknownBlueprintError, match="is for Linear, LayerNorm, and layer"):
        check_blueprint(*built("conv2d")[::2], layer="0", blueprint="test_doubled", key=KEY)


class Loud(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features))

    def forward(self, x):
        return torch.sqrt(self.weight) * x


BROKEN = {
    "not zero": (lambda n: nn.Linear(n, n), "not zero at birth"),
    "dead": (lambda n: nn.Sequential(zero_output(nn.Linear(n, n)), nn.ReLU(), zero_output(nn.Linear(n, n))), "without"),
    "not finite": (Loud, "not finite"),
    "another shape": (lambda n: zero_output(nn.Linear(n, n + 1)), "returns shape"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_finds_what_is_broken(name):
    make, words = BROKEN[name]
    blueprint(f"test_{name}", placement="sequential")(lambda site: make(site.features_out))
    model, layer, x = built("linear")
    with pytest.raises(SeedError, match=words):
        check_blueprint(model, x, layer=layer, blueprint=f"test_{name}", key=KEY)


def test_a_copied_block_starts_from_what_the_host_has_learned():
    model, layer, x = built("a module of one's own")
    host = {name: array + 1 for name, array in model.params["host"].items()}
    model = model.replace(params={**model.params, "host": host})
    model(x)
    grown, _ = esper.germinate(model, None, layer=layer, blueprint="copy", key=KEY)
    kernel = grown.params["kernels"][layer][0]
    assert all(np.array_equal(kernel[f"block.{n}"], host[f"0.{n}"]) for n in ("up.weight", "down.bias"))
    assert kernel["block.up.weight"] is not host["0.up.weight"]  # or one buffer could not be donated twice


def test_a_grown_block_has_the_parts_and_the_truth_value_it_had():
    model, layer, x = built("two linear layers")
    model(x)
    parts = esper.unwrap(awake(model, layer, "mlp", "add"), probe=x)[0]
    assert [type(part) for part in parts] == [nn.Linear, nn.Tanh, nn.Linear] and len(parts) == 3
    model, layer, x = built("linear")
    assert esper.unwrap(awake(model, layer, "mlp", "add"), probe=x)[0]


def test_widening_takes_the_activation_of_the_block_or_the_one_that_is_named():
    model, layer, x = built("two linear layers")
    grown = awake(model, layer, "widen", "add")
    first, second = (grown.params["kernels"][layer][0][name] for name in ("0.weight", "2.weight"))
    hidden = jnp.tanh(jnp.asarray(x.numpy()) @ first.T + grown.params["kernels"][layer][0]["0.bias"])
    np.testing.assert_allclose(grown(x).numpy(), model(x).numpy() + 0.75 * (hidden @ second.T), rtol=1e-5, atol=1e-6)
    model, layer, x = built("a module of one's own")
    with pytest.raises(SeedError, match="0 activation modules between"):
        check_blueprint(model, x, layer=layer, blueprint="widen", key=KEY)
    check_blueprint(model, x, layer=layer, blueprint="widen", key=KEY, options={"activation": "GELU"})


def test_what_is_not_known_yet_is_asked_for():
    model = esper.wrap(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16)), target_layers=["0"])
    with pytest.raises(SeedError, match="call the model once"):
        cost(model, layer="0", blueprint="mlp")
    known = esper.wrap(nn.Sequential(nn.Linear(8, 8)))
    assert cost(known, layer="0", blueprint="low_rank", options={"rank": 2}).flops == 2 * (8 * 2 + 2 * 8)


def test_an_attention_branch_looks_back_only_unless_told_otherwise():
    model, layer, x = built("linear on sequences")
    x = jnp.asarray(x.numpy())
    later = x.at[:, -1].add(1.0)
    model(x)
    for options, looks_ahead in (({}, False), ({"causal": False}, True)):
        grown, _ = esper.germinate(model, None, layer=layer, blueprint="attention", key=KEY, options=options)
        kernels = jax.tree.map(lambda leaf: leaf + 0.3, grown.params["kernels"])
        grown = esper.transition(
            grown.replace(params={**grown.params, "kernels": kernels}), layer=layer, to=State.GRAFTING
        )
        grown = esper.set_alpha(grown, layer=layer, alpha=1.0)
        assert np.allclose(grown(x)[:, 0], grown(later)[:, 0]) != looks_ahead


def test_an_unknown_blend_is_refused():
    with pytest.raises(SeedError, match="no blend 'sum'; there are: add, lerp, multiply, gate"):
        esper.germinate(built("linear")[0], None, layer="0", blueprint="mlp", key=KEY, blend="sum")
