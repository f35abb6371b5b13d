"""Alerts: what is wrong with the service, told to people by chat, webhook and mail (docs/alerts.md)."""
