"""Floor 5: models inside Flax and Equinox, and kernels that are written in Flax."""

from esper.interop.blueprints import flax_blueprint
from esper.interop.linen_model import LinenModel, to_linen
from esper.interop.nnx_model import NnxModel, Seeds, to_nnx
from esper.interop.trainable import trainable

__all__ = ["LinenModel", "NnxModel", "Seeds", "flax_blueprint", "to_linen", "to_nnx", "trainable"]
