"""Videos, frame folders and images: list them, decode them, choose frames, fit them to a view."""
