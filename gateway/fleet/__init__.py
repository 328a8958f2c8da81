"""How does the gateway reach its workers? The link, the worker's process, and what a served model consists of."""
