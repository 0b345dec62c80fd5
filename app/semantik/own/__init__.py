"""Tasks of the users' own: a module here travels in the wheel, and SEMANTIK_IMPORTS has workers load it.

docs/tasks.md shows how; `similarity` is the example.
"""
