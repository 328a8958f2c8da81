"""How much may a key use up? Rates, their counting in one process, on one host and across hosts, and the headers."""
