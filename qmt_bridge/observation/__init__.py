"""What a process has seen of itself lately: delays, rates and events, in a bounded space."""
