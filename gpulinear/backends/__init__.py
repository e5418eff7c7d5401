"""Who runs a call: the NumPy reference, a GPU through CuPy, or the PTX emulator."""
