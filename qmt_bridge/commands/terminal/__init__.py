"""What commands show on a terminal: tables, progress, a QR code. In a pipe they print the same as plain text."""
