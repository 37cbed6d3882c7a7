"""Kernels that are written in Flax keep every promise of those in torch, and say what torch cannot do with them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from compiling import compiled
from flax import linen, nnx
from torch import nn

import esper
from esper.configs import TamiyoSettings
from esper.errors import (
    ArgumentError,
    ArtifactError,
    MissingKeyError,
    NotInTorchError,
    ParityError,
    SeedError,
    UnknownBlueprintError,
)
from esper.growth.check import check_blueprint
from esper.growth.cost import cost
from esper.growth.initialisers import pairs
from esper.growth.optimizer import per_kernel
from esper.interop import flax_blueprint, to_linen
from esper.jax_backend.artifact import artifact_of
from esper.lifecycle import SeedLifecycleState as State
from esper.torch_frontend.blueprints import blueprint, zero_output

KEY = jax.random.key(6)
IMAGES = jnp.cos(jnp.arange(4 * 3 * 36.0)).reshape(4, 3, 6, 6)
ZERO = linen.initializers.zeros


# Bit-equality is a promise about programs as users run them: compiled with XLA's default optimisation.
@compiled
def forward(model, x):
    return model(x)


def bit_equal(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.asarray(one).tobytes() == np.asarray(other).tobytes() for one, other in pairs)


class Mixer(linen.Module):
    """Parameters under names of their own, a mode, dropout."""

    features: int
    width: int = 8

    @linen.compact
    def __call__(self, x, train):
        hidden = linen.gelu(linen.Dense(self.width, name="in")(x))
        hidden = linen.Dropout(0.5, deterministic=not train)(hidden)
        return linen.Dense(self.features, kernel_init=ZERO, name="out")(hidden)


class Squeeze(nnx.Module):
    """Two layers that share a matrix, a list, and a mode."""

    def __init__(self, features, width, rngs):
        self.inner = nnx.List([nnx.Linear(features, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.again = self.inner[1]
        self.out = nnx.Linear(width, features, kernel_init=ZERO, rngs=rngs)

    def __call__(self, x):
        hidden = jnp.tanh(self.inner[0](x))
        return self.out(jnp.tanh(self.again(self.inner[1](hidden))))


@flax_blueprint("linen_mixer")
def linen_mixer(site, width=8):
    return Mixer(site.features_out, width)


@flax_blueprint("linen_conv", kinds=("Conv2d",))
def linen_conv(site, width=5):
    first = linen.Conv(width, (3, 3), strides=site["stride"])
    return linen.Sequential([first, linen.tanh, linen.Dense(site.features_out, kernel_init=ZERO)])


@flax_blueprint("nnx_squeeze", placement="sequential")
def nnx_squeeze(site, width=4, *, rngs):
    return Squeeze(site.features_out, width, rngs)


@flax_blueprint("nnx_dropout", kinds=("Linear",))
def nnx_dropout(site, *, rngs):
    parts = nnx.Linear(site.features_in, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    return nnx.Sequential(*parts, nnx.Linear(6, site.features_out, kernel_init=ZERO, rngs=rngs))


def host():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5), nn.Tanh())


@cache
def wrapped():
    model = esper.wrap(host(), seeds_per_layer=2)
    model(IMAGES)
    return model


def born(layer, recipe, **options):
    return esper.germinate(wrapped(), None, layer=layer, blueprint=recipe, key=KEY, **options)[0]


def with_kernels(model, change):
    return model.replace(params={**model.params, "kernels": jax.tree.map(change, model.params["kernels"])})


def at_work(layer, recipe, alpha=0.75, **options):
    model = with_kernels(
        born(layer, recipe, **options), lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)
    )
    return esper.set_alpha(esper.transition(model, layer=layer, to=State.GRAFTING), layer=layer, alpha=alpha)


RECIPES = [
    ("0", "linen_mixer"),
    ("0", "linen_conv"),
    ("3", "linen_mixer"),
    ("0", "nnx_squeeze"),
    ("3", "nnx_squeeze"),
    ("3", "nnx_dropout"),
]
SAME_PLACES = [(layer, recipe) for layer, recipe in RECIPES if (layer, recipe) != ("0", "linen_mixer")]


# ---- the promises of a blueprint ----------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", ["add", "lerp", "multiply", "gate"])
@pytest.mark.parametrize(("layer", "recipe"), SAME_PLACES)
def test_it_is_zero_at_birth_and_alive(layer, recipe, blend):
    found = check_blueprint(wrapped(), IMAGES, layer=layer, blueprint=recipe, key=KEY, blend=blend)
    held = born(layer, recipe, blend=blend).params["kernels"][layer][0]
    assert found.parameters == sum(array.size for array in held.values()) and found.flops > 0
    assert all(isinstance(name, str) and array.dtype == jnp.float32 for name, array in held.items())


def test_its_parameters_are_flat_and_drawn_from_the_key():
    held = born("3", "linen_mixer").params["kernels"]["3"][0]
    assert sorted(held) == ["in.bias", "in.kernel", "out.bias", "out.kernel"]
    shared = born("3", "nnx_squeeze").params["kernels"]["3"][0]
    assert sum(array.size for array in shared.values()) == (5 * 4 + 4) + (4 * 4 + 4) + (4 * 5 + 5)
    for recipe, name in (("linen_mixer", "in.kernel"), ("nnx_dropout", "layers.0.kernel")):
        one, same, other = (
            esper.germinate(wrapped(), None, layer="3", blueprint=recipe, key=key)[0].params["kernels"]["3"][0][name]
            for key in (KEY, KEY, jax.random.key(7))
        )
        assert bit_equal(one, same) and not bool((one == other).any())


def test_options_are_the_recipes():
    model = born("3", "linen_mixer", options={"width": 3})
    assert model.structure.kernels[0].options == (("width", 3),)
    assert model.params["kernels"]["3"][0]["in.kernel"].shape == (36, 3)
    assert (
        cost(wrapped(), layer="3", blueprint="linen_mixer", options={"width": 3}).parameters == 36 * 3 + 3 + 3 * 5 + 5
    )
    with pytest.raises(SeedError, match=r"'rank'.*its options: {'width': 8}"):
        born("3", "linen_mixer", options={"rank": 3})


def test_it_computes_what_flax_does_with_features_last():
    model, host_only = at_work("0", "linen_conv"), wrapped()
    conv = linen.Sequential([linen.Conv(5, (3, 3), strides=2), linen.tanh, linen.Dense(4)])
    held = model.params["kernels"]["0"][0]
    params = {"layers_0": {n: held[f"layers_0.{n}"] for n in ("kernel", "bias")}}
    params["layers_2"] = {n: held[f"layers_2.{n}"] for n in ("kernel", "bias")}
    made = jnp.moveaxis(conv.apply({"params": params}, jnp.moveaxis(IMAGES, 1, -1)), -1, 1)
    weight, bias = (host_only.params["host"][f"0.{name}"] for name in ("weight", "bias"))
    first = jax.lax.conv_general_dilated(IMAGES, weight, (2, 2), [(1, 1)] * 2) + bias[:, None, None]
    flat = jnp.tanh(first + 0.75 * made).reshape(4, -1)
    wanted = jnp.tanh(flat @ host_only.params["host"]["3.weight"].T + host_only.params["host"]["3.bias"])
    np.testing.assert_allclose(model(IMAGES), wanted, rtol=1e-5, atol=1e-6)


def test_beside_an_embedding_it_reads_indices():
    @flax_blueprint("another_table", kinds=("Embedding",))
    def another_table(site, width=3):
        table = linen.Embed(site["num_embeddings"], width)
        return linen.Sequential([table, linen.Dense(site.features_out, kernel_init=ZERO)])

    model, tokens = esper.wrap(nn.Sequential(nn.Embedding(7, 4), nn.Tanh()), target_layers=["0"]), jnp.asarray([[1, 6]])
    asked = {"layer": "0", "blueprint": "another_table", "key": KEY}
    assert check_blueprint(model, tokens, **asked).parameters == 7 * 3 + 3 * 4 + 4
    with pytest.raises(SeedError, match="reads indices"):
        check_blueprint(model, tokens, **asked, blend="gate")


def test_its_parameters_are_of_the_layers_dtype():
    model = esper.wrap(nn.Sequential(nn.Linear(3, 4), nn.Tanh()).to(torch.bfloat16))
    check_blueprint(model, jnp.ones((2, 3), jnp.bfloat16), layer="0", blueprint="linen_mixer", key=KEY)
    grown, _ = esper.germinate(model, None, layer="0", blueprint="linen_mixer", key=KEY)
    assert {array.dtype for array in jax.tree.leaves(grown.params["kernels"])} == {jnp.dtype(jnp.bfloat16)}


def test_fit_grows_by_it():
    labels = jnp.arange(4) % 2
    result = esper.fit(
        wrapped(),
        (IMAGES, labels),
        tx=optax.adam(1e-2),
        steps=60,
        key=KEY,
        validation=(IMAGES, labels),
        every=10,
        growth=TamiyoSettings(
            trigger="always", blueprints={"3": "linen_mixer", "0": []}, train_steps=10, blend_steps=10, hold_steps=10
        ),
    )
    events = [record.event for record in result.records if record.layer == "3"]
    assert "germinate" in events and all(np.isfinite(result.losses))


def test_a_gate_is_torchs_gate():
    @blueprint("plain_rows_in_torch", kinds=("Linear",))
    def plain(site):
        return zero_output(nn.Linear(site.features_in, site.features_out))

    @flax_blueprint("plain_rows_in_flax", kinds=("Linear",))
    def plain_in_flax(site):
        return linen.Dense(site.features_out, kernel_init=ZERO)

    theirs, ours = (at_work("3", f"plain_rows_in_{of}", blend="gate") for of in ("torch", "flax"))
    held = theirs.params["kernels"]["3"][0]
    held = {**held, "kernel.kernel": held["kernel.weight"].T}
    del held["kernel.weight"]
    assert held.keys() == ours.params["kernels"]["3"][0].keys()
    ours = ours.replace(params={**ours.params, "kernels": {"3": {0: held}}})
    np.testing.assert_allclose(ours(IMAGES), theirs(IMAGES), rtol=1e-5, atol=1e-6)


# ---- the laws of growth -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "recipe"), [("0", "linen_conv"), ("3", "nnx_squeeze")])
def test_it_leaves_the_host_as_it_is_to_the_last_bit(layer, recipe):
    model, grown = wrapped(), at_work(layer, recipe, alpha=0.0)
    assert bit_equal(forward(grown, IMAGES), forward(model, IMAGES))
    poisoned = with_kernels(born(layer, recipe), lambda leaf: jnp.full_like(leaf, jnp.nan))

    @compiled
    def slopes(model):
        return jax.grad(lambda host: (model.replace(params={**model.params, "host": host})(IMAGES) ** 2).sum())(
            model.params["host"]
        )

    assert bit_equal(forward(poisoned, IMAGES), forward(model, IMAGES)) and bit_equal(slopes(poisoned), slopes(model))
    assert not bit_equal(forward(at_work(layer, recipe), IMAGES), forward(model, IMAGES))


@pytest.mark.parametrize("recipe", ["linen_mixer", "nnx_dropout"])
def test_it_trains_in_isolation_with_a_state_of_its_own(recipe):
    model, tx = wrapped(), per_kernel(optax.adam(1e-2))
    state, alone, of_alone = tx.init(model.params), model, tx.init(model.params)
    model, state = esper.germinate(model, state, layer="3", blueprint=recipe, key=KEY)
    start = model.params["kernels"]

    @jax.jit
    def step(model, state, key):
        def loss(params):
            now = model.replace(params=params)
            return sum(((of(IMAGES, train=True, key=key) - 1) ** 2).mean() for of in (now, now.shadow()))

        updates, state = tx.update(jax.grad(loss)(model.params), state, model.params)
        return model.replace(params=optax.apply_updates(model.params, updates)), state

    for number in range(3):
        key = jax.random.key(number)
        model, state = step(model, state, key)
        alone, of_alone = step(alone, of_alone, key)
    for name, array in alone.params["host"].items():
        np.testing.assert_allclose(model.params["host"][name], array, rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(lambda one, other: bool((one != other).any()), model.params["kernels"], start)
    assert all(jax.tree.leaves(moved))
    emptied, state = esper.cull(model, state, layer="3")
    assert jax.tree.structure(state) == jax.tree.structure(of_alone)
    assert bit_equal(forward(emptied, IMAGES), forward(emptied.replace(seeds=alone.seeds), IMAGES))


def test_it_lives_a_whole_life():
    model = at_work("3", "linen_mixer")
    blended = model(IMAGES)
    for state in (State.ACTIVE, State.FOSSILIZED):
        model = esper.transition(model, layer="3", to=state)
        np.testing.assert_allclose(model(IMAGES), blended, rtol=1e-6, atol=1e-7)
    assert {kernel.source.description for kernel in model.structure.kernels} == {"Mixer(features=5)"}
    one, same, other = (model(IMAGES, train=True, key=key) for key in (KEY, KEY, jax.random.key(1)))
    assert bit_equal(one, same) and not bit_equal(one, other)


@pytest.mark.parametrize("recipe", ["linen_mixer", "nnx_dropout"])
def test_dropout_needs_a_key_in_training_only(recipe):
    model = at_work("3", recipe)
    model(IMAGES)
    with pytest.raises(MissingKeyError, match=f"{recipe}.*layer '3' draws"):
        model(IMAGES, train=True)


def test_in_reserve_it_is_data_only():
    model, tx = wrapped(), per_kernel(optax.adam(1e-2))
    model, state = esper.reserve(model, tx.init(model.params), layer="3", blueprint="nnx_squeeze", tx=tx)
    grown, _ = esper.germinate(model, state, layer="3", blueprint="nnx_squeeze", key=KEY, tx=tx)
    assert grown.structure == model.structure and jax.tree.structure(grown) == jax.tree.structure(model)
    assert bit_equal(grown.params["kernels"], born("3", "nnx_squeeze").params["kernels"])
    emptied, _ = esper.compact(model, state, tx=tx)
    assert emptied.structure.kernels == ()


def test_it_moves_as_an_artifact():
    model = at_work("3", "nnx_dropout")
    artifact = artifact_of(model, layer="3")
    other = esper.wrap(host(), seeds_per_layer=2)
    loaded, _ = esper.load_kernel(other, None, layer="3", seed=1, artifact=artifact)
    loaded = esper.set_alpha(loaded, layer="3", seed=1, alpha=0.75)
    assert bit_equal(forward(loaded, IMAGES), forward(model, IMAGES))
    assert artifact_of(loaded, layer="3", seed=1) == artifact
    emptied, _, out = esper.unload_kernel(model, None, layer="3")
    assert out == artifact and bit_equal(forward(emptied, IMAGES), forward(wrapped(), IMAGES))
    wider = esper.wrap(nn.Sequential(nn.Linear(36, 6)))
    with pytest.raises(ArtifactError, match="out_features 5"):
        esper.load_kernel(wider, None, layer="0", artifact=artifact)


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_torch_has_no_such_kernel():
    model = at_work("3", "linen_mixer")
    for way in (
        esper.unwrap,
        esper.torch_module,
        type(model).state_dict,
        lambda m: m.load_state_dict(host().state_dict()),
    ):
        with pytest.raises(
            NotInTorchError, match=r"layer '3', seed 0: blueprint 'linen_mixer'\n.*esper\.cull"
        ) as caught:
            way(model)
        assert caught.value.kernels == (("3", 0, "linen_mixer"),)
    esper.unwrap(born("3", "linen_mixer"))  # in isolation it is no part of the model's function
    esper.unwrap(esper.cull(model, None, layer="3")[0])


def rows_in_torch(site, tensors, width=6, *, change=lambda tensor: tensor):
    first, last = nn.Linear(site.features_in, width), nn.Linear(width, site.features_out)
    named = {"0": first, "2": last}
    for place, layer in named.items():
        layer.weight.data = change(tensors[f"layers_{place}.kernel"].T.contiguous())
        layer.bias.data = tensors[f"layers_{place}.bias"]
    return nn.Sequential(first, nn.GELU(approximate="tanh"), last)


@flax_blueprint("with_a_twin", kinds=("Linear",), torch=rows_in_torch)
def rows_in_flax(site, width=6):
    parts = linen.Dense(width), linen.gelu, linen.Dense(site.features_out, kernel_init=ZERO)
    return linen.Sequential(parts)


@pytest.mark.parametrize("blend", ["add", "gate"])
def test_a_twin_in_torch_comes_out(blend):
    model = at_work("3", "with_a_twin", blend=blend, options={"width": 4})
    module = esper.unwrap(model, probe=torch.from_numpy(np.array(IMAGES)))
    assert module.esper_certificate["scaled"] < 1e-5 and len(module[3].grown) == 1
    assert "3.grown.0.kernel.kernel.2.weight" in module.state_dict() or blend == "add"
    again = esper.wrap(module)
    np.testing.assert_allclose(again(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)
    assert esper.certificate(model, module, torch.from_numpy(np.array(IMAGES))).holds
    for way in (esper.torch_module, type(model).state_dict):
        with pytest.raises(NotInTorchError, match=r"esper\.unwrap makes a module"):
            way(model)


@pytest.mark.parametrize("wrong", ["values", "shape", "kind", "buffers"])
def test_a_twin_that_does_something_else_is_refused(wrong):
    twins = {
        "values": lambda site, tensors: rows_in_torch(site, tensors, change=lambda tensor: 1.01 * tensor),
        "shape": lambda site, tensors: nn.Linear(36, 4),
        "kind": lambda site, tensors: linen.Dense(5),
        "buffers": lambda site, tensors: nn.BatchNorm1d(36),
    }

    @flax_blueprint(f"wrong twin: {wrong}", torch=twins[wrong])
    def made(site):
        return rows_in_flax(site)

    # Untrained, its output is zero, and the wrong twin's too: the outputs of the model do not tell.
    model, _ = esper.germinate(wrapped(), None, layer="3", blueprint=f"wrong twin: {wrong}", key=KEY)
    model = esper.set_alpha(esper.transition(model, layer="3", to=State.GRAFTING), layer="3", alpha=1.0)
    message = "layer '3', seed 0.*correct the `torch=`" if wrong in ("values", "shape") else "the twin of blueprint"
    with pytest.raises((ParityError, SeedError), match=message):
        esper.unwrap(model)


def test_names_belong_to_one_framework():
    with pytest.raises(ArgumentError, match="'low_rank' already, written in torch"):
        flax_blueprint("low_rank")(linen_mixer)
    with pytest.raises(ArgumentError, match="'linen_mixer' already, written in Flax"):
        blueprint("linen_mixer")(lambda site: None)
    with pytest.raises(ArgumentError, match=r"'linen_mixer' for \* already"):
        flax_blueprint("linen_mixer")(linen_mixer)
    with pytest.raises(UnknownBlueprintError, match=r"no blueprint 'nope'; there are: .*low_rank.*linen_mixer"):
        born("3", "nope")
    with pytest.raises(
        UnknownBlueprintError, match=r"'linen_conv' is for Conv2d.*blueprints for it:.*mlp.*linen_mixer"
    ):
        born("3", "linen_conv")


def test_recipes_take_a_site_and_options():
    with pytest.raises(ArgumentError, match="this one has layer"):
        flax_blueprint("reads the layer")(lambda site, layer: None)
    with pytest.raises(ArgumentError, match="a default for rngs"):
        flax_blueprint("knows its rngs")(lambda site, rngs=None: None)
    with pytest.raises(ArgumentError, match="placement"):
        flax_blueprint("above", placement="above")(linen_mixer)


class Writes(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.zeros(5))

    def __call__(self, x):
        self.scale[...] = self.scale[...] + 1
        return x * self.scale[...]


class Holds(nnx.Module):
    def __init__(self):
        self.table = nnx.Variable(jnp.zeros(5))

    def __call__(self, x):
        return x * self.table[...]


REFUSED = {
    "statistics": (lambda: linen.BatchNorm(use_running_average=False), r"collections \['batch_stats'\]"),
    "variables": (Holds, r"table \(Variable\)"),
    "writes": (Writes, r"writes into its parameters \['scale'\]"),
    "torch": (lambda: nn.Linear(5, 5), "returns a Linear, not a module of flax"),
    "no mode": (lambda: linen.Sequential([linen.Dense(5), linen.Dropout(0.5)]), "does not fit.*deterministic"),
    "shapes": (lambda: nnx.Linear(7, 5, rngs=nnx.Rngs(0)), "does not fit"),
    "rank": (lambda: linen.Sequential([linen.Dense(5), lambda x: x.sum(0)]), "one array, here of 2 dimensions"),
    "pairs": (lambda: linen.Sequential([linen.Dense(5), lambda x: (x, x)]), "returns a tuple"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_kernel_is_refused_at_germination(name):
    make, message = REFUSED[name]
    flax_blueprint(f"refused: {name}", placement="sequential")(lambda site: make())
    with pytest.raises(SeedError, match=rf"(?s)'refused: {name}' at layer '3'.*{message}"):
        born("3", f"refused: {name}")


def test_other_shapes_than_the_layers_are_refused_at_the_call():
    flax_blueprint("refused: narrow")(lambda site: linen.Dense(2))
    model = born("3", "refused: narrow")
    with pytest.raises(SeedError, match="returns shape"):
        model(IMAGES)


def test_initialisers_that_read_a_kernel_say_that_there_is_nothing_to_read():
    with pytest.raises(SeedError, match=r"(?s)linen_mixer.*written for JAX"):
        born("3", "linen_mixer", init=pairs)


def test_it_grows_inside_flax_too():
    model = at_work("3", "linen_mixer")
    net = to_linen(model)
    variables = net.init(KEY, IMAGES)
    np.testing.assert_allclose(net.apply(variables, IMAGES), model(IMAGES), rtol=1e-6)
    assert net.apply(variables, IMAGES, train=True, rngs={"dropout": KEY}).shape == (4, 5)
