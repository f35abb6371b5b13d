"""The store of the day: what the feeder has published, on disk, and the answers to questions about it."""
