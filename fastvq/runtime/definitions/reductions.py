"""Sums and extremes along axes, and what is made of them: softmax, normalisation."""
