"""Where the state spaces lie in the generic address space: the emulator's own choice of windows."""

from __future__ import annotations

LOCAL_BASE = 0x100000000000
PARAM_BASE = 0x200000000000
SHARED_BASE = 0x300000000000
GLOBAL_BASE = 0x7F0000000000
