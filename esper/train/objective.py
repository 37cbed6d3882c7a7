"""How a batch becomes a loss: static and hashable, so that equal objectives share compiled programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from esper.errors import ArgumentError
from esper.jax_backend.model import MorphableModel

Criterion = Callable[[Any, Any], jax.Array]
"""From a model's outputs and a batch's targets to one loss, or one for each example."""

Call = Callable[..., tuple[Any, MorphableModel]]
"""From (model, batch, train=, key=) to what `model.apply` returns."""


@dataclass(frozen=True)
class OnTargets:
    """A criterion of the last part of the batch, (inputs, ..., targets)."""

    criterion: Criterion

    def __call__(self, outputs: Any, batch: Any) -> jax.Array:
        """The loss of outputs on a batch."""
        return self.criterion(outputs, batch[-1])


def on_inputs(model: MorphableModel, batch: Any, **how: Any) -> tuple[Any, MorphableModel]:
    """The model on all but the last part of the batch, (inputs, ..., targets)."""
    return model.apply(*batch[:-1], **how)


@dataclass(frozen=True)
class Objective:
    """What training minimises and growth is judged by.

    Attributes:
        criterion: From the model's outputs and the batch to one loss, or one for each example, which are averaged.
        call: How the model is called on a batch.

    Example:
        >>> def causal(outputs, batch):
        ...     return cross_entropy(outputs[:, :-1], batch["ids"][:, 1:])
        >>> def call(model, batch, **how):
        ...     return model.apply(batch["ids"], **how)
        >>> objective = Objective(causal, call)
    """

    criterion: Callable[[Any, Any], jax.Array]
    call: Call = on_inputs

    def training(
        self, model: MorphableModel, batch: Any, key: jax.Array | None
    ) -> tuple[Float[Array, ""], MorphableModel]:
        """A training step's loss, and the model with its buffers and seeds moved on."""
        outputs, moved = self.call(model, batch, train=True, key=key)
        return _mean(self.criterion(outputs, batch)), moved

    def evaluation(self, model: MorphableModel, batch: Any) -> tuple[Float[Array, ""], Any]:
        """The loss in evaluation mode, and the outputs."""
        outputs, _ = self.call(model, batch, train=False, key=None)
        return _mean(self.criterion(outputs, batch)), outputs

    def __call__(self, model: MorphableModel, batch: Any) -> Float[Array, ""]:
        """The loss that arms of a comparison are compared by: in training mode, what is drawn is drawn alike.

        The running averages of a normalisation belong to the network as it has been running. A comparison with
        and without a kernel that used them would favour whichever arm that was, so each arm normalises by its
        own batch. For models without normalisation or dropout this is the loss in evaluation mode.
        """
        return self.training(model, batch, jax.random.key(0))[0]


def cross_entropy(logits: Float[Array, "*batch classes"], labels: Any) -> Float[Array, "*batch"]:
    """Loss of each example, from the number of its class; NaN where there is no class of that number.

    Half precision is widened to float32. An offset that all logits of an example share costs no digits.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
        raise ArgumentError(
            f"cross_entropy takes the number of a class for each example, so integers of shape "
            f"{list(logits.shape[:-1])} beside logits of {list(logits.shape)}; these are "
            f"{labels.dtype}{list(labels.shape)}"
        )
    labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < logits.shape[-1])
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    largest = lax.stop_gradient(jnp.max(x, -1, initial=-jnp.inf))
    # The label's logit is read of what is given, and shifted alone: of shifted logits XLA would keep an array.
    own = jnp.take_along_axis(x, jnp.where(known, labels, 0)[..., None], -1)[..., 0] - largest
    return jnp.where(known, jnp.log(jnp.sum(jnp.exp(x - largest[..., None]), -1)) - own, jnp.nan)


def mean_squared_error(outputs: Float[Array, "..."], targets: Float[Array, "..."]) -> Float[Array, "..."]:
    """Squared difference, element by element."""
    if outputs.shape != targets.shape:
        raise ArgumentError(
            f"mean_squared_error compares arrays of one shape; the model gives {outputs.shape} and the targets are "
            f"{targets.shape}"
        )
    return (outputs - targets) ** 2


def accuracy(logits: Float[Array, "*batch classes"], labels: Any) -> Float[Array, "*batch"]:
    """1 where the largest logit is that of the label."""
    return (logits.argmax(-1) == labels).astype(jnp.float32)


CRITERIA: Mapping[str, Criterion] = {"cross_entropy": cross_entropy, "mean_squared_error": mean_squared_error}


def objective(loss: str | Criterion | Objective) -> Objective:
    """The objective that a name, a criterion (outputs, targets) or an objective means.

    Raises:
        ArgumentError: No criterion of that name.
    """
    if isinstance(loss, Objective):
        return loss
    if isinstance(loss, str):
        if loss not in CRITERIA:
            raise ArgumentError(f"no loss {loss!r}; there are: {', '.join(CRITERIA)}; or give a function or Objective")
        loss = CRITERIA[loss]
    if not callable(loss):
        raise ArgumentError(f"a loss is a name, a function of (outputs, targets) or an Objective, not {loss!r}")
    return Objective(OnTargets(loss))


def _mean(losses: jax.Array) -> Float[Array, ""]:
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ArgumentError(f"a loss is to be a floating number; this one is {losses.dtype}{list(losses.shape)}")
    return jnp.mean(losses)
