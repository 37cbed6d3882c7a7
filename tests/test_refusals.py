"""What cannot run on XLA as torch runs it is refused, by name and place; no value comes back."""

import warnings

import jax
import jax.numpy as jnp
import pytest
import torch
from parity.refusals import REFUSALS

import esper
from esper.errors import EsperError


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_it_is_refused_with_its_place(refusal):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on layouts that are in beta
        module, inputs = refusal.build(), refusal.inputs()
        refusal.build()(*(value.clone() for value in inputs))  # eager torch runs it
        arrays = [jnp.asarray(value.numpy()) for value in inputs]
        with pytest.raises(EsperError) as caught:
            esper.wrap(module)(*arrays, key=jax.random.key(0))
    for name in refusal.names:
        assert name in str(caught.value)
