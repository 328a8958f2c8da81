"""What would a fleet do with this load? ``penstock bench simulate`` asks the production scheduler, without a GPU.

Each simulated worker has a scheduler of its own (`scheduler.batch`), the very code that serves; only how long a step
takes comes from a model (`bench.simulate.machines`). What comes out are the records of a real run
(`bench.load.records`), so summaries, reports and comparisons are the same.
"""
