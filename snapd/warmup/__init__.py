"""Loading cold blocks: on demand first, then hottest first in the background."""

from snapd.warmup.loader import Demand, Loader
from snapd.warmup.reconcile import Registrar
from snapd.warmup.warmer import Warmer

__all__ = ["Demand", "Loader", "Registrar", "Warmer"]
