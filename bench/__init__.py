"""Measurements: peers side by side, kernels against their floors, load tests."""
