"""Types of command-line arguments. Their errors, which argparse shows behind the option, say what is allowed."""

import argparse
import math
from collections.abc import Callable


def whole(most: int | None = None, what: str = "") -> Callable[[str], int]:
    """Takes a whole number from 1, up to `most`, which is `what`, if there is one."""

    def parse(text: str) -> int:
        value = int(text) if text.isdecimal() else 0
        if value < 1 or (most is not None and value > most):
            allowed = "of at least 1" if most is None else f"from 1 to {most}, {what}"
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number {allowed}")
        return value

    return parse


def seconds(text: str) -> float:
    """Takes a time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, a number above 0")
    return value
