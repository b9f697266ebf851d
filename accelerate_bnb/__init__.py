"""8-bit optimizers for Accelerate. Its plugin is not written yet: optimizers of torch_bnb go through ``prepare`` as is."""
