"""Configuration: what an esper deployment and its training job are told from outside.

| module | holds |
|---|---|
| `config` | `EsperConfig`: the whole file, loaded, substituted, overridden, validated |
| `services` | `DatabaseConfig`, `RedisConfig`, `StorageConfig`, `ComponentConfig` |
| `settings` | `TrainingSettings`, `TamiyoSettings`, `LoggingSettings`: what the main job reads |
| `control` | `RemoteSettings`: a policy in another process |
| `base` | the model they share: readable errors, no secrets in `repr` |
| `problems`, `redaction` | how an error is worded; what is kept out of sight |
| `yaml_loader`, `substitute`, `environment`, `schema` | file to data, `${VAR}`, `ESPER_...`, JSON schema |

Neither torch nor jax is imported here.
"""

from esper.configs.config import EsperConfig
from esper.configs.control import RemoteSettings
from esper.configs.services import ComponentConfig, DatabaseConfig, RedisConfig, StorageConfig
from esper.configs.settings import LoggingSettings, TamiyoSettings, TrainingSettings

__all__ = [
    "ComponentConfig",
    "DatabaseConfig",
    "EsperConfig",
    "LoggingSettings",
    "RedisConfig",
    "RemoteSettings",
    "StorageConfig",
    "TamiyoSettings",
    "TrainingSettings",
]
