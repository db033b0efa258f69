"""CoreNN as a client of VectorDBBench 2."""

from .client import CoreNN
from .config import CoreNNConfig, CoreNNIndexConfig

__all__ = ["CoreNN", "CoreNNConfig", "CoreNNIndexConfig"]
