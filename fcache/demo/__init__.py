"""A video set that renders itself, with known truth, and the demo that runs on it."""
