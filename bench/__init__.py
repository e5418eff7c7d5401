"""Measurements: what proves something, never imported by the package."""
