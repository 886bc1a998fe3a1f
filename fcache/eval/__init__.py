"""Metrics as the official evaluators compute them; numpy only."""
