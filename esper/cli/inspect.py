"""`esper inspect`: the Programs of a module, the layers that can grow, and the operators without a lowering."""

from __future__ import annotations

import argparse

from esper.cli.modules import find_user_modules


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Puts `esper inspect` among the commands."""
    parser = commands.add_parser("inspect", help="show what esper makes of a module")
    parser.add_argument("module", metavar="MODULE:FACTORY", help="a callable that returns an nn.Module; or cnn, or mlp")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="an argument of forward, such as 2x64 or 1x16:int64; once for each, needed but for cnn and mlp",
    )
    parser.add_argument("--no-program", action="store_true", help="leave out the Programs themselves")
    parser.set_defaults(run=_inspect)


def _inspect(asked: argparse.Namespace) -> int:
    find_user_modules()
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
