"""8-bit optimizers for Accelerate. Not written yet."""
