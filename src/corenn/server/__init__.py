"""A root over HTTP: `Application` is the ASGI application, `run` serves it."""

from .app import Application
from .keys import Keys, read_keys
from .limits import LIMITS, Limits
from .service import Options

__all__ = ["LIMITS", "Application", "Keys", "Limits", "Options", "read_keys"]
