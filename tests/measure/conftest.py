"""Fixtures of the measuring tests."""

from .fake_libraries import libraries

__all__ = ["libraries"]
