"""How does text become tokens, and tokens text? Tokenisation, chat templates, incremental decoding, stop strings."""
