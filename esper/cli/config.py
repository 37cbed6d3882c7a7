"""`esper config`: a file to start from, what is wrong with one, what it says, and what it may say."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from esper.cli.arguments import amount
from esper.cli.modules import find_user_modules
from esper.errors import ArgumentError, ConfigError

if TYPE_CHECKING:
    from esper.configs import EsperConfig
    from esper.configs.checks import Finding

_LONGEST = 86_400  # seconds


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Puts `esper config` among the commands."""
    parser = commands.add_parser("config", help="start, check and document a configuration")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    init = verbs.add_parser("init", help="write a configuration to start from")
    init.add_argument("file", metavar="FILE", nargs="?", help="where to; left out: standard output")
    init.add_argument("--template", default="laptop", metavar="NAME", help="laptop, gpu or cluster")
    init.set_defaults(run=_config_init)
    check = verbs.add_parser("check", help="say every problem of a file, and of the services it names")
    check.add_argument("file", metavar="FILE")
    check.add_argument("--offline", action="store_true", help="do not connect to the services")
    check.add_argument(
        "--timeout",
        type=amount("seconds", _LONGEST, zero=False),
        default=20.0,
        metavar="SECONDS",
        help="how long that may take",
    )
    check.set_defaults(run=_config_check)
    show = verbs.add_parser("show", help="print what a file says, with the environment's overrides and no secrets")
    show.add_argument("file", metavar="FILE")
    show.set_defaults(run=_config_show)
    change = verbs.add_parser("set", help="change settings of a run while it goes on, at its next evaluation")
    change.add_argument("folder", metavar="RUN", help="the folder it writes to (training.output_dir)")
    change.add_argument("changes", metavar="FIELD=VALUE", nargs="+", help="such as patience=5")
    change.set_defaults(run=_config_set)
    schema = verbs.add_parser("schema", help="write the JSON schema, for editors")
    schema.add_argument("file", metavar="FILE", nargs="?", help="where to; left out: standard output")
    schema.set_defaults(run=_config_schema)
    reference = verbs.add_parser("reference", help="print what every field means, or put it into a page")
    reference.add_argument("file", metavar="PAGE", nargs="?", help="a page with the two marks it goes between")
    reference.set_defaults(run=_config_reference)


def _config_init(asked: argparse.Namespace) -> int:
    from esper.configs.templates import template

    text = template(asked.template)
    if asked.file is None:
        print(text, end="")
        return 0
    try:
        with Path(asked.file).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ArgumentError(f"{asked.file} exists already: name another file, or remove it first") from None
    print(f"{asked.file}: written; next: esper config check {asked.file}")
    return 0


def _config_check(asked: argparse.Namespace) -> int:
    find_user_modules()
    from esper.configs import EsperConfig
    from esper.configs.checks import examine
    from esper.configs.redaction import redacted

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        config = EsperConfig.checked(asked.file)
        keys = list(_keys(config))
    for warning in warned:
        print(f"warning  {warning.message}")
    findings = [*examine(config, connect=not asked.offline, seconds=asked.timeout), *keys]
    for finding in findings:
        print(finding)
    failed = sum(finding.verdict == "failed" for finding in findings)
    if failed:
        print(f"{asked.file}: {failed} problem{'s' if failed > 1 else ''}")
        return 1
    name, version, environment = map(redacted, (config.name, config.version, config.environment))
    print(f"{asked.file}: no problems; {name} {version}, {environment}")
    return 0


def _keys(config: EsperConfig) -> Iterator[Finding]:
    """Whether the keys of remote control can be had, read as a run reads them."""
    from esper.configs.checks import Finding
    from esper.configs.redaction import scrubbed, secrets_of

    settings = config.tamiyo_settings()
    if settings.remote is None or settings.policy == "none":
        return
    from esper.control.connect import keys_of

    subject = f"components.tamiyo.config.remote.{'secret' if settings.remote.secret is not None else 'key_file'}"
    try:
        signing = keys_of(settings.remote).signing
    except ConfigError as error:
        yield Finding("failed", subject, scrubbed(str(error), secrets_of(config)))
    else:
        yield Finding("ok", subject, f"messages are signed with the key {signing}")


def _config_show(asked: argparse.Namespace) -> int:
    import yaml

    from esper.configs import EsperConfig

    config = EsperConfig.from_yaml(asked.file)
    print(yaml.safe_dump(config.redacted(), sort_keys=False, allow_unicode=True), end="")
    return 0


def _config_set(asked: argparse.Namespace) -> int:
    from esper.configs.changes import parsed
    from esper.train.updates import ask

    changes = parsed(asked.changes)
    ask(asked.folder, changes)
    for change in changes:
        print(f"{change.field} = {json.dumps(change.value)}: asked for; the next evaluation records it as `update`")
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


def _config_reference(asked: argparse.Namespace) -> int:
    from esper.configs.reference import filled, reference

    if asked.file is None:
        print(reference(), end="")
    else:
        page = Path(asked.file)
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{asked.file}: written")
    return 0
