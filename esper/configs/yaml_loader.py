"""YAML to plain data and the line of every key; what YAML lets pass in silence is refused.

Messages name file and line and quote no text of the file: a password that was left unquoted is
what makes many a file invalid.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from esper.configs.problems import refusal
from esper.errors import ConfigError


@dataclass(frozen=True)
class Document:
    """A parsed file: its data, and the line of each key by dotted path."""

    data: dict[str, Any]
    lines: dict[str, int]


def load_yaml(path: str | os.PathLike[str]) -> Document:
    """Read the mapping in a YAML file.

    Raises:
        ConfigError: The file cannot be read, is not YAML, holds no mapping, or gives a key twice.
    """
    name, text = os.fspath(path), _read(path)
    root, data, problem, duplicates = None, None, "", []
    try:
        loader = _Loader(text)
        root, duplicates = loader.get_single_node(), loader.duplicates
        data = loader.construct_document(root) if root is not None and not duplicates else None
    except yaml.MarkedYAMLError as error:
        problem = _explained(error)
    except yaml.reader.ReaderError as error:
        problem = f"line {text.count(chr(10), 0, error.position) + 1}: a character that YAML does not allow"
    except RecursionError:
        problem = "nested too deeply"
    # Raised outside the handlers: the errors of the parser hold the text.
    if problem:
        raise ConfigError(f"{name} is not valid YAML: {problem}", [problem])
    if duplicates:
        raise refusal(name, duplicates)
    if root is None:
        raise ConfigError(f"{name} is empty; it should hold at least `name: ...`")
    if not isinstance(data, dict):
        raise ConfigError(f"{name} should hold a mapping of keys to values, not a {type(data).__name__}")
    odd = [f"{key!r}: keys should be text; quote it" for key in data if not isinstance(key, str)]
    if odd:
        raise refusal(name, odd)
    return Document(data, dict(_lines(root, (), frozenset())))


class _Loader(yaml.SafeLoader):
    """SafeLoader that collects the keys given twice in one mapping."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []

    # In the composer: later, merge keys (`<<`) have been expanded, and overriding a merged key is right.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        assert node is not None
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in first:
                    self.duplicates.append(f"key {key.value!r} is given twice, on lines {first[name]} and {line}")
                first.setdefault(name, line)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError:  # 2024-13-45 looks like a date
            raise yaml.constructor.ConstructorError(
                problem="a value that looks like a date or a number is none", problem_mark=node.start_mark
            ) from None


def _read(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = error.strerror or type(error).__name__
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    raise ConfigError(f"cannot read the configuration {os.fspath(path)}: {problem}")


def _explained(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    # What stands between quotes is text of the file.
    problem = re.sub(r"""(['"]).*\1""", "...", error.problem or error.context or "not understood", flags=re.DOTALL)
    return f"{place}{problem}. Quote values that hold any of : # & * ! % @ ` {{ }} [ ] or start with a quote."


def _lines(node: yaml.Node, path: tuple[str, ...], above: frozenset[int]) -> Iterator[tuple[str, int]]:
    if id(node) in above:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            step = (*path, str(key.value))
            yield ".".join(step), key.start_mark.line + 1
            yield from _lines(value, step, above | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield ".".join((*path, str(index))), value.start_mark.line + 1
            yield from _lines(value, (*path, str(index)), above | {id(node)})
