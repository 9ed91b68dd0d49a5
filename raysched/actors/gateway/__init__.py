"""The gateway: the HTTP API in an actor of its own."""
