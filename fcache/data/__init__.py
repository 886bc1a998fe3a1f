"""Cache and labels joined: what training and evaluation read."""
