"""How do requests pass through to an upstream, and its bytes back, without a detour through ASGI? The fast lane."""
