"""The contract of the sockets: the shape of every frame, and the AsyncAPI document."""
