"""`esper config`: what is wrong with a file, and what a file may say."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Puts `esper config` among the commands."""
    parser = commands.add_parser("config", help="check a configuration, or print its schema")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    check = verbs.add_parser("check", help="say every problem of a file")
    check.add_argument("file", metavar="FILE")
    check.set_defaults(run=_config_check)
    schema = verbs.add_parser("schema", help="write the JSON schema, for editors")
    schema.add_argument("file", metavar="FILE", nargs="?", help="where to; left out: standard output")
    schema.set_defaults(run=_config_schema)


def _config_check(asked: argparse.Namespace) -> int:
    from esper.configs import EsperConfig

    config = EsperConfig.from_yaml(asked.file)
    config.check()
    print(f"{asked.file}: no problems; {config.name} {config.version}, {config.environment}")
    return 0


def _config_schema(asked: argparse.Namespace) -> int:
    from esper.configs import EsperConfig

    text = json.dumps(EsperConfig.json_schema(), indent=2, ensure_ascii=False) + "\n"
    if asked.file is None:
        print(text, end="")
    else:
        Path(asked.file).write_text(text, encoding="utf-8")
        print(f"{asked.file}: written")
    return 0
