"""What our processes share: how they are started, stopped and watched."""
