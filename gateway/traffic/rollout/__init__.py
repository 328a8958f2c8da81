"""Is the canary worse than what it would replace? Evidence for looking at at any time, and what follows from it."""
