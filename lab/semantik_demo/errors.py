"""The one error that a user of the demo reads."""


class DemoError(Exception):
    """A sentence that says what is wrong, where, and what to do; printed as it is, exit status 1."""
