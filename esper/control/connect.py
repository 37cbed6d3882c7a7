"""Remote control as the configuration has it: the run's policy, and the controller with its channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from esper.configs import EsperConfig, RemoteSettings, TamiyoSettings
from esper.control.channel import CONTROLLER, Channel
from esper.control.folder import FolderChannel
from esper.control.keys import Keys
from esper.control.messages import checked_run
from esper.control.policy import RemotePolicy
from esper.control.redis import RedisChannel
from esper.control.service import Controller
from esper.errors import ConfigError
from esper.growth.policy import Policy
from esper.growth.tamiyo import Tamiyo


@contextmanager
def policy_of(config: EsperConfig, run: str) -> Iterator[RemotePolicy | None]:
    """The policy of a run that is controlled from elsewhere; None: the configuration does not say so.

    Args:
        config: The configuration.
        run: Name of the run.

    Raises:
        ConfigError: The keys cannot be had.
    """
    tamiyo = config.tamiyo_settings()
    settings = tamiyo.remote
    if settings is None or tamiyo.policy == "none":
        yield None
        return
    keys = keys_of(settings)
    with closing(channel_of(config, settings, checked_run(run))) as channel:
        yield RemotePolicy(
            channel,
            keys,
            local=Tamiyo(tamiyo),
            run=run,
            timeout=settings.timeout,
            patience=settings.patience,
            longest_rest=settings.longest_rest,
            measure=settings.measure,
            clock_tolerance=settings.clock_tolerance,
        )


@contextmanager
def controller_of(config: EsperConfig) -> Iterator[tuple[Controller, Channel]]:
    """What `esper tamiyo` serves with.

    Args:
        config: The configuration.

    Raises:
        ConfigError: `components.tamiyo.config.remote` is missing, or the keys or the policy cannot be had.
    """
    tamiyo = config.tamiyo_settings()
    settings = tamiyo.remote
    if settings is None:
        raise ConfigError(
            "the configuration says nothing of remote control: give `components.tamiyo.config.remote`, with a "
            "`key_file` at least"
        )
    controller = Controller(_policy(settings, tamiyo), keys_of(settings))
    with closing(channel_of(config, settings, CONTROLLER)) as channel:
        yield controller, channel


def keys_of(settings: RemoteSettings) -> Keys:
    """The keys that messages are signed with.

    Raises:
        ConfigError: They cannot be read, or are none.
    """
    return Keys.parse(settings.secret) if settings.secret is not None else Keys.from_file(settings.key_file or "")


def channel_of(config: EsperConfig, settings: RemoteSettings, inbox: str) -> Channel:
    """The end of the channel with this inbox; both sides find it by the configuration alone.

    Raises:
        ConfigError: The channel is Redis, and there is no `redis` section.
    """
    if settings.channel == "folder":
        place = settings.folder or Path(config.training_settings().output_dir) / "control"
        return FolderChannel(place, inbox)
    if config.redis is None:
        raise ConfigError("`components.tamiyo.config.remote.channel` is redis: give a `redis` section too")
    oona = config.components.get("oona")
    prefix = str((oona.config if oona else {}).get("prefix", "esper"))
    return RedisChannel(config.redis, inbox, prefix=prefix, timeout=settings.timeout)


def _policy(settings: RemoteSettings, tamiyo: TamiyoSettings) -> Policy[Any]:
    if settings.policy is None:
        return Tamiyo(tamiyo)
    module, _, name = settings.policy.partition(":")
    try:
        made: Any = import_module(module)
        for part in name.split("."):
            made = getattr(made, part)
        policy: Any = made()
        if all((callable(policy), hasattr(policy, "start"))):
            policy.start()  # which it may be asked for at any time
            return policy
    except Exception as error:  # of a module that may be anybody's
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"`components.tamiyo.config.remote.policy`: {settings.policy} gives none: {said}") from error
    raise ConfigError(f"{settings.policy} gave a {type(policy).__name__}, which is no policy (esper.growth.policy)")
