"""Optimiser states follow the model, whatever the optimiser: a table of transformations, and the laws."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transformations import (
    ALONE,
    KEY,
    NAMED,
    NAMELESS,
    RATE,
    SCHEDULE,
    TABLE,
    Run,
    avals,
    bits,
    gradients,
    growing,
    hosted,
    plain,
    stepper,
    story,
)

import esper
from esper.errors import OptimizerStateError
from esper.growth.optimizer import migrate, per_kernel


@pytest.mark.parametrize("name", TABLE)
def test_survivors_keep_every_bit(name):
    for phase in story(name)[1]:
        assert bits(phase.changed.host) == bits(phase.before.host)
        survivors = phase.changed.kernels.keys() & phase.before.kernels.keys()
        assert all(bits(phase.changed.kernels[there]) == bits(phase.before.kernels[there]) for there in survivors)
    assert [sorted(phase.changed.kernels) for phase in story(name)[1]] == [[], ["2"], ["0", "2"], ["2"], []]


@pytest.mark.parametrize("name", TABLE)
def test_the_host_never_notices_and_the_culled_leave_no_trace(name):
    run, _, alone = story(name)
    assert bits(run.model.params) == bits(alone.model.params)
    assert bits(run.state) == bits(alone.state)
    assert avals(run.state) == avals(alone.state)


@pytest.mark.parametrize("name", TABLE)
def test_each_structure_compiles_once(name):
    assert [phase.compiles for phase in story(name)[1]] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", ALONE | NAMELESS)
def test_a_newcomer_is_optimised_as_if_alone_from_the_beginning(name):
    phase = story(name)[1][1]
    params = phase.params["kernels"]["2"][0]
    state = TABLE[name].init(params)
    born = phase.changed.kernels["2"][0].inner
    assert bits(born) == bits(jax.tree.map(jnp.asarray, state))
    step = stepper(name, TABLE[name])
    for number, updates in enumerate(phase.updates, start=4):
        params, state, wanted = step(params, state, jnp.asarray(number))
        for found, want in zip(jax.tree.leaves(updates["kernels"]), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", TABLE)
def test_a_state_is_its_leaves(name):
    run, phases, _ = story(name)
    state, params = phases[2].changed, phases[2].params
    shape = jax.tree.structure(jax.eval_shape(run.tx.init, params))
    leaves = [leaf if leaf.dtype == KEY.dtype else jnp.asarray(np.asarray(leaf)) for leaf in jax.tree.leaves(state)]
    restored = jax.tree.unflatten(shape, leaves)
    assert avals(restored) == avals(state)
    number = jnp.asarray(7)
    assert bits(run.step(params, restored, number)) == bits(run.step(params, state, number))


@pytest.mark.parametrize("name", ["adam", "lion", "momentum"])
def test_a_newcomer_warms_up_linearly(name):
    gentle, full = growing(TABLE[name], warmup_steps=4), growing(TABLE[name])
    for run in (gentle, full):
        run.train(2)
        run.germinate("0")
    for part in (0.25, 0.5, 0.75, 1.0, 1.0):
        full.model = full.model.replace(params=gentle.model.params)  # the same gradients, hence the same raw updates
        (found,), (raw,) = gentle.train(1), full.train(1)
        for ours, theirs in zip(jax.tree.leaves(found["kernels"]), jax.tree.leaves(raw["kernels"]), strict=True):
            np.testing.assert_allclose(ours, part * np.asarray(theirs), rtol=1e-6)


def test_a_newcomer_s_first_step_under_adam_is_the_learning_rate():
    run = growing(optax.adam(RATE))
    run.train(50)
    run.germinate("0")
    (updates,) = run.train(1)
    for leaf in jax.tree.leaves(updates["kernels"]):
        np.testing.assert_allclose(np.abs(leaf), RATE, rtol=1e-3)


@pytest.mark.parametrize("name", NAMED)
def test_a_plain_state_migrates_exactly_when_its_optimiser_is_given(name):
    run, raw = plain(name), TABLE[name]
    run.train(9)  # the end of a window, for those that have one
    before, trained = run.state, run.model.params
    run.germinate("0")
    fresh = raw.init(run.model.params)
    assert jax.tree.structure(run.state) == jax.tree.structure(fresh)
    found, old, new = (places(state) for state in (run.state, before, fresh))
    assert bits([found[place] for place in old]) == bits(list(old.values()))
    born = found.keys() - old.keys()
    assert bits([found[place] for place in born]) == bits([new[place] for place in born])
    assert bits(migrate(run.state, run.model.params, trained, tx=raw)) == bits(before)
    run.cull("0")
    assert avals(run.state) == avals(before)


def places(state):
    return {str(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def close(found, wanted):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)


def kernel(params, layer="2", seed=0):
    return params["kernels"][layer][seed]


@pytest.mark.parametrize(
    ("name", "rate"),
    {
        "schedule": lambda step: RATE * SCHEDULE(step),
        "finite_schedule": SCHEDULE,
        "inject": lambda step: RATE,
        "inject_schedule": optax.linear_schedule(RATE, 0.0, 20),
    }.items(),
)
def test_moments_are_the_newcomer_s_own_and_schedules_the_host_s(name, rate):
    phase = story(name)[1][1]
    params, unit = kernel(phase.params), optax.adamw(1.0) if name == "inject" else optax.adam(1.0)
    state = unit.init(params)
    for number, updates in enumerate(phase.updates, start=4):
        raw, state = unit.update(gradients(params, number), state, params)
        wanted = jax.tree.map(lambda leaf, number=number: rate(number) * leaf, raw)
        close(kernel(updates), wanted)
        params = optax.apply_updates(params, kernel(updates))


def test_a_newcomer_meets_the_plateau_that_the_host_is_on():
    phase = story("plateau")[1][1]
    own, host = kernel({"kernels": phase.changed.kernels}).inner[1], phase.changed.host[1]
    assert bits(own) == bits(host)
    assert float(host.scale) < 1.0
    after = kernel({"kernels": phase.after.kernels}).inner[1]
    assert bits(after) == bits(phase.after.host[1])
    assert float(after.scale) < float(host.scale)


def test_hyperparameters_set_in_the_host_s_state_are_the_kernels_too():
    run = growing(optax.inject_hyperparams(optax.sgd)(RATE))
    run.germinate("2")
    run.train(1)
    run.state.host.hyperparams["learning_rate"] = jnp.asarray(0.5, jnp.float32)
    params = run.model.params
    (updates,) = run.train(1)
    close(updates, jax.tree.map(lambda leaf: -0.5 * leaf, gradients(params, 1)))


def test_each_part_is_clipped_by_its_own_norm():
    run = growing(optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0)))
    run.germinate("2")
    (updates,) = run.train(1)
    for part in (updates["host"], kernel(updates)):
        np.testing.assert_allclose(optax.tree.norm(part), 0.1, rtol=1e-5)


ACCUMULATIONS = {
    "whole": (optax.MultiSteps(optax.sgd(1.0), 3), 1.0),
    "transformation": (optax.MultiSteps(optax.sgd(1.0), 3).gradient_transformation(), 1.0),
    "inside": (optax.chain(optax.scale(2.0), optax.MultiSteps(optax.sgd(1.0), 3).gradient_transformation()), 2.0),
    "schedule": (optax.MultiSteps(optax.sgd(1.0), lambda step: jnp.where(step < 1, 2, 3)), 1.0),
}


@cache
def accumulating(kind):
    tx = per_kernel(ACCUMULATIONS[kind][0], warmup_steps=0)
    return tx, stepper("", tx, jax.jit)


@pytest.mark.parametrize("born", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ACCUMULATIONS)
def test_a_newcomer_s_first_average_is_over_the_host_s_next_whole_window(kind, born):
    run, scale = Run(*accumulating(kind)), ACCUMULATIONS[kind][1]
    start = 2 if kind == "schedule" else 0  # where a window of three begins
    run.train(born)
    run.germinate("2")
    params = run.model.params
    first = born + (start - born) % 3
    updates = run.train(first + 3 - born)
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves([kernel(update) for update in updates[:-1]]))
    window = [gradients(kernel(params), number) for number in range(first, first + 3)]
    close(kernel(updates[-1]), jax.tree.map(lambda *seen: -scale * sum(seen) / 3, *window))
    assert all(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates[-1]["host"]))
    assert int(kernel({"kernels": run.state.kernels}).steps) == 1


def test_warm_up_counts_optimiser_steps_not_accumulated_calls():
    run = growing(optax.MultiSteps(optax.sgd(1.0), 2), warmup_steps=4)
    run.germinate("2")
    params = run.model.params
    first = run.train(2)[-1]
    seen = [gradients(kernel(params), number) for number in (0, 1)]
    close(kernel(first), jax.tree.map(lambda a, b: -0.25 * (a + b) / 2, *seen))


def test_a_newcomer_waits_for_the_host_s_adversarial_cycle():
    run = growing(TABLE["sam"])
    run.train(1)
    run.germinate("2")
    (idle,) = run.train(1)
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(kernel(idle)))
    assert all(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(idle["host"]))
    run.train(1)
    assert (
        int(kernel({"kernels": run.state.kernels}).inner.steps_since_sync) == int(run.state.host.steps_since_sync) == 1
    )


def test_each_part_counts_its_own_bad_gradients():
    tx = per_kernel(optax.apply_if_finite(optax.sgd(1.0), 1), warmup_steps=0)
    bad, good = ({"w": jnp.asarray([value, 1.0])} for value in (jnp.nan, 1.0))
    params = {"host": good, "kernels": {}}
    state = tx.init(params)
    _, state = tx.update({"host": bad, "kernels": {}}, state, params)
    grown = {"host": good, "kernels": {"0": {0: good}}}
    state = migrate(state, params, grown)
    assert (int(state.host.notfinite_count), int(state.kernels["0"][0].inner.notfinite_count)) == (1, 0)
    for given_up in (False, True):  # after one error in a row it applies what it gets
        updates, state = tx.update({"host": good, "kernels": {"0": {0: bad}}}, state, grown)
        assert bool(jnp.isnan(updates["kernels"]["0"][0]["w"][0])) is given_up
        assert bool(jnp.all(updates["host"]["w"] == -1.0))


def test_no_two_parts_draw_the_same_noise():
    tx = per_kernel(optax.add_noise(1.0, 0.5, key=7), warmup_steps=0)
    part = {"w": jnp.zeros((2, 3))}
    params = {"host": part, "kernels": {"0": {0: part, 1: part}, "1": {0: part}}}
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        drawn = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(updates)]
        assert len(set(drawn)) == 4
    counts = [state.host.count, *(own.inner.count for held in state.kernels.values() for own in held.values())]
    assert [int(count) for count in counts] == [2, 2, 2, 2]


@pytest.mark.parametrize("name", ["schedule", "inject", "plateau", "multi_steps"])
def test_a_program_may_consume_the_state(name):
    run = growing(TABLE[name], name)
    run.germinate("2")  # takes over the host's clocks: as copies, for no buffer can be donated twice
    moved = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(run.state)
    assert avals(moved) == avals(run.state)


def test_parts_of_other_dtypes_keep_theirs():
    tx = per_kernel(optax.chain(optax.adam(RATE), optax.contrib.reduce_on_plateau()))
    params = {"host": {"w": jnp.ones(3, jnp.bfloat16)}, "kernels": {"0": {0: {"w": jnp.ones(3, jnp.float32)}}}}
    state = tx.init(params)
    _, after = tx.update(params, state, params, value=jnp.ones(()))
    assert avals(after) == avals(state)


def test_extra_arguments_shaped_as_the_parameters_reach_their_part():
    def update(updates, state, params=None, *, grad, value):
        return jax.tree.map(lambda u, g: value * (u + g), updates, grad), state

    tx = per_kernel(optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update), warmup_steps=0)
    run = Run(tx, None)
    run.germinate("0")
    params = run.model.params
    updates, _ = tx.update(params, run.state, params, grad=params, value=2.0)
    close(updates, jax.tree.map(lambda leaf: 4.0 * leaf, params))


@pytest.mark.parametrize("given", [True, False])
def test_per_kernel_inside_a_chain_migrates(given):
    tx = optax.chain(optax.clip(1.0), per_kernel(optax.chain(optax.scale_by_rss(), optax.scale(-RATE))))
    run = Run(tx, stepper("", tx), tx if given else None)
    run.train(2)
    before = run.state
    run.germinate("2")
    assert avals(run.state) == avals(tx.init(run.model.params))
    run.train(1)
    run.cull("2")
    assert avals(run.state) == avals(before)


def sides(params):
    return {side: jax.tree.map(lambda _, side=side: side, tree) for side, tree in params.items()}


BY_SIDE = optax.partition({"host": optax.MultiSteps(optax.adam(RATE), 3), "kernels": optax.sgd(RATE)}, sides)


def test_a_plain_state_with_an_optimiser_for_each_side_migrates_at_any_time():
    run = Run(BY_SIDE, stepper("", BY_SIDE), BY_SIDE)
    run.train(1)  # within a window, which new kernels have no part in
    before = run.state
    run.germinate("2")
    params = run.model.params
    (updates,) = run.train(1)
    close(kernel(updates), jax.tree.map(lambda leaf: -RATE * leaf, gradients(kernel(params), 1)))
    run.cull("2")
    assert avals(run.state) == avals(before)


def test_none_stays_none():
    params = hosted().params
    assert migrate(None, params, params) is None
    assert migrate(None, params, params, tx=optax.adam(RATE)) is None
    grown, state = esper.germinate(hosted(), None, layer="0", blueprint="low_rank", key=KEY, tx=optax.adam(RATE))
    assert state is None
    assert esper.cull(grown, None, layer="0", tx=optax.adam(RATE))[1] is None


def refused(state, match, tx=None):
    with pytest.raises(OptimizerStateError, match=match):
        esper.germinate(hosted(), state, layer="0", blueprint="low_rank", key=KEY, tx=tx)


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "adagrad": "ScaleByRssState",
        "rmsprop": "ScaleByRStdDevState",
        "adafactor": "FactoredState",
        "masked": "MaskedState",
        "partition": "MaskedState",
        "schedule_free_sgd": "ScheduleFreeState",
        "user_named_tuple": "Speed",
        "user_dataclass": "Place",
    }.items(),
)
def test_a_plain_state_of_unknown_start_is_refused_without_its_optimiser(name, kind):
    state = TABLE[name].init(hosted().params)
    refused(state, rf"^{kind} holds parameter-shaped values.*`tx=`.*per_kernel")


def test_an_optimiser_for_each_side_is_refused_without_it():
    # Without kernels its masks let everything through, so the state alone looks like Adam's for all parameters.
    tx = optax.partition({"host": optax.adam(RATE), "kernels": optax.sgd(RATE)}, sides)
    state = tx.init(hosted().params)
    refused(state, "MaskedState")
    grown, moved = esper.germinate(hosted(), state, layer="0", blueprint="low_rank", key=KEY, tx=tx)
    assert bits(esper.cull(grown, moved, layer="0")[1]) == bits(state)  # what goes has a name


@pytest.mark.parametrize("name", ["user_list", "user_vector"])
def test_a_plain_state_that_goes_by_position_is_refused(name):
    tx = TABLE[name]
    state = tx.init(hosted().params)
    refused(state, "holds parameter-shaped values")
    refused(state, "does not go by the parameters' names", tx=tx)
    grown = esper.germinate(hosted(), None, layer="0", blueprint="low_rank", key=KEY)[0]
    with pytest.raises(OptimizerStateError, match="holds parameter-shaped values"):
        esper.cull(grown, tx.init(grown.params), layer="0")


def test_a_state_of_another_optimiser_is_refused():
    refused(optax.adam(RATE).init(hosted().params), "`tx` is not what made the state", tx=optax.adagrad(RATE))


@pytest.mark.parametrize("given", [True, False])
def test_a_plain_state_within_an_accumulation_window_is_refused(given):
    tx = optax.MultiSteps(optax.adam(RATE), 3)
    run = Run(tx, stepper("", tx, jax.jit))
    run.train(2)
    refused(run.state, r"at call 2 of an accumulation window.*`mini_step` is 0.*per_kernel", tx if given else None)
    run.train(1)
    run.given = tx if given else None
    run.germinate("0")
    assert avals(run.state) == avals(tx.init(run.model.params))


def test_masks_that_are_trees_of_the_host_are_refused_with_the_place():
    mask = {name: name.endswith("weight") for name in hosted().params["host"]}
    state = per_kernel(optax.adamw(RATE, mask=mask)).init(hosted().params)
    refused(state, r"cannot start the kernel at '0/0'.*masks and labels as functions")


def test_a_state_that_was_left_behind_says_so():
    tx = per_kernel(optax.adam(RATE))
    state = tx.init(hosted().params)
    grown, moved = esper.germinate(hosted(), state, layer="0", blueprint="low_rank", key=KEY)
    with pytest.raises(OptimizerStateError, match=r"lacks a kernel, at layer '0', seed 0.*germinate"):
        tx.update(grown.params, state, grown.params)
    with pytest.raises(OptimizerStateError, match="holds a kernel that the gradients lack"):
        tx.update(hosted().params, moved, hosted().params)


def test_line_searches_are_refused():
    tx = per_kernel(optax.sgd(RATE))
    params = hosted().params
    with pytest.raises(OptimizerStateError, match="value_fn is a function of all parameters"):
        tx.update(params, tx.init(params), params, value_fn=lambda params: 0.0)
