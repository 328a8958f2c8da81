"""Decisions, and nothing else: no I/O, no clock of its own, no torch. Time comes in as an argument."""
