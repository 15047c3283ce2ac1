"""The door to the outside: WebSocket connections and a few HTTP documents on one port. Floor 12."""
