"""How fast a slide's tiles become features: python Testing/benchmarks/slides.py --slide S [--encoder E] [--mpp M] [--tiles N].

    naive      one read_region per tile, Pillow, then a float32 batch, as common scripts do
    ours       what `harm3 features` does, without the file
    encoder    the network alone, on tiles that lie in memory
    decoding   the tiles alone, with all cores

Each runs in a process of its own, in turn, several times; the best round counts. The ideal is 1 / (1 / encoder + 1 / decoding) where
both share the cores, and the smaller of the two where the network runs on a GPU. Beside the clock, processor seconds per tile are
printed: they stay the same when other programs keep the cores busy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODES = ("naive", "ours", "encoder", "decoding")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Tiles per second, processor seconds per tile, peak memory and the features of one mode."""
    import numpy as np
    import torch
    from PIL import Image

    from HARM3Logic.device import choose
    from HARM3Logic.features import slide_features
    from HARM3Logic.slide import Slide, TileSettings, TissueSettings, read_batches, tile_grid
    from HARM3Logic.tile_encoder import TileEncoder

    precision = options.precision if options.mode != "naive" else "float32"
    encoder = TileEncoder.load(options.encoder, str(choose(options.device)), precision)
    size, batch = encoder.entry.size_px, encoder.fit()
    slide = Slide.open(options.slide, options.mpp)
    grid = tile_grid(slide, TissueSettings(blur_samples=0), TileSettings(size_px=size, max_tiles=options.tiles))
    corners = grid.xy_px.tolist()

    def naive() -> np.ndarray:
        import openslide

        files = [slide.path] if slide.path.is_file() else sorted(slide.path.iterdir())  # a DICOM slide is opened by one of its files
        handle = openslide.open_slide(next((file for file in files if openslide.OpenSlide.detect_format(file)), slide.path))
        level = handle.get_best_level_for_downsample(1.01 * grid.size0_px / size)
        edge = round(grid.size0_px / handle.level_downsamples[level])
        out, held = [], []
        for k, (x, y) in enumerate(corners):
            tile = handle.read_region((x, y), level, (edge, edge)).convert("RGB")
            held.append(np.asarray(tile if edge == size else tile.resize((size, size), Image.Resampling.LANCZOS)))
            if len(held) == batch or k + 1 == len(corners):
                out.append(encoder.encode(np.stack(held), batch))
                held = []
        return np.concatenate(out)

    kept = np.concatenate([*read_batches(slide, grid, batch)]) if options.mode == "encoder" else np.empty(0)
    work: dict[str, Callable[[], Any]] = {
        "naive": naive,
        "ours": lambda: slide_features(slide, grid, encoder, batch=batch),
        "encoder": lambda: np.concatenate([*encoder.encode_each((kept[k : k + batch] for k in range(0, len(kept), batch)), batch)]),
        "decoding": lambda: [None for _ in read_batches(slide, grid, batch)],
    }
    encoder.encode(np.zeros((batch, size, size, 3), np.uint8), batch)
    rounds = []
    for _ in range(options.repeats):
        began, spent = time.perf_counter(), time.process_time()
        made = work[options.mode]()
        rounds.append((time.perf_counter() - began, time.process_time() - spent))
    if options.features is not None and options.mode in ("naive", "ours"):
        np.save(options.features, made)
    return {
        "tiles": len(corners),
        "rate": len(corners) / min(wall for wall, _ in rounds),
        "cpu": min(cpu for _, cpu in rounds) / len(corners),
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "about": f"{encoder.device} in {encoder.precision}, batch {batch}, {torch.get_num_threads()} of {os.cpu_count()} cores",
        "gpu": encoder.device.type == "cuda",
    }


def cosine(folder: Path) -> str:
    import numpy as np

    a, b = (np.load(folder / f"{mode}.npy") for mode in ("naive", "ours"))
    least = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()
    return f"features of naive and ours: {'equal bit for bit' if np.array_equal(a, b) else f'smallest cosine {least:.6f}'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--encoder", default="default")
    parser.add_argument("--mpp", type=float, help="µm per pixel where the slide does not say")
    parser.add_argument("--tiles", type=int, help="an even subset of the tiles (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--features", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(measure(options)))
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for mode in MODES:
            command = [sys.executable, __file__, *sys.argv[1:], "--mode", mode, "--features", f"{folder}/{mode}.npy"]
            found[mode] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        same = cosine(Path(folder))
    report(found, same)


def report(found: dict[str, dict[str, Any]], same: str) -> None:
    naive, ours, encoder, decoding = (found[mode] for mode in MODES)
    print(f"{ours['tiles']} tiles, {ours['about']}")
    for mode in MODES:
        print(f"{mode:<10} {found[mode]['rate']:9.1f} tiles/s {1e3 * found[mode]['cpu']:9.2f} CPU ms/tile {found[mode]['gib']:7.2f} GiB")
    c, d = encoder["rate"], decoding["rate"]
    ideal = min(c, d) if ours["gpu"] else 1 / (1 / c + 1 / d)
    print(f"{'ideal':<10} {ideal:9.1f} tiles/s {1e3 * (encoder['cpu'] + decoding['cpu']):9.2f} CPU ms/tile")
    work = (encoder["cpu"] + decoding["cpu"]) / ours["cpu"]
    print(f"ours / ideal {ours['rate'] / ideal:.2f} by the clock, {work:.2f} by processor seconds")
    print(f"ours / naive {ours['rate'] / naive['rate']:.2f} by the clock, {naive['cpu'] / ours['cpu']:.2f} by processor seconds; of it")
    reading = naive["cpu"] - encoder["cpu"]
    print(f"  reading: {1e3 * reading:.2f} CPU ms/tile naive, {1e3 * decoding['cpu']:.2f} ours (each pyramid tile decoded once)")
    print(f"  overlap and cores: {ours['rate'] * ours['cpu']:.2f} cores busy in ours, {naive['rate'] * naive['cpu']:.2f} in naive")
    print(same)


if __name__ == "__main__":
    main()
