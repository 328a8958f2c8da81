"""How fast do requests pass through? ``python -m bench.lane`` says, beside the least that a proxy in Python costs."""
