"""Who may ask for what, and which model answers: what happens to a request between its key and its placement."""
