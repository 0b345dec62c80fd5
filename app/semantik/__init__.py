"""Semantik cluster: documents in, searchable vectors out, on bare-metal GPU hosts."""

__version__ = "0.1.0"
