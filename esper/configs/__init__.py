"""Configuration: what an esper deployment and its training job are told from outside.

| module | holds |
|---|---|
| `config` | `EsperConfig`: the whole file, loaded, substituted, overridden, validated |
| `services` | `DatabaseConfig`, `RedisConfig`, `StorageConfig`, `ComponentConfig` |
| `settings` | `TrainingSettings`, `TamiyoSettings`, `LoggingSettings`: what the main job reads |
| `urza` | `UrzaSettings`: the kernel library |
| `nissa`, `oona` | `NissaSettings`, `OonaSettings`: where events go, and how they travel on Redis |
| `control` | `RemoteSettings`: a policy in another process |
| `base` | the model they share: readable errors, no secrets in `repr` |
| `problems`, `redaction` | how an error is worded; what is kept out of sight |
| `yaml_loader`, `substitute`, `environment`, `schema` | file to data, `${VAR}`, `ESPER_...`, JSON schema |
| `secrets` | text that stands in files |
| `reference`, `templates` | what every field means, as tables and in files to start from |
| `changes` | what may change while a run goes on |
| `checks` | whether the folders and services that are named do |

Neither torch nor jax is imported here.
"""

from esper.configs.config import EsperConfig
from esper.configs.control import RemoteSettings
from esper.configs.nissa import NissaSettings
from esper.configs.oona import OonaSettings
from esper.configs.services import ComponentConfig, DatabaseConfig, RedisConfig, StorageConfig
from esper.configs.settings import LoggingSettings, TamiyoSettings, TrainingSettings
from esper.configs.urza import UrzaSettings

__all__ = [
    "ComponentConfig",
    "DatabaseConfig",
    "EsperConfig",
    "LoggingSettings",
    "NissaSettings",
    "OonaSettings",
    "RedisConfig",
    "RemoteSettings",
    "StorageConfig",
    "TamiyoSettings",
    "TrainingSettings",
    "UrzaSettings",
]
