"""What growth promises: exact at birth, isolated while it trains, reversible until it is permanent."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compiled
from models import build

import esper
from esper.growth.optimizer import per_kernel
from esper.lifecycle import LEGAL
from esper.lifecycle import SeedLifecycleState as State

KEY = jax.random.key(3)
SITES = {"mlp": ("2", "low_rank"), "cnn": ("body.4", "conv"), "vit": ("blocks.0.up", "mlp"), "gpt": ("head", "mlp")}


def bit_equal(left, right):
    return all(
        np.array_equal(np.asarray(a).reshape(-1).view(np.uint8), np.asarray(b).reshape(-1).view(np.uint8))
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def wrapped(name, **options):
    host, x = build(name)
    return esper.wrap(host, seeds_per_layer=2, **options), jnp.asarray(x.numpy())


@cache
def germinated(name):
    model, x = wrapped(name)
    layer, blueprint = SITES[name]
    grown, _ = esper.germinate(model, None, layer=layer, blueprint=blueprint, key=KEY)
    return model, grown, x, layer


def with_kernels(model, change):
    return model.replace(params={**model.params, "kernels": jax.tree.map(change, model.params["kernels"])})


def awake(model):
    """The model with kernels that do something: their zero output weights replaced."""
    return with_kernels(model, lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape))


def moved_to(model, layer, *states):
    for state in states:
        model = esper.transition(model, layer=layer, to=state)
    return model


def set_state(model, state, alpha=1.0):
    """A seed's state written directly, whatever the table says."""
    row = [site.name for site in model.structure.sites].index(model.structure.kernels[0].layer)
    return model.replace(seeds=model.seeds.set(row, 0, lifecycle=int(state), alpha=alpha))


# Bit-equality is a promise about programs as users run them: compiled with XLA's default optimisation.
@compiled
def forward(model, x):
    return model(x)


@compiled
def kernel_gradients(model, x):
    return jax.grad(lambda k: jnp.sum(model.replace(params={**model.params, "kernels": k})(x) ** 2))(
        model.params["kernels"]
    )


@compiled
def host_gradients(model, x):
    def loss(host):
        params = {**model.params, "host": host}
        whole = model.replace(params=params)
        out = whole.apply(x, train=True, key=KEY)[0]
        return jnp.sum(out**2) + (jnp.sum(whole.shadow().apply(x, train=True, key=KEY)[0] ** 2) if shadowed else 0.0)

    shadowed = bool(model.structure.kernels)
    return jax.grad(loss)(model.params["host"])


@pytest.mark.parametrize("name", SITES)
def test_germination_changes_no_bit(name):
    model, grown, x, layer = germinated(name)
    assert bit_equal(forward(grown, x), forward(model, x))
    assert grown.layers[layer].seeds.lifecycle[0] == State.TRAINING


@pytest.mark.parametrize("name", SITES)
def test_a_training_seed_leaves_outputs_and_host_gradients_bit_equal(name):
    model, grown, x, _ = germinated(name)
    grown = awake(grown)
    assert bit_equal(forward(grown, x), forward(model, x))
    assert bit_equal(host_gradients(grown, x), host_gradients(model, x))


@pytest.mark.parametrize("name", SITES)
def test_a_training_seed_trains_on_the_real_loss_with_the_seed_on(name):
    _, grown, x, layer = germinated(name)
    grown = awake(grown)

    def shadow_loss(kernels):
        whole = grown.replace(params={**grown.params, "kernels": kernels})
        return jnp.sum(whole.shadow()(x) ** 2) + jnp.sum(whole(x) ** 2)

    def real_loss(kernels):
        return jnp.sum(set_state(grown, State.ACTIVE).replace(params={**grown.params, "kernels": kernels})(x) ** 2)

    found = jax.jit(jax.grad(shadow_loss))(grown.params["kernels"])
    wanted = jax.jit(jax.grad(real_loss))(grown.params["kernels"])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(found))
    assert layer in found


@pytest.mark.parametrize("name", SITES)
def test_a_new_kernel_is_alive_within_two_steps(name):
    _, grown, x, _ = germinated(name)
    tx = optax.sgd(0.1)
    opt_state = tx.init(grown.params["kernels"])
    kernels = grown.params["kernels"]
    alive = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), kernels)

    @jax.jit
    @jax.grad
    def gradients(kernels):
        return jnp.sum((grown.replace(params={**grown.params, "kernels": kernels}).shadow()(x) - 1.0) ** 2)

    for _ in range(2):
        grads = gradients(kernels)
        alive = jax.tree.map(lambda seen, g: seen | (g != 0), alive, grads)
        updates, opt_state = tx.update(grads, opt_state)
        kernels = optax.apply_updates(kernels, updates)
    assert all(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(alive))


@pytest.mark.parametrize("state", [s for s in State if s not in (State.GRAFTING, State.ACTIVE, State.FOSSILIZED)])
def test_a_kernel_of_nan_that_is_not_live_leaves_no_trace(state):
    for name in SITES:
        model, grown, x, _ = germinated(name)
        poisoned = set_state(with_kernels(grown, lambda leaf: jnp.full_like(leaf, jnp.nan)), state, alpha=1.0)
        assert bit_equal(forward(poisoned, x), forward(model, x)), name
        assert bit_equal(host_gradients(poisoned, x), host_gradients(model, x)), name
        kernels = jax.grad(lambda k, m=poisoned, x=x: jnp.sum(m.replace(params={**m.params, "kernels": k})(x) ** 2))(
            poisoned.params["kernels"]
        )
        assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(kernels)), name


def test_a_dead_kernel_of_nan_beside_a_live_one_leaves_no_trace():
    _, one, x, layer = germinated("mlp")
    one = set_state(awake(one), State.ACTIVE)
    both, _ = esper.germinate(one, None, layer=layer, seed=1, blueprint="mlp", key=KEY)
    held = both.params["kernels"][layer]
    poisoned = {**held, 1: jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), held[1])}
    both = both.replace(params={**both.params, "kernels": {layer: poisoned}})
    assert bit_equal(forward(both, x), forward(one, x))

    @compiled
    def gradient(model):
        return jax.grad(lambda p: jnp.sum(model.replace(params=p)(x) ** 2))(model.params)

    found, wanted = gradient(both), gradient(one)
    assert bit_equal(found["host"], wanted["host"])
    assert bit_equal(found["kernels"][layer][0], wanted["kernels"][layer][0])
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(found["kernels"][layer][1]))


@pytest.mark.parametrize("name", SITES)
def test_alpha_zero_is_the_host(name):
    model, grown, x, layer = germinated(name)
    grafting = moved_to(awake(grown), layer, State.GRAFTING)
    assert bit_equal(forward(grafting, x), forward(model, x))


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_alpha_scales_the_kernel_once(alpha):
    _, grown, x, layer = germinated("mlp")
    model = esper.set_alpha(moved_to(awake(grown), layer, State.GRAFTING), layer=layer, alpha=alpha)
    host = model.params["host"]
    first = jax.nn.relu(x @ host["0.weight"].T + host["0.bias"])
    kernel = model.params["kernels"]["2"][0]
    grown = (first @ kernel["0.weight"].T) @ kernel["1.weight"].T
    out = first @ host["2.weight"].T + host["2.bias"] + alpha * grown
    logits = jnp.tanh(out) @ host["4.weight"].T + host["4.bias"]
    np.testing.assert_allclose(model(x), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SITES)
def test_cull_gives_the_host_back_bit_for_bit(name):
    model, grown, x, layer = germinated(name)
    active = moved_to(awake(grown), layer, State.GRAFTING)
    active = esper.set_alpha(active, layer=layer, alpha=1.0)
    assert not bit_equal(active(x), model(x))
    data_only = esper.transition(active, layer=layer, to=State.CULLED)
    removed, _ = esper.cull(active, None, layer=layer)
    for culled in (data_only, removed):
        assert bit_equal(forward(culled, x), forward(model, x))
        assert bit_equal(host_gradients(culled, x), host_gradients(model, x))
    assert removed.params["kernels"] == {}
    assert removed.structure == model.structure
    assert bit_equal(removed.params["host"], model.params["host"])


@pytest.mark.parametrize("name", SITES)
def test_after_fossilising_every_host_layer_still_learns(name):
    _, grown, x, layer = germinated(name)
    model = moved_to(awake(grown), layer, State.GRAFTING)
    model = esper.set_alpha(model, layer=layer, alpha=1.0)
    model = moved_to(model, layer, State.ACTIVE, State.FOSSILIZED)
    grads = jax.jit(
        lambda m: jax.grad(lambda p: jnp.sum(jnp.sin(m.replace(params=p).apply(x, train=True, key=KEY)[0])))(m.params)
    )(model)
    dead = [name for name, grad in grads["host"].items() if not bool(jnp.any(grad != 0))]
    assert dead == []
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads["kernels"]))


@pytest.mark.parametrize("name", SITES)
def test_no_grown_seed_means_the_same_number_of_operations(name):
    seeded, x = wrapped(name)
    bare, _ = wrapped(name, target_layers=[])

    def operations(model, train):
        lowered = jax.jit(lambda m, x: _outputs(m.apply(x, train=train, key=KEY))).lower(model, x)
        return [line for line in lowered.compile().as_text().splitlines() if " = " in line and "parameter(" not in line]

    for train in (False, True):
        assert len(operations(seeded, train)) == len(operations(bare, train))


def _outputs(applied):
    out, model = applied
    return out, model.buffers


def test_transitions_and_alpha_compile_nothing():
    _, model, x, layer = germinated("mlp")
    tx = per_kernel(optax.adamw(1e-3))
    opt_state = tx.init(model.params)

    @jax.jit
    def step(model, opt_state, x):
        def loss(params):
            whole = model.replace(params=params)
            return jnp.sum(whole(x) ** 2) + jnp.sum(whole.shadow()(x) ** 2)

        grads = jax.grad(loss)(model.params)
        updates, opt_state = tx.update(grads, opt_state, model.params)
        return model.replace(params=optax.apply_updates(model.params, updates)), opt_state

    model, opt_state = step(model, opt_state, x)
    for state in (State.GRAFTING, State.ACTIVE, State.GRAFTING, State.ERROR_RECOVERY, State.TRAINING, State.CULLED):
        model = esper.transition(model, layer=layer, to=state)
        for alpha in (0.1, 1.0):
            model, opt_state = step(esper.set_alpha(model, layer=layer, alpha=alpha), opt_state, x)
    assert step._cache_size() == 1


@pytest.mark.parametrize("source", State)
@pytest.mark.parametrize("target", State)
def test_only_the_table_s_moves_are_legal(source, target):
    model = set_state(_KERNEL, source)
    if target in LEGAL[source]:
        assert esper.transition(model, layer="2", to=target).seeds.lifecycle[1, 0] == target
        return
    with pytest.raises(esper.errors.IllegalTransitionError) as caught:
        esper.transition(model, layer="2", to=target)
    assert caught.value.source == source.name
    assert caught.value.legal == tuple(s.name for s in LEGAL[source])


_KERNEL = germinated("mlp")[1]


def test_jit_is_no_jit():
    _, grown, x, _ = germinated("mlp")
    model = set_state(awake(grown), State.ACTIVE)
    with jax.disable_jit():
        plain = model(x)
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(model, x), plain, rtol=1e-6, atol=1e-6)


def test_vmap_over_alpha_is_one_evaluation_with_and_without():
    model, grown, x, layer = germinated("mlp")
    active = set_state(awake(grown), State.ACTIVE)
    both = jax.vmap(lambda a: esper.set_alpha(active, layer=layer, alpha=a)(x))(jnp.asarray([0.0, 1.0]))
    assert bit_equal(both[0], model(x)) or np.allclose(both[0], model(x), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(both[1], active(x), rtol=1e-5, atol=1e-6)


def test_scan_and_donation():
    model, x = wrapped("mlp")
    out, _ = jax.jit(lambda m, xs: jax.lax.scan(lambda c, x: (c, m(x)), 0, xs))(model, jnp.stack([x, x + 1]))[::-1]
    np.testing.assert_allclose(out[1], model(x + 1), rtol=1e-5, atol=1e-6)
    step = jax.jit(lambda m, x: m.apply(x, train=True, key=KEY)[1], donate_argnums=0)
    wanted = model(x)
    np.testing.assert_allclose(step(model, x)(x), wanted, rtol=1e-6)


def test_the_shadow_moves_no_buffers_and_the_step_moves_them_once():
    model, grown, x, _ = germinated("cnn")
    once = model.apply(x, train=True, key=KEY)[1].buffers
    main, moved = grown.apply(x, train=True, key=KEY)
    _, shadow = grown.shadow().apply(x, train=True, key=KEY)
    assert bit_equal(moved.buffers, once)
    assert bit_equal(shadow.buffers, grown.buffers)
    assert main.shape == (4, 4)
