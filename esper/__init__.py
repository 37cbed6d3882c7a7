"""esper: run, train and grow PyTorch models on XLA, and get PyTorch back.

`wrap` turns a `torch.nn.Module` into an immutable JAX pytree, `germinate`, `transition`, `set_alpha` and
`cull` make it grow, `unload_kernel` and `load_kernel` move what has grown, `shard` puts it on several devices,
`unwrap` gives a `torch.nn.Module` back, `export` makes an artifact that serves with JAX alone. Importing esper
imports neither torch nor jax: each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper import interop, optim
    from esper.api import unwrap, wrap
    from esper.certify import certificate
    from esper.configs import EsperConfig
    from esper.growth.loading import load_kernel, unload_kernel
    from esper.growth.reserve import compact, reserve
    from esper.growth.verbs import cull, germinate, set_alpha, transition
    from esper.hosting import torch_module
    from esper.jax_backend.layers import KasminaLayer
    from esper.jax_backend.model import MorphableModel
    from esper.jax_backend.registry import lowers
    from esper.lifecycle import SeedLifecycleState
    from esper.saving import load, save
    from esper.serving import export
    from esper.sharding import explain_sharding, shard
    from esper.train.fit import fit

__version__ = "0.2.0"
API_VERSION = "v1"

__all__ = [
    "API_VERSION",
    "EsperConfig",
    "KasminaLayer",
    "MorphableModel",
    "SeedLifecycleState",
    "__version__",
    "certificate",
    "compact",
    "cull",
    "explain_sharding",
    "export",
    "fit",
    "germinate",
    "interop",
    "load",
    "load_kernel",
    "lowers",
    "optim",
    "reserve",
    "save",
    "set_alpha",
    "shard",
    "torch_module",
    "transition",
    "unload_kernel",
    "unwrap",
    "wrap",
]

_PLACES = {
    "EsperConfig": "esper.configs",
    "KasminaLayer": "esper.jax_backend.layers",
    "MorphableModel": "esper.jax_backend.model",
    "SeedLifecycleState": "esper.lifecycle",
    "certificate": "esper.certify",
    "compact": "esper.growth.reserve",
    "cull": "esper.growth.verbs",
    "explain_sharding": "esper.sharding",
    "export": "esper.serving",
    "fit": "esper.train.fit",
    "germinate": "esper.growth.verbs",
    "load": "esper.saving",
    "load_kernel": "esper.growth.loading",
    "lowers": "esper.jax_backend.registry",
    "reserve": "esper.growth.reserve",
    "save": "esper.saving",
    "set_alpha": "esper.growth.verbs",
    "shard": "esper.sharding",
    "torch_module": "esper.hosting",
    "transition": "esper.growth.verbs",
    "unload_kernel": "esper.growth.loading",
    "unwrap": "esper.api",
    "wrap": "esper.api",
}


def __getattr__(name: str) -> Any:
    if name in ("interop", "optim"):
        return import_module(f"esper.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'esper' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
