"""Lowerings: movement."""
