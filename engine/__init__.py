"""A worker: one process, one model, one device."""
