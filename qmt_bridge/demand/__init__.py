"""Which topics are wanted, as the sockets of libzmq tell it."""
