"""What a command line gives, checked; argparse says what is wrong, with the usage and exit code 2."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def words(text: str) -> str:
    """Text that was given in UTF-8; of other bytes nobody knows what they mean.

    Raises:
        ArgumentTypeError: It was not.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!a:.80} is not UTF-8; give text of that encoding") from None
    return text


def amount(unit: str, most: int, *, zero: bool) -> Callable[[str], float]:
    """What reads a number of `unit`, at most so many; `zero`: whether none is one too.

    >>> amount("hours", 24, zero=True)("1.5")
    1.5
    """

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not (0 <= found <= most and (zero or found)):
            least = "from 0" if zero else "above 0"
            raise argparse.ArgumentTypeError(f"a number of {unit} {least} to {most}, not {text!a:.80}")
        return found

    return read
