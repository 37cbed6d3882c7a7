"""A digest of everything that a Python object's behaviour can depend on: its data, and the code that it can reach.

Two objects with equal digests behave alike, in another process too. What cannot be told is `Unknown`, never guessed:
objects of kinds not listed here, code without a file, code that asks for time, chance or the process's surroundings.
Code of torch, of Python's own library and of esper counts by version (`provenance.py`), unless somebody replaced it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import pathlib
import re
import struct
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field
from enum import Enum
from typing import Any

import torch
from torch import nn

from esper.torch_frontend.provenance import Unknown, is_known, names_of, origin, refuse_volatile

_BYTES = 64 << 20  # of tensors, above which reading them costs more than a capture
_SKIPPED = frozenset(
    ("__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__qualname__", "__firstlineno__")
    + (
        "__abstractmethods__",
        "_abc_impl",
        "__parameters__",
        "__orig_bases__",
        "__static_attributes__",
        "__dataclass_params__",
    )
)
# What transformers puts into torch's class to draw initial weights with; no forward calls it.
_ADDED = ((nn.Module, "smart_apply"),)
_NAMED = (
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    range,
    slice,
    type(Ellipsis),
    type(NotImplemented),
)
_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
)
_OPERATORS = (
    torch._ops.OpOverload,
    torch._ops.OpOverloadPacket,
    torch._ops._OpNamespace,
    torch._ops.HigherOrderOperator,
)


def digest(*parts: Any, registered: Iterable[torch.Tensor] = ()) -> str:
    """The digest of `parts`; of the tensors `registered`, it counts what they look like and not what they hold.

    Raises:
        Unknown: Something in them cannot be told.
    """
    walk = _Walk({id(tensor) for tensor in registered})
    for part in parts:
        walk.add(part)
    return walk.hexdigest()


class _Walk:
    """Feeds a hash, object by object; what was met before counts by its number, so that sharing shows."""

    def __init__(self, registered: set[int]) -> None:
        self._hash = hashlib.blake2b(digest_size=24)
        self._registered = registered
        self._numbers: dict[int, int] = {}
        self._held: list[Any] = []  # keeps ids from being given anew
        self._read = 0

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def say(self, *words: object) -> None:
        """Adds words of known kinds, each with its length."""
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            self._hash.update(struct.pack("<q", len(data)) + data)

    def add(self, value: Any) -> None:
        """Adds an object and all it leads to."""
        if type(value) in _PLAIN:
            self.say(type(value).__name__, value if isinstance(value, bytes) else repr(value))
        elif type(value) is float:
            self.say("float", struct.pack("<d", value))
        elif id(value) in self._numbers:
            self.say("again", self._numbers[id(value)])
        else:
            self._numbers[id(value)] = len(self._numbers)
            self._held.append(value)
            self._add_object(value)

    def add_all(self, values: Iterable[Any]) -> None:
        """Adds several, with their number."""
        found = list(values)
        self.say("several", len(found))
        for value in found:
            self.add(value)

    def _add_object(self, value: Any) -> None:
        exact = _EXACT.get(type(value))
        adds = exact or next((adds for kinds, adds in _ADDERS if isinstance(value, kinds)), _Walk.instance)
        adds(self, value)

    def tensor(self, value: torch.Tensor) -> None:
        """What a tensor looks like, and what it holds if that may be read."""
        if type(value) not in (torch.Tensor, nn.Parameter, nn.Buffer) or value.layout is not torch.strided:
            raise Unknown(f"a tensor of kind {type(value).__name__}")
        hooks = [value._backward_hooks, getattr(value, "_post_accumulate_grad_hooks", None)]
        self.say("tensor", type(value).__name__, tuple(value.shape), value.stride(), value.dtype, value.device)
        self.say(value.requires_grad, value.is_quantized, value.is_conj(), value.is_neg())
        self.add([dict(held) if held else None for held in hooks])
        self.add(dict(vars(value)) if vars(value) else None)
        if id(value) not in self._registered:
            self._contents(value)

    def _contents(self, value: torch.Tensor) -> None:
        self._read += value.nbytes
        if self._read > _BYTES or value.device.type != "cpu" or value.grad_fn is not None:
            raise Unknown("a tensor that is large, elsewhere, or computed")
        self.say(
            value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )

    def function(self, value: types.FunctionType) -> None:
        """A function: its code, its defaults, and what it closes over or finds among its globals."""
        if is_known(value):
            self.say("known", origin(value))
            return
        self.say("function", value.__qualname__)
        self.code(value.__code__, value.__globals__)
        self.add([value.__defaults__, value.__kwdefaults__, dict(vars(value))])
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            self.say(name)
            self.add(_content(cell))

    def code(self, code: types.CodeType, names: Mapping[str, Any]) -> None:
        """Code, and the globals that it names."""
        path = pathlib.Path(code.co_filename)
        if not path.is_file():
            raise Unknown(f"the source of {code.co_qualname}")
        globals_, attributes, imports = names_of(code)
        refuse_volatile(globals_, attributes, imports, names)
        self.say("code", code.co_code, code.co_linetable, code.co_exceptiontable, path.name)
        self.say(
            code.co_firstlineno, code.co_flags, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        )
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.code(constant, names)
            else:
                self.add(constant)
        for name in globals_:
            self.say("global", name, name in names)
            self.add(names.get(name))
        modules = [names[name] for name in globals_ if isinstance(names.get(name), types.ModuleType)]
        for module in [*modules, *map(_loaded, imports)]:
            for member in _members(module, attributes, {id(module)}):
                self.add(member)

    def module(self, value: types.ModuleType) -> None:
        """A Python module: what is read of it is added where that is."""
        self.say("module", value.__name__)

    def cls(self, value: type) -> None:
        """A class: its bases, and all that its body defines."""
        self.say("class", value.__module__, value.__qualname__)
        if not is_known(type(value)):
            self.add(type(value))
        for base in value.__mro__:
            known = is_known(base)
            self.say("base", origin(base) if known else base.__qualname__)
            for name, held in sorted(vars(base).items()):
                if name in _SKIPPED or (base, name) in _ADDED or _is_generated(base, held):
                    continue
                if not known or _is_replaced(held):
                    self.say("attribute", name)
                    self.add(held)

    def instance(self, value: Any) -> None:
        """An object whose state is its attributes, and its items if it is a container."""
        kind = type(value)
        slots = any(vars(base).get("__slots__") for base in kind.__mro__ if base is not object)
        if slots or (is_known(kind) and not isinstance(value, nn.Module)) or not hasattr(value, "__dict__"):
            raise Unknown(f"an object of {kind.__module__}.{kind.__qualname__}")
        self.say("instance")
        self.add(kind)
        if isinstance(value, dict):
            self.mapping(value)
        elif isinstance(value, list | tuple):
            self.add_all(value)
        self.mapping(vars(value))

    def mapping(self, value: Mapping[Any, Any]) -> None:
        """Keys and values, in order."""
        self.say("mapping", type(value).__qualname__, len(value))
        for key, held in value.items():
            self.add(key)
            self.add(held)

    def sequence(self, value: Iterable[Any]) -> None:
        """Items, in order."""
        self.say(type(value).__qualname__)
        self.add_all(value)

    def collection(self, value: Iterable[Any]) -> None:
        """Items without an order: plain ones only, which can be sorted by what they say."""
        items = list(value)
        if not all(type(item) in (*_PLAIN, float) for item in items):
            raise Unknown("a set of objects")
        self.say("set", sorted(map(repr, items)))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a cell that is not filled yet
        return None


def _loaded(name: str) -> types.ModuleType:
    if name not in sys.modules:
        raise Unknown(f"{name}, which is imported later")
    return sys.modules[name]


def _members(module: types.ModuleType, names: Iterable[str], seen: set[int]) -> Iterator[Any]:
    """What code may read of a module, and of modules in it: of torch's own only what somebody replaced."""
    for name in names:
        member = vars(module).get(name)
        if isinstance(member, types.ModuleType):
            if id(member) not in seen:
                seen.add(id(member))
                yield from _members(member, names, seen)
        elif not is_known(module) or _is_replaced(member) or not is_known(type(member)):
            yield member


def _is_replaced(member: Any) -> bool:
    """Whether somebody put a function of their own into a class of torch's."""
    return isinstance(member, types.FunctionType) and not is_known(member)


def _is_generated(cls: type, member: Any) -> bool:
    """Whether `dataclass` wrote a method, which its fields tell."""
    generated = isinstance(member, types.FunctionType) and member.__code__.co_filename == "<string>"
    return generated and "__dataclass_fields__" in vars(cls)


def _words(*found: Callable[[Any], Any]) -> Callable[[_Walk, Any], None]:
    return lambda walk, value: walk.say(type(value).__name__, *(of(value) for of in found))


def _parts(*names: str) -> Callable[[_Walk, Any], None]:
    def add(walk: _Walk, value: Any) -> None:
        walk.say(type(value).__name__)
        for name in names:
            walk.add(getattr(value, name))

    return add


def _enum(walk: _Walk, value: Enum) -> None:
    walk.add(type(value))
    walk.say("member", value.name)


def _built_in(walk: _Walk, value: Any) -> None:
    """A function in C: of known packages, and bound to what it is bound to."""
    bound = getattr(value, "__self__", None)
    home = getattr(value, "__objclass__", None) or bound
    if home is None:
        home = sys.modules.get(value.__module__ or "")
    if not is_known(home if isinstance(home, type | types.ModuleType) else type(home)):
        raise Unknown(f"{value.__qualname__}, which is in C")
    walk.say("built in", getattr(value, "__module__", None), value.__qualname__)
    walk.add(bound)


def _script(_: _Walk, value: Any) -> None:
    raise Unknown(f"the script {type(value).__name__}")


_PLAIN = (bool, int, complex, str, bytes, type(None))
_EXACT: dict[type, Callable[[_Walk, Any], None]] = {
    dict: _Walk.mapping,
    OrderedDict: _Walk.mapping,
    types.MappingProxyType: _Walk.mapping,
    list: _Walk.sequence,
    tuple: _Walk.sequence,
    torch.Size: _Walk.sequence,
    set: _Walk.collection,
    frozenset: _Walk.collection,
}
_ADDERS: tuple[tuple[Any, Callable[[_Walk, Any], None]], ...] = (
    ((torch.jit.ScriptModule, torch.jit.ScriptFunction), _script),
    (torch.Tensor, _Walk.tensor),
    (type, _Walk.cls),
    (types.FunctionType, _Walk.function),
    (types.MethodType, _parts("__func__", "__self__")),
    (_BUILT_IN, _built_in),
    (types.ModuleType, _Walk.module),
    ((staticmethod, classmethod), _parts("__func__")),
    (weakref.ReferenceType, lambda walk, value: walk.add(value())),
    (property, _parts("fget", "fset", "fdel")),
    (functools.partial, _parts("func", "args", "keywords")),
    (functools.cached_property, _parts("func")),
    (Field, _parts("name", "default", "init", "kw_only")),
    (Enum, _enum),
    (_OPERATORS, _words(str)),
    (_NAMED, _words(repr)),
    (re.Pattern, _words(lambda value: value.pattern, lambda value: value.flags)),
    (logging.Logger, _words(lambda value: value.name)),
    (pathlib.PurePath, _words(str)),
)
