"""How does vLLM become one of our workers? It runs below a worker process of ours, and speaks the same link."""
