"""The market data session: subscriptions at the terminal, and whether it still delivers."""
