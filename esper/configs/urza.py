"""The typed view of `components.urza.config`: the kernel library."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from esper.configs.base import ConfigModel, Place


class UrzaSettings(ConfigModel):
    """The `components.urza.config` section: where kernels are kept, and what a run has to do with them.

    The catalogue is in `database` and the artifacts in `storage` where these are given, else both are in `folder`.
    """

    folder: Place = Field(default="runs/library", min_length=1)
    """Folder of the embedded library, and of what this machine keeps until it can be delivered."""
    draw: bool = True
    """Whether policies try validated kernels of the library where they fit, before new ones germinate."""
    publish: bool = True
    """Whether a run puts the kernels that became permanent into the library when it ends."""
    tags: list[Annotated[str, Field(pattern=r"^\S{1,100}$")]] = Field(default=[])
    """Tags of what is published."""
    candidates: int = Field(default=3, ge=1, le=10_000)
    """Kernels of the library that are tried beside one layer, at most."""
