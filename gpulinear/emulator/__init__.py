"""The PTX emulator's arithmetic: exact IEEE operations and a bit-level tensor-core model. NumPy and stdlib only."""
