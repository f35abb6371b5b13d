"""The addresses of the feeder's sockets, and what protects those of trade events."""
