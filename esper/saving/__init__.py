"""Floor 5: models as files. A saved model runs, trains and grows where there is no torch."""

from esper.saving.read import load
from esper.saving.write import save

__all__ = ["load", "save"]
