"""Lowerings: trees."""
