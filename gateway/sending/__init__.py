"""The queue of each client, and how it is sent."""
