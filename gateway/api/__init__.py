"""Which endpoints are there? One file per family; each handler is called with the `Context` and one `Exchange`."""
