"""Faults by a seeded schedule against a booted cluster, and the verdict on what they cost: `make chaos`."""
