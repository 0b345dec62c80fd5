"""What the bench tells the person who runs it."""


class BenchError(Exception):
    """A contender or a step of the bench cannot be run; the text says which, why, and what to do."""
