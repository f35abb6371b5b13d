"""What an event loop of the gateway does itself, and what is done beside it on Windows."""
