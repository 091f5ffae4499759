"""What the computer offers: its device, memory and precision."""
