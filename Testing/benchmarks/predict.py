"""What a prediction costs: python Testing/benchmarks/predict.py [CASE.json] [--checkpoint M] [--device D].

Prints import time, the first and a later prediction, what share of the later one is spent outside the network (forward,
backward, samples) and the tile encoder, and peak memory. Without a case it makes a small phantom.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def import_seconds(module: str) -> float:
    return min(seconds(lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("case", nargs="?", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"import HARM3Logic.case      {import_seconds('HARM3Logic.case'):6.2f} s")
    print(f"import HARM3Logic.predict   {import_seconds('HARM3Logic.predict'):6.2f} s")

    from HARM3Logic import predict as module
    from HARM3Logic.case import Case
    from HARM3Logic.phantom import write_phantoms
    from HARM3Logic.tile_encoder import TileEncoder

    spent = {"network": 0.0, "encoder": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - began

        return wrapper

    module.Predictor._run = timed("network", module.Predictor._run)  # type: ignore[method-assign]
    TileEncoder.encode = timed("encoder", TileEncoder.encode)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        if options.case is None:
            write_phantoms(Path(folder) / "phantom", 1, 0, workers=0)
            options.case = next(Path(folder).glob("phantom/*/case.json"))
        case = Case.read(options.case)

        def once(predictor: module.Predictor) -> None:
            predictor(case).write(Path(folder) / "out")

        began = time.perf_counter()
        predictor = module.Predictor(options.checkpoint, options.device)
        once(predictor)
        cold = time.perf_counter() - began
        spent.update(network=0.0, encoder=0.0)
        warm = [seconds(lambda: once(predictor)) for _ in range(options.repeats)]
    inside = sum(spent.values()) / sum(warm)
    print(f"first prediction            {cold:6.2f} s   on {predictor.device} in {predictor.precision}, loading included")
    print(f"later prediction            {statistics.median(warm):6.2f} s   (median of {options.repeats}, {min(warm):.2f}-{max(warm):.2f})")
    for name, value in spent.items():
        print(f"  of it {name:<10}          {value / options.repeats:6.2f} s")
    print(f"  outside both              {1 - inside:6.1%}")
    print(f"peak memory                 {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:6.2f} GiB")


if __name__ == "__main__":
    main()
