"""Connections of a worker that several of its parts use."""
