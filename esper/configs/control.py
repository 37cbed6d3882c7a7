"""How a run is controlled from another process, and how that process is."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from esper.configs.base import ConfigModel, Place


class RemoteSettings(ConfigModel):
    """The `components.tamiyo.config.remote` section: a policy in another process, started by `esper tamiyo`."""

    channel: Literal["folder", "redis"] = "folder"
    """How messages travel: `folder`: by files, between processes of one machine; `redis`: by the `redis` section."""
    folder: Place | None = Field(default=None, min_length=1)
    """Folder for `channel: folder`; null: `control` in `training.output_dir`."""
    key_file: Place | None = Field(default=None, min_length=1)
    """File with the keys that sign messages, `id secret` a line, the first one signs; all of them are accepted."""
    secret: str | None = Field(default=None, min_length=1, repr=False)
    """The same as text, instead of a file; write `${ESPER_CONTROL_KEY}` rather than the keys themselves."""
    timeout: float = Field(default=2.0, gt=0, le=3600)
    """Seconds a run waits for a decision, at most, before its local default decides."""
    patience: int = Field(default=2, ge=1)
    """Questions in a row without an answer after which the controller is asked less and less often."""
    longest_rest: int = Field(default=16, ge=1)
    """Evaluations without a question, at most, while the controller does not answer."""
    measure: Literal["local", "remote"] = "local"
    """Who says what is measured before a decision: the local default, or the controller, which is asked twice then."""
    clock_tolerance: float | None = Field(default=None, gt=0)
    """Seconds the controller's clock may be off; null: clocks are not compared, nonces show how old a message is."""
    policy: str | None = Field(default=None, pattern=r"^[\w.]+:[\w.]+$")
    """What `esper tamiyo` decides by: `package.module:factory`, a callable that returns a policy; null: the built-in
    policy with the settings of `components.tamiyo.config`."""

    @model_validator(mode="after")
    def _have_keys(self) -> Self:
        if (self.key_file is None) == (self.secret is None):
            raise ValueError("give the keys that sign messages, as `key_file` or as `secret`, one of the two")
        return self
