"""Programs on disk: found by another wrap of the same module, and by nothing that differs from it in any way."""

import copy
import importlib.util
import math
import random
import sys
import threading

import jax
import numpy as np
import pytest
import torch
from torch import nn

import esper
from esper.caching import caches
from esper.jax_backend.call import prepare
from esper.jax_backend.registry import is_lowered
from esper.program import Signature, TensorType, flatten
from esper.torch_frontend import program_cache
from esper.torch_frontend.digest import digest
from esper.torch_frontend.provenance import Unknown

FILE = """
import math
import torch
from dataclasses import dataclass
from torch import nn
import {helper} as helper

SCALE = 2.0
TABLE = {{"shift": 1.0}}
SHIFT = torch.tensor([1.0, 2.0, 3.0])


@dataclass
class Options:
    width: int = 3
    bias: bool = True


def scaled(x, by=0.5):
    return x * SCALE * by + TABLE["shift"]


class Net(nn.Module):
    factor = 3.0

    def __init__(self, options=None):
        super().__init__()
        self.options = options or Options()
        self.linear = nn.Linear(3, self.options.width)
        self.norm = nn.BatchNorm1d(3)
        self.mask = torch.tensor([1.0, 0.0, 1.0])
        self.act = torch.relu
        self.power = 2

    def forward(self, x, flag=True):
        x = helper.twice(scaled(self.linear(x))) + SHIFT * self.mask
        return self.act(self.norm(x)) * self.factor ** self.power + math.pi * bool(flag)
"""
HELPER = "def twice(x):\n    return 2 * x\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(program_cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def loaded(tmp_path, name, text):
    """A Python file as a module, loaded anew."""
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make(tmp_path):
    """Makes the net of FILE, after edits to its text and its helper's."""

    def make(edits=(), helper=HELPER):
        text = FILE.format(helper="cached_helper")
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        loaded(tmp_path, "cached_helper", helper)
        torch.manual_seed(0)
        return loaded(tmp_path, "cached_net", text).Net()

    yield make
    for name in ("cached_helper", "cached_net"):
        sys.modules.pop(name, None)


X = torch.arange(12.0).reshape(4, 3) / 7


def call(module, *args, train=False, **kwargs):
    """Whether the module was captured, and its outputs."""
    model = esper.wrap(module)
    out = model(*(args or (X,)), train=train, key=None, **kwargs)
    return model.structure.source.traces == 1, out


def captured(module, *args, **kwargs):
    return call(module, *args, **kwargs)[0]


def test_a_second_wrap_finds_the_program_and_computes_the_same(make):
    first, before = call(make())
    module = make()
    again, after = call(module)
    assert (first, again) == (True, False)
    np.testing.assert_array_equal(before, after)
    with torch.no_grad():
        torch.testing.assert_close(after, module.eval()(X))


def test_values_of_parameters_do_not_matter(make):
    assert captured(make())
    module = make()
    with torch.no_grad():
        module.linear.weight.mul_(2)
    again, out = call(module)
    assert not again
    torch.testing.assert_close(out, module.eval()(X).detach())


def test_another_batch_size_and_mode(make):
    assert captured(make())
    assert not captured(make(), torch.ones(7, 3))
    assert captured(make(), train=True)
    assert not captured(make(), train=True)


EDITS = {
    "the forward": [("+ SHIFT", "- SHIFT")],
    "a constant in the forward": [("math.pi * bool", "math.pi * 2 * bool")],
    "a function that it calls": [("x * SCALE * by", "x * SCALE - by")],
    "a default argument": [("by=0.5", "by=0.25")],
    "a global number": [("SCALE = 2.0", "SCALE = 2.5")],
    "a global dict": [('{"shift": 1.0}', '{"shift": 1.5}')],
    "a global tensor": [("[1.0, 2.0, 3.0]", "[1.0, 2.0, 4.0]")],
    "a class attribute": [("factor = 3.0", "factor = 4.0")],
    "an attribute": [("self.power = 2", "self.power = 3")],
    "an attribute's type": [("self.power = 2", "self.power = 2.0")],
    "a function held": [("self.act = torch.relu", "self.act = torch.sigmoid")],
    "a plain tensor": [("[1.0, 0.0, 1.0]", "[1.0, 1.0, 1.0]")],
    "an option": [("bias: bool = True", "bias: bool = False")],
    "a line's number": [("\nSCALE", "\n\nSCALE")],
    "eps of a layer": [("nn.BatchNorm1d(3)", "nn.BatchNorm1d(3, eps=1e-3)")],
    "another layer": [("nn.BatchNorm1d(3)", "nn.InstanceNorm1d(3)")],
    "bias": [("nn.Linear(3, self.options.width)", "nn.Linear(3, self.options.width, bias=False)")],
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
def test_a_change_of_code_is_another_program(make, edits):
    def place(module):
        return program_cache.family(module, signature(), is_lowered)

    first = place(make())
    assert first is not None
    assert place(make()) == first
    assert place(make(edits)) not in (None, first)


def test_a_change_of_another_file_is_another_program(make):
    first = program_cache.family(make(), signature(), is_lowered)
    assert program_cache.family(make(helper=HELPER.replace("2 * x", "x + x")), signature(), is_lowered) != first


def signature(train=False):
    _, tree = flatten(((0,), {}))
    return Signature(tree, (TensorType((4, 3), "float32"),), train)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x):
        return self.two(self.drop(self.one(x))) * self.scale


def hooked(module, inputs, output):
    return output + 1


def _tied(module):
    module.two.weight = module.one.weight


def _with(**values):
    def change(module):
        for name, value in values.items():
            setattr(module, name, value)

    return change


CHANGES = {
    "a flag of a part": lambda m: m.drop.eval(),
    "a hook": lambda m: m.one.register_forward_hook(hooked),
    "a hook on a parameter": lambda m: m.one.weight.register_hook(lambda g: 2 * g),
    "a frozen parameter": lambda m: m.one.weight.requires_grad_(False),
    "a tied parameter": _tied,
    "a dtype": lambda m: m.one.bfloat16(),
    "a forward of the instance": lambda m: _with(forward=lambda x: x)(m.one),
    "an attribute": _with(more=1),
    "an attribute in a container": _with(more=[{"a": (1, 2)}]),
    "a buffer of another shape": lambda m: m.register_buffer("scale", torch.ones(1, 3)),
    "another buffer": lambda m: m.register_buffer("further", torch.ones(3)),
    "a part's number": lambda m: _with(p=0.25)(m.drop),
    "a class of its own": lambda m: _with(two=nn.Bilinear(3, 3, 3))(m),
    "strides": lambda m: _with(weight=nn.Parameter(torch.empty(3, 3).t()))(m.one),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_module_is_another_program(change):
    def place(module, modes=None):
        found = esper.wrap(module).structure.source
        return program_cache.family(found.module, signature(), is_lowered, found.modes, found._hooks)

    changed = Plain()
    change(changed)
    first = place(Plain())
    assert first is not None
    assert place(Plain()) == first
    assert place(changed) != first


SETTINGS = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "deterministic": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
}


@pytest.mark.parametrize(("get", "set_", "value"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_of_torch_is_another_program(get, set_, value):
    first, before = program_cache.family(Plain(), signature(), is_lowered), get()
    module = Plain()
    set_(value)
    try:
        assert program_cache.family(module, signature(), is_lowered) != first
    finally:
        set_(before)
    with torch.autocast("cpu"):
        assert program_cache.family(module, signature(), is_lowered) != first
    assert program_cache.family(module, signature(), is_lowered) == first


def test_versions_and_lowerings_count(monkeypatch):
    first = program_cache.family(Plain(), signature(), is_lowered)
    assert program_cache.family(Plain(), signature(), lambda op: is_lowered(op) and op != "aten.gelu.default") != first
    monkeypatch.setattr(torch, "__version__", "0")
    assert program_cache.family(Plain(), signature(), is_lowered) != first
    monkeypatch.undo()
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert program_cache.family(Plain(), signature(), is_lowered) != first


def test_other_settings_of_the_wrap_are_other_programs():
    assert captured(Plain())
    assert esper.wrap(Plain(), [])(X) is not None
    model = esper.wrap(Plain(), [])
    model(X)
    assert model.structure.source.traces == 0
    model = esper.wrap(Plain(), ["one"])
    model(X)
    assert model.structure.source.traces == 1


class Chance(nn.Module):
    def forward(self, x):
        return x * random.random()


class Evaluated(nn.Module):
    def forward(self, x):
        return x * eval("2")


class Slots:
    __slots__ = ("held",)


REFUSED = {
    "chance": Chance(),
    "eval": Evaluated(),
    "slots": Slots(),
    "an iterator": iter([1]),
    "a generator of torch's": torch.Generator(),
    "a sparse tensor": torch.eye(2).to_sparse(),
    "a computed tensor": torch.ones(2, requires_grad=True) * 2,
    "a lock of threads": threading.Lock(),
    "code without a file": eval("lambda x: x"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_is_not_kept():
    with pytest.raises(Unknown):
        digest(torch.jit.script(nn.ReLU()))


@pytest.mark.parametrize("held", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_told_is_not_kept(held):
    with pytest.raises(Unknown):
        digest(held)


def test_no_program_is_kept_of_a_module_that_cannot_be_told(folder):
    assert captured(Chance())
    assert captured(Chance())
    assert not list(folder.rglob("*.json"))


def test_what_transformers_adds_to_modules_does_not_matter(monkeypatch):
    monkeypatch.delattr(nn.Module, "smart_apply", raising=False)
    before = digest(nn.Linear)
    monkeypatch.setattr(nn.Module, "smart_apply", lambda self, function: function, raising=False)
    assert digest(nn.Linear) == before
    monkeypatch.setattr(nn.Module, "other_apply", lambda self, function: function, raising=False)
    assert digest(nn.Linear) != before


def test_numbers_are_told_apart():
    values = [0, 0.0, -0.0, False, None, "0", b"0", 0j, math.nan, math.inf, (), [], {}, (0,), [0], {0: 0}, {1, 2}]
    values += [nn.Linear, torch.float32, torch.relu, slice(0, 1), range(3)]
    assert len({digest(value) for value in values}) == len(values)


def test_sharing_is_told_apart():
    one, two = [1], [1]
    assert digest([one, one]) != digest([one, two])
    assert digest([one, two]) == digest([[1], [1]])


class Lifted(nn.Module):
    def forward(self, x):
        return x * torch.tensor([1.0, 2.0, 3.0])


def test_constants_that_a_capture_closed_over_come_along():
    first, before = call(Lifted())
    again, after = call(Lifted())
    assert (first, again) == (True, False)
    np.testing.assert_array_equal(before, after)
    torch.testing.assert_close(after, X * torch.tensor([1.0, 2.0, 3.0]))


def test_constants_of_two_programs_do_not_meet():
    class Two(nn.Module):
        def forward(self, x):
            return x + (torch.tensor([1.0, 2.0, 3.0]) if self.training else torch.tensor([5.0, 6.0, 7.0]))

    call(Two(), train=True)
    call(Two())
    model = esper.wrap(Two())
    evaluated, trained = model(X), model(X, train=True)
    assert model.structure.source.traces == 0
    torch.testing.assert_close(evaluated, X + torch.tensor([5.0, 6.0, 7.0]))
    torch.testing.assert_close(trained, X + torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"", lambda b: b.replace(b"aten", b"atem"), lambda b: b * 2]
)
def test_a_damaged_entry_is_captured_anew_and_written_again(folder, damage):
    assert captured(Plain())
    (entry,) = folder.rglob("*.json")
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert captured(Plain())
    assert entry.read_bytes() == whole
    assert not captured(Plain())


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(program_cache.VARIABLE, str(tmp_path / "file"))
    assert captured(Plain())


def test_it_is_off_unless_a_folder_is_named(monkeypatch, folder):
    monkeypatch.delenv(program_cache.VARIABLE)
    assert captured(Plain())
    assert captured(Plain())
    assert not folder.exists()


def test_writers_do_not_disturb_each_other(folder):
    source = esper.wrap(Plain()).structure.source
    program = prepare(source, (X,), {}, False).program
    place = folder / "programs" / "x"
    threads = [
        threading.Thread(target=program_cache.write, args=(place, signature(), program, {"a": X})) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((found, constants),) = program_cache.read(place)
    assert found == program
    torch.testing.assert_close(constants["a"], X)
    assert not list(place.glob("*.part"))


DTYPES = [torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_constants_keep_their_bits(folder, dtype, shape):
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    program = prepare(esper.wrap(Plain()).structure.source, (X,), {}, False).program
    program_cache.write(folder, signature(), program, {"a": tensor})
    ((_, constants),) = program_cache.read(folder)
    assert constants["a"].dtype is dtype
    assert torch.equal(constants["a"], tensor)


def test_gradients_of_a_program_from_the_disk(make):
    def gradients():
        model = esper.wrap(make())
        value = jax.grad(lambda params: model.replace(params=params)(X.numpy()).sum())(model.params)
        return model.structure.source.traces, value["host"]

    (first, before), (again, after) = gradients(), gradients()
    assert (first, again) == (1, 0)
    for name, value in copy.copy(before).items():
        np.testing.assert_array_equal(value, after[name])


@pytest.fixture
def no_compilation_cache():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_command_keeps_programs_and_what_xla_compiled(monkeypatch, tmp_path, no_compilation_cache):
    monkeypatch.delenv(program_cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caches():
        assert program_cache.folder() == tmp_path / "esper" / "programs"
        assert str(jax.config.jax_compilation_cache_dir).startswith(str(tmp_path / "esper" / "xla-"))
    assert program_cache.folder() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_the_command_keeps_nothing_where_the_variable_is_empty(monkeypatch, no_compilation_cache):
    monkeypatch.setenv(program_cache.VARIABLE, "")
    with caches():
        assert program_cache.folder() is None
        assert jax.config.jax_compilation_cache_dir is None


def test_the_command_leaves_a_compilation_cache_as_it_is(tmp_path, no_compilation_cache):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with caches():
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
