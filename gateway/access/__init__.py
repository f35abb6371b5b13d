"""Who may use the gateway's port: the names by which it is reached, the pages of browsers, and this machine."""
