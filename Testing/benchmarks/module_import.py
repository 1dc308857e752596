"""Prints what importing the Slicer module costs Slicer's start, in ms beyond `slicer` itself; the goal is below 50.

python Testing/benchmarks/module_import.py
"""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "HARM3Slicer"), str(ROOT)]

import slicer_host  # noqa: E402


def main() -> None:
    host = slicer_host.install(main_window=False)
    try:
        before = set(sys.modules)
        start = time.perf_counter()
        import HARM3Slicer

        spent = 1000 * (time.perf_counter() - start)
        heavy = {"torch", "SimpleITK", "openslide", "scipy", "pip"} & (set(sys.modules) - before)
        print(f"import {HARM3Slicer.__name__}: {spent:.1f} ms, heavy libraries loaded: {', '.join(sorted(heavy)) or 'none'}")
    finally:
        host.close()


if __name__ == "__main__":
    main()
