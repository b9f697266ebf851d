"""Optimizer state that travels: files that survive a crash, and the forms of other libraries."""

from torch_bnb.checkpoint.exchange import convert
from torch_bnb.checkpoint.files import load, save
from torch_bnb.checkpoint.survey import convert_nested, describe

__all__ = ["convert", "convert_nested", "describe", "load", "save"]
