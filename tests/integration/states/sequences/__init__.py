"""Known ways in which it could go wrong, step by step: what a random search would need long to come upon.

Each is a sequence of the machine's steps, under the same rules; what it says with `must` is its own.
"""

from . import holders, planning, retrying, turns
from .opening import SEQUENCES

__all__ = ["SEQUENCES", "holders", "planning", "retrying", "turns"]
