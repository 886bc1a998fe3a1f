"""Pictures of stage outputs and of labels."""
