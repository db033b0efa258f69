"""A root that is served by another process: `Client` and `AsyncClient`, shaped like `Root`."""

from .aio import AsyncClient, AsyncCollection
from .sync import Client, Collection

__all__ = ["AsyncClient", "AsyncCollection", "Client", "Collection"]
