"""Where alerts are sent: robots, webhooks and mail, each on a thread of its own."""
