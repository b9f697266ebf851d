"""Measures the optimizers beside their peers: ``python -m benchmarks --help``. How and why: README.md in this folder.

Uses public names of torch_bnb only, so that it measures what users call. Nothing imports it but its tests.
"""
