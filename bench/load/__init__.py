"""How much load does an OpenAI-compatible endpoint hold? ``penstock bench run URL`` asks it.

A *workload* (`bench.load.workload`) says what is asked when; the *client* (`bench.load.client`) asks it and notes when
each token came; *records* (`bench.load.records`) are what it notes, one a request; a *summary* (`bench.load.summary`)
is made of records alone, and *reports* (`bench.load.report`) of both. So a simulator that writes records has the same
figures and plots as a real run.
"""
