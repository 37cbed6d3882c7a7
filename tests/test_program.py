"""The Program: plain data that prints, round-trips and is checked."""

import json

import pytest
from models import ZOO, build
from parity_checks import lower

from esper.errors import ProgramError
from esper.program import BindError, Node, OutputSpec, Program, Ref, dumps, flatten, loads, unflatten, verify
from esper.program.sizes import check, holds


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("train", [False, True])
def test_round_trip_and_fingerprint(name, train):
    module, x = build(name)
    program = lower(module, (x,), train)[0]
    again = loads(dumps(program))
    assert again == program
    assert hash(again) == hash(program)
    assert again.fingerprint == program.fingerprint
    assert verify(again) is again
    assert program.train is train


def test_it_prints_scopes_and_source_lines():
    module, x = build("gpt")
    text = str(lower(module, (x,))[0])
    assert "# blocks.1.up" in text or "blocks.1" in text
    assert "models.py:" in text
    assert "aten.scaled_dot_product_attention.default" in text


def test_binding_checks_shapes_ranges_and_guards():
    module, x = build("mlp")
    program = lower(module, (x,))[0]
    assert list(program.bind([(9, 5)]).values()) == [9]
    for shapes in ([(9, 6)], [(9,)], [], [(9, 5), (9, 5)]):
        with pytest.raises(BindError):
            program.bind(shapes)
    guarded = Program(program.inputs, program.nodes, program.outputs, program.out_tree, guards=("size(0, 0) % 2 == 0",))
    assert guarded.bind([(4, 5)])
    with pytest.raises(BindError, match="% 2"):
        guarded.bind([(3, 5)])


def test_verify_lists_every_defect():
    module, x = build("mlp")
    good = lower(module, (x,))[0]
    nodes = (Node("aten.relu.default", (Ref("nowhere"), object()), outputs=("y",)), *good.nodes)
    bad = Program(good.inputs, nodes, (*good.outputs, OutputSpec("odd", Ref("gone"))), good.out_tree, guards=("f(1)",))
    with pytest.raises(ProgramError) as caught:
        verify(bad)
    for part in ("%nowhere before it is made", "not plain data", "kind 'odd'", "%gone is never made", "f(1)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "nodes": 3}', "[" * 9999]
)
def test_what_is_no_program_is_refused(text):
    with pytest.raises(ProgramError):
        loads(text)


def test_damage_to_any_part_is_refused_or_changes_the_fingerprint():
    module, x = build("mlp")
    program = lower(module, (x,))[0]
    body = json.loads(dumps(program))
    for key in body:
        damaged = {name: value for name, value in body.items() if name != key}
        with pytest.raises(ProgramError):
            loads(json.dumps(damaged))


@pytest.mark.parametrize("value", [1, (1, [2, {"a": 3}], None), {"x": (), "y": [None]}, [], ((1,),)])
def test_trees_round_trip(value):
    leaves, tree = flatten(value)
    assert unflatten(tree, leaves) == value
    assert len(list(tree.paths())) == len(leaves) == tree.leaves


@pytest.mark.parametrize(
    ("condition", "truth"),
    [
        ("size(0, 0) > 3", True),
        ("not size(0, 1) == 5", False),
        ("size(0, 0) // 2 + 1 == 3 and 1 < size(0, 1) <= 5", True),
    ],
)
def test_conditions(condition, truth):
    check(condition)
    assert holds(condition, [(4, 5)]) is truth


@pytest.mark.parametrize("condition", ["__import__('os')", "size.__class__", "x", "open('f')", "(lambda: 1)()"])
def test_conditions_execute_nothing(condition):
    with pytest.raises(ValueError):
        check(condition)
        holds(condition, [(1,)])
