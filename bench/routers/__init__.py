"""Penstock beside other routers, in front of the same simulated workers, on one part of a real trace.

``python -m bench.routers`` (`__main__`) runs it. `fleet` starts workers and routers, `sides` knows how each router is
started, `figures` makes a run's records into figures, `report` the table.
"""
