"""Checkpoints: state that keeps its dtypes."""
