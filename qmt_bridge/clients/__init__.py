"""What the asynchronous and the synchronous client are made of."""
