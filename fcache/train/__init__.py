"""Training from the cache: loops, losses, and the linear probe."""
