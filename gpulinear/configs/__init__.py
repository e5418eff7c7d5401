"""The compile-time choices of each kernel family: one file per family, and what they share in ``base``."""
