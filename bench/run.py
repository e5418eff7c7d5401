"""``python -m bench.run``: the same command as ``gpulinear bench``."""

from __future__ import annotations

import sys

from gpulinear.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    main()
