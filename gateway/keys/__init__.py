"""Who may connect: the keys in force, failed attempts, and room for sockets."""
