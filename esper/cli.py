"""Floor 5: the command `esper`. What goes wrong is one message and exit code 2, never a traceback.

Exit codes: 0 all is well; 1 `inspect` found operators without a lowering; 2 the request cannot be met.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from esper import __version__
from esper.errors import EsperError

if TYPE_CHECKING:
    from rich.console import Console

    from esper.configs import LoggingSettings
    from esper.job import Job
    from esper.train.history import Record

_LOG = logging.getLogger("esper.job")
_WIDTH = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The command line without the program's name; None: that of the process.

    Returns:
        The exit code.
    """
    asked = _parser().parse_args(argv)
    try:
        return asked.run(asked)
    except EsperError as error:
        print(f"esper: {error}", file=sys.stderr)
    except OSError as error:
        print(f"esper: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
    except KeyboardInterrupt:
        print("esper: interrupted", file=sys.stderr)
        return 130
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="esper", description="Run, train and grow PyTorch models on XLA.")
    parser.add_argument("--version", action="version", version=f"esper {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _grow_parser(commands.add_parser("grow", help="train a host, grow it, and give torch back"))
    _inspect_parser(commands.add_parser("inspect", help="show what esper makes of a module"))
    _config_parser(commands.add_parser("config", help="check a configuration, or print its schema"))
    return parser


def _grow_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument("--output-dir", metavar="DIR", help="where to write, instead of the configured directory")
    parser.add_argument("--no-control", action="store_true", help="leave out the run without growth")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no log, the tables only")
    parser.set_defaults(run=_grow)


def _inspect_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", metavar="MODULE:FACTORY", help="a callable that returns an nn.Module; or cnn, or mlp")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]SHAPE:DTYPE",
        help="an argument of forward, such as 1x3x32x32:float32; once for each",
    )
    parser.add_argument("--no-program", action="store_true", help="leave out the Programs themselves")
    parser.set_defaults(run=_inspect)


def _config_parser(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="say every problem of a file")
    check.add_argument("file", metavar="FILE")
    check.set_defaults(run=_config_check)
    schema = commands.add_parser("schema", help="write the JSON schema, for editors")
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


def _inspect(asked: argparse.Namespace) -> int:
    _find_user_modules()
    from esper.errors import UnsupportedOpError
    from esper.inspection import blueprints, inspect

    found = inspect(asked.module, tuple(asked.input))
    for mode, program in found.programs.items():
        shown = f"Program ({mode}, {len(program.nodes)} nodes)" if asked.no_program else str(program)
        print(f"{shown}\n")
    print(f"{len(found.model.structure.sites)} layers can grow:")
    for site in found.model.structure.sites:
        print(f"  {site.name or '(root)'}  {site.type}  {', '.join(blueprints(site)) or 'no blueprint fits'}")
    print("\nOperators (eval, train):")
    ops = [program.ops for program in found.programs.values()]
    for op in sorted(set().union(*ops)):
        print(f"  {op}  {', '.join(str(counts.get(op, 0)) for counts in ops)}")
    if found.missing:
        print(f"\n{UnsupportedOpError(found.missing)}")
        return 1
    print("\nEvery operator has a lowering.")
    return 0


def _grow(asked: argparse.Namespace) -> int:
    _find_user_modules()
    from rich.console import Console

    from esper.allocation import keep_freed_memory
    from esper.caching import caches
    from esper.configs import EsperConfig
    from esper.job import run, steps_of
    from esper.train.progress import progress_bar

    config = EsperConfig.from_yaml(asked.config)
    config.check()
    keep_freed_memory()
    settings, control = config.logging_settings(), not asked.no_control
    notes = Console(stderr=True)
    bar = not asked.quiet and settings.format == "text"
    with (
        caches(),
        _logging(settings, notes, quiet=asked.quiet),
        progress_bar(steps_of(config.training_settings(), control=control), shown=bar, console=notes) as tick,
    ):
        job = run(config, control=control, output_dir=asked.output_dir, watch=lambda step: tick(), listen=_log)
    _report(job)
    return 0


def _report(job: Job) -> None:
    from rich.console import Console

    from esper.train.report import figures_table, summary, transitions_compiled

    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    before = {
        "largest absolute error": f"{job.parity.max_abs:.2e}",
        "relative to the largest output": f"{job.parity.max_rel:.2e} (at most 1e-5 is accepted)",
    }
    console.print(figures_table("Eager torch against the wrapped model, before training", before))
    console.print(summary(job.growth, job.control))
    console.print(f"compiles caused by seeds' transitions: {transitions_compiled(job.growth.records)}\n")
    after = {
        "largest absolute error": f"{job.certificate['max_abs']:.2e}",
        "relative to the largest output": f"{job.certificate['max_rel']:.2e} (at most 1e-5 is accepted)",
    }
    console.print(figures_table("Certificate: the grown model against the torch module it gave back", after))
    console.print(figures_table("Written", _loading(job)))


def _loading(job: Job) -> dict[str, str]:
    files = job.files
    return {
        str(files["module"]): f"the module: torch.load({str(files['module'])!r}, weights_only=False), esper installed",
        str(files["state_dict"]): f"its tensors: torch.load({str(files['state_dict'])!r}, weights_only=True)",
        str(
            files["tensors"]
        ): f"the same, and seeds as metadata: safetensors.torch.load_file({str(files['tensors'])!r})",
        str(files["history"]): "every event, one JSON object a line",
        str(files["certificate"]): "the certificate above",
        str(files["ledger"]): "where the work went, as in the table above",
    }


def _log(record: Record) -> None:
    level = logging.DEBUG if record.event in ("start", "evaluate", "score", "end") else logging.INFO
    _LOG.log(level, "%s", _sentence(record), extra={"record": asdict(record)})


def _sentence(record: Record) -> str:
    place = "" if record.layer is None else f" {record.layer or '(root)'}[{record.seed}]"
    told = [record.reason] if record.reason else []
    told += [
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in record.figures.items()
    ]
    return f"{record.run} step {record.step}: {record.event}{place}: {', '.join(told)}"


class _Structured(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The event itself if there is one, else the message."""
        from esper.train.history import Record

        event = getattr(record, "record", None)
        about = json.loads(Record(**event).to_json()) if event else {"message": record.getMessage()}
        return json.dumps({"level": record.levelname, "logger": record.name, **about}, ensure_ascii=False)


class _Text(logging.Handler):
    """Lines for people, above the progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line, its markup and numbers as they are."""
        self._console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _logging(settings: LoggingSettings, console: Console, *, quiet: bool) -> Iterator[None]:
    """The log of esper goes to standard error while the block runs."""
    handler: logging.Handler = _Text(console)
    if settings.format == "structured":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Structured())
    logger = logging.getLogger("esper")
    before = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL if quiet else settings.level)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _find_user_modules() -> None:
    """MODULE:FACTORY is looked for in the working directory too, as `python -m` would."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
