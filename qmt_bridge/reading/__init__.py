"""What the client reads while its caller works."""
