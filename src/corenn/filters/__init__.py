"""Filters on payloads: expressions, the index that answers them, and what they select."""

from .expression import F, Filter
from .wire import as_filter, as_filters

__all__ = ["F", "Filter", "as_filter", "as_filters"]
