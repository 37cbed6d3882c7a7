"""`esper grow`: the main job, with its tables, its log and its progress bar."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from esper.cli.modules import find_user_modules

if TYPE_CHECKING:
    from rich.console import Console

    from esper.configs import LoggingSettings
    from esper.job import Job
    from esper.train.history import Record

_LOG = logging.getLogger("esper.job")
_WIDTH = 120


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Puts `esper grow` among the commands."""
    parser = commands.add_parser("grow", help="train a host, grow it, and give torch back")
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument("--output-dir", metavar="DIR", help="where to write, instead of the configured directory")
    going_on = parser.add_mutually_exclusive_group()
    going_on.add_argument(
        "--resume", action="store_true", help="go on with the run that was stopped in that directory, as if it had not"
    )
    going_on.add_argument(
        "--resume-if-begun",
        action="store_const",
        const="if begun",
        dest="resume",
        help="the same, or begin one where none was stopped: for schedulers that start it again",
    )
    parser.add_argument("--no-control", action="store_true", help="leave out the run without growth")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no log, the tables only")
    parser.set_defaults(run=_grow)


def _grow(asked: argparse.Namespace) -> int:
    find_user_modules()
    from rich.console import Console

    from esper.allocation import keep_freed_memory
    from esper.caching import caches
    from esper.configs import EsperConfig
    from esper.errors import RunFinishedError
    from esper.job import run, steps_of
    from esper.train.progress import progress_bar

    config = EsperConfig.from_yaml(asked.config)
    config.check()
    keep_freed_memory()
    settings, control, steps = config.logging_settings(), not asked.no_control, config.training_settings().steps
    notes = Console(stderr=True)
    bar = not asked.quiet and settings.format == "text"
    with (
        caches(),
        logged(settings, notes, quiet=asked.quiet),
        progress_bar(steps_of(config.training_settings(), control=control), shown=bar, console=notes) as tick,
    ):
        for name in config.unread_components():
            _LOG.warning("nothing reads components.%s: `esper config check` says what is read", name)

        def listen(record: Record) -> None:
            _log(record)
            if record.event in ("start", "resume"):
                tick.stands_at(record.step + (steps if record.run == "control" else 0))

        asks = {"control": control, "output_dir": asked.output_dir, "resume": asked.resume}
        try:
            job = run(config, watch=lambda step: tick(), listen=listen, **asks)
        except RunFinishedError as finished:
            print(f"esper: {finished}")  # which is what was asked for
            return 0
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
    for name, events in job.lost.items():
        if name != "jsonl":
            console.print(f"telemetry: {name} missed {events} events of this run", highlight=False)
    if job.published is not None:
        console.print(f"library: {job.published}", highlight=False)


def _loading(job: Job) -> dict[str, str]:
    files = job.files
    return {
        str(files["module"]): f"the module: torch.load({str(files['module'])!r}, weights_only=False), esper installed",
        str(files["state_dict"]): f"its tensors: torch.load({str(files['state_dict'])!r}, weights_only=True)",
        str(
            files["tensors"]
        ): f"the same, and seeds as metadata: safetensors.torch.load_file({str(files['tensors'])!r})",
        str(files["history"]): _history(job.lost),
        str(files["certificate"]): "the certificate above",
        str(files["ledger"]): "where the work went, as in the table above",
        str(files["network"]): f"the network, for the page that `esper report {files['network'].parent}` writes",
    }


def _history(lost: Mapping[str, int]) -> str:
    about = "every event, one JSON object a line"
    return f"{about}; written again at the end, since {lost['jsonl']} were lost before" if "jsonl" in lost else about


def _log(record: Record) -> None:
    if record.event == "update" and record.figures["field"] == "logging.level":
        logging.getLogger("esper").setLevel(json.loads(str(record.figures["new"])))
    if record.event in ("start", "resume") and record.run != "control":
        import jax

        _LOG.info("this run computes on: %s", jax.default_backend())
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
def logged(settings: LoggingSettings, console: Console, *, quiet: bool) -> Iterator[None]:
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
