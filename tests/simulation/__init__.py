"""One process in which all that may happen at once happens in an order that a seed decides."""
