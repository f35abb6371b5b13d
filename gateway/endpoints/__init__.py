"""The six WebSocket endpoints: each reads requests and subscribes their topics."""
