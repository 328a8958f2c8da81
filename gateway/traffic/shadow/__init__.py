"""What would another model have answered? Copies of requests that no client waits for, and how the answers differ."""
