"""Operators as calls of kernels, by the subject of the kernels; see fastvq.runtime.registry."""
