"""Statements by name, and the migrations."""
