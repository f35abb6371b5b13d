"""What is queued for a client, and how it leaves."""
