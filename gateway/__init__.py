"""The HTTP edge: all that a client or an operator touches."""
