"""What is found, whichever way the library takes to it; part of the contract, as `contract.py` is."""

import pytest
from library.places import artifact

from esper.library import Measured, finding, queries

NEVER_FEW = -1


def ways(monkeypatch):
    """How kernels are come by: from a short list, or in an order; and what does not depend on any bits."""
    yield "looked up"
    monkeypatch.setattr(finding, "FEW", NEVER_FEW)
    yield "gone through"
    monkeypatch.setattr(queries, "bits", lambda labels: 0)
    yield "gone through, with every bit by chance"


def filled(library):
    for number in range(6):
        gain = Measured(number / 10, 0.01, 5) if number else None
        given = artifact(number, blueprint=("mlp", "low_rank")[number % 2], inputs=3 + number % 3, size=2 + number)
        library.put(given, gain=gain, tags=[f"t{number % 2}"], run=f"run{number}")
    library.retire(artifact(5, blueprint="low_rank", inputs=5, size=7).digest, "too large")


@pytest.mark.parametrize(
    ("wanted", "scales"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"limit": 2}, [4, 3]),
        ({"kind": "Conv2d"}, []),
        ({"blueprint": "low_rank"}, [3, 1]),
        ({"attributes": {"in_features": 3}}, [3, 0]),
        ({"attributes": {"in_features": 3, "out_features": 5}}, [3, 0]),
        ({"attributes": {"in_features": 3, "out_features": 6}}, []),
        ({"tag": "t1"}, [3, 1]),
        ({"run": "run2"}, [2]),
        ({"lifecycle": "retired"}, [5]),
        ({"lifecycle": "validated"}, []),
        ({"min_gain": 0.2}, [4, 3, 2]),
        ({"max_parameters": 13}, [1, 0]),
        ({"order_by": "parameters", "limit": 2}, [0, 1]),
        ({"order_by": "created", "dtype": "float32", "blend": "add", "placement": "parallel"}, [4, 3, 2, 1, 0]),
        ({"order_by": "updated", "tag": "t0"}, [4, 2, 0]),
        ({"tag": "t1", "attributes": {"in_features": 5}}, []),
        ({"tag": "t1", "run": "run2"}, []),
        ({"tag": "t1", "run": "run3", "blueprint": "low_rank", "attributes": {"in_features": 3}}, [3]),
        ({"kind": "Linear", "tag": "t0", "lifecycle": "candidate", "min_gain": 0.1, "max_parameters": 21}, [2]),
        ({"max_parameters": 0, "order_by": "parameters"}, []),
        ({"min_gain": 0.1, "lifecycle": "retired", "order_by": "created"}, [5]),
    ],
    ids=str,
)
def test_find(library, wanted, scales, monkeypatch):
    filled(library)
    for way in ways(monkeypatch):
        found = [float(library.get(entry.digest).params["scale"]) for entry in library.find(**wanted)]
        assert found == scales, way
