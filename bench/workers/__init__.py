"""A worker without a model: a real process, the production scheduler and a real prefix cache, with made-up tokens.

`server` speaks HTTP, `live` runs the scheduler in real time, `tokens` stands in for tokenizer and model.
"""
