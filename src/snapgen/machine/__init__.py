"""What the computer offers: memory, precision, device."""
