"""Run by `tests/test_shard.py` in a process with 8 devices: a sharded model trains as one on one device."""

from functools import cache

import jax
import optax
import pytest
from sharded.cases import MODELS, RULES, check_equal, grown, wrapped

import esper

TX = {"sgd": optax.sgd(0.05, momentum=0.9), "adamw": optax.adamw(1e-3)}


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 8
    return jax.make_mesh((2, 4), ("data", "model"))


@cache
def on_one_device(name):
    model, _, losses = grown(wrapped(name), name, TX["sgd"])
    return model, losses


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_training_with_growth_is_that_of_one_device(name, rules, mesh):
    model, _, losses = grown(esper.shard(wrapped(name), mesh, RULES[rules]), name, TX["sgd"])
    check_equal((model, losses), on_one_device(name))
