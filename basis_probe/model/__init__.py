"""What models compute, where, and how to catch it; nothing of what follows from that."""
