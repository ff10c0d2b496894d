"""Graphs of ours as models of other libraries: one module a library, imported when it is used."""
