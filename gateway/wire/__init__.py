"""What do clients and the gateway say to each other? OpenAI's wire shapes as msgspec structs, errors and SSE."""
