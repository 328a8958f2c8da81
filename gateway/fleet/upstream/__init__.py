"""How are answers had from somebody else's OpenAI-compatible server? Targets, connections to them, and their state."""
