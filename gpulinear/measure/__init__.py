"""Measuring on a GPU: cases, providers, the stopwatch, the judge, records. Only the command line imports it."""
