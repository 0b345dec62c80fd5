"""The one error that a user of the lab reads."""


class LabError(Exception):
    """A sentence that says what is wrong, where, and what to do; printed as it is, exit status 1."""
