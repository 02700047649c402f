"""What the methods need to know of a model."""
