"""Measured winners: which variant was the fastest for a shape, read when a call is planned (docs/tuning.md).

The tables that ship lie here as ``<arch>.json``. A table may decide how fast a result comes, and never a bit of it.
"""
