"""Facts about GeoJSON for QuPath: outlines enclose exactly the mask, and tiles carry the attention of the prediction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from test_features import TINY, draw, save_tiny

from HARM3Logic import geojson
from HARM3Logic.__main__ import main
from HARM3Logic.prediction import Prediction
from HARM3Logic.slide import Slide, TissueSettings, tissue
from HARM3Logic.slide_view import SlideView, TileAttention, TileView

RANDOM = np.random.default_rng(0).random((40, 60)) < 0.55  # full of holes, islands and shared corners
RING = np.pad(np.pad(np.zeros((3, 4), bool), 2, constant_values=True), 1)
TOUCHING = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], bool)  # a hole whose two pixels share a corner
OPEN = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)  # a hole that meets the outside in a corner


def area(ring: Sequence[Sequence[float]]) -> float:
    x, y = np.array(ring, float).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def filled(rings: Sequence[Sequence[Sequence[int]]], shape: tuple[int, int]) -> np.ndarray:
    """The pixels inside an odd number of rings: each edge that runs up or down turns over all that is to its right."""
    inside = np.zeros((shape[0], shape[1] + 1), int)
    for ring in rings:
        for (x, y), (u, v) in pairwise(ring):
            assert x == u or y == v
            inside[min(y, v) : max(y, v), x:] ^= 1
    return inside[:, :-1].astype(bool)


@pytest.mark.parametrize("mask", [RANDOM, RING, TOUCHING, OPEN, np.ones((2, 3), bool)], ids=["random", "ring", "touching", "open", "full"])
def test_rings_enclose_just_the_mask(mask: np.ndarray) -> None:
    pieces = geojson.outlines(mask)
    labels, count = ndimage.label(mask)
    assert len(pieces) == count
    for rings in pieces:
        outer, *holes = rings
        assert all(ring[0] == ring[-1] and len(set(ring)) == len(ring) - 1 >= 4 for ring in rings)  # closed, and never meeting itself
        assert area(outer) > 0 and all(area(hole) < 0 for hole in holes)
        inside = filled(rings, mask.shape)
        (label,) = np.unique(labels[inside])
        assert label > 0 and np.array_equal(inside, labels == label) and sum(map(area, rings)) == inside.sum()
        assert all(not (filled([hole], mask.shape) & ~filled([outer], mask.shape)).any() for hole in holes)


def test_nothing_gives_no_piece() -> None:
    assert geojson.outlines(np.zeros((3, 4), bool)) == []


def test_the_tissue_lies_where_it_is_on_the_slide(tmp_path: Path) -> None:
    geojson.write_tissue(tmp_path / "t.geojson", RING, 16.5, (148, 160))
    data = json.loads((tmp_path / "t.geojson").read_text())
    (feature,) = data["features"]
    assert data["type"] == "FeatureCollection" and feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
    assert feature["properties"]["objectType"] == "annotation" and feature["properties"]["classification"]["name"] == "Tissue"
    outer, hole = feature["geometry"]["coordinates"]
    assert np.min(outer, 0).tolist() == [16.5, 16.5] and np.max(outer, 0).tolist() == [148, 132]  # not beyond the slide
    assert np.min(hole, 0).tolist() == [49.5, 49.5] and np.max(hole, 0).tolist() == [115.5, 99]


def test_the_command_writes_the_tissue_it_found(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny.safetensors")
    command = [
        "features",
        draw(tmp_path / "s.tif"),
        "--out",
        tmp_path,
        "--encoder",
        tmp_path / "tiny.safetensors",
        "--device",
        "cpu",
        "--geojson",
    ]
    assert main(list(map(str, command))) == 0
    data = json.loads((tmp_path / "s.geojson").read_text())
    with Slide.open(tmp_path / "s.tif") as slide:
        found = tissue(slide, TissueSettings(blur_samples=0))
        pixel = found.downsample**2
        size = (slide.width_px, slide.height_px)
    total = sum(area(ring) for feature in data["features"] for ring in feature["geometry"]["coordinates"])
    points = np.concatenate([ring for feature in data["features"] for ring in feature["geometry"]["coordinates"]])
    assert abs(total - found.mask.sum() * pixel) <= pixel and (points >= 0).all() and (points <= size).all()
    assert TINY.size_px == 32


def test_tiles_have_the_attention_of_the_prediction(tmp_path: Path) -> None:
    ranked = [{"rank": 1, "x_px": 98, "y_px": 49, "weight": 0.4}, {"rank": 2, "x_px": 0, "y_px": 0, "weight": 0.1}]
    blank = np.zeros((4, 4), np.float32)
    tile = np.zeros((8, 8, 3), np.uint8)
    views = tuple(TileView(t["rank"], t["x_px"], t["y_px"], t["weight"], tile) for t in ranked)  # type: ignore[arg-type]
    view = SlideView(np.zeros((4, 4, 3), np.uint8), blank, 0.1, views, (200, 200), 48.7)
    (tmp_path / "tiles.geojson").write_text("of an earlier run")
    by_tile = np.array([[0.25, 0, 0], [0, 0, 1]], np.float32)
    everywhere = TileAttention(np.array([[98, 49], [0, 0]]), np.array([0.4, 0.1], np.float32), 48.7, by_tile, 48.7, 0.5)
    Prediction({"case_id": "c", "tiles": ranked}, {}, {}, view, "", everywhere).write(tmp_path)
    said = json.loads((tmp_path / "prediction.json").read_text())["tiles"]
    features = json.loads((tmp_path / "tiles.geojson").read_text())["features"]
    assert [f["properties"]["measurements"] for f in features] == [{"attention": t["weight"], "rank": t["rank"]} for t in said]
    assert all(f["properties"]["objectType"] == "tile" for f in features)
    assert features[0]["geometry"]["coordinates"] == [[[98, 49], [146.7, 49], [146.7, 97.7], [98, 97.7], [98, 49]]]


def test_the_other_tiles_follow(tmp_path: Path) -> None:
    ranked = [{"rank": 1, "x_px": 98, "y_px": 49, "weight": 0.4}]
    places, weight = np.array([[0, 0], [98, 49], [7, 300]]), np.array([0.125, 0.4, 0], np.float32)  # on no common grid
    geojson.write_tiles(tmp_path / "t.geojson", ranked, 48.8, places, weight)
    features = json.loads((tmp_path / "t.geojson").read_text())["features"]
    places = {tuple(f["geometry"]["coordinates"][0][0]): f["properties"]["measurements"] for f in features}
    assert places == {(98, 49): {"attention": 0.4, "rank": 1}, (0, 0): {"attention": 0.125}, (7, 300): {"attention": 0.0}}


def checked(path: Path) -> list[list[np.ndarray]]:
    """The rings of each feature of a file that is as RFC 7946 asks: its members and types, rings closed and the outer counterclockwise."""
    said = json.loads(path.read_text())
    assert said.keys() == {"type", "features"} and said["type"] == "FeatureCollection"
    found = []
    for feature in said["features"]:
        assert feature.keys() == {"type", "geometry", "properties"} and feature["type"] == "Feature"
        assert feature["geometry"].keys() == {"type", "coordinates"} and feature["geometry"]["type"] == "Polygon"
        rings = feature["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] and len({tuple(place) for place in ring}) == len(ring) - 1 >= 4 for ring in rings)
        assert all(len(place) == 2 and all(type(v) in (int, float) for v in place) for ring in rings for place in ring)
        outer, *holes = rings
        assert area(outer) > 0 and all(area(hole) < 0 for hole in holes)
        found.append([np.array(ring, float) for ring in rings])
    return found


def test_tissue_is_geojson_and_its_pieces_cross_neither_themselves_nor_each_other(tmp_path: Path) -> None:
    geojson.write_tissue(tmp_path / "t.geojson", RANDOM, 16.37, (974, 647))  # the last pixels reach beyond the slide
    features = checked(tmp_path / "t.geojson")
    xs, ys = (np.unique(np.concatenate([ring[:, k] for rings in features for ring in rings])) for k in (0, 1))
    cells = np.outer(np.diff(ys), np.diff(xs))  # between the coordinates that occur
    covered = np.zeros(cells.shape, int)
    for rings in features:
        places = [np.column_stack([np.searchsorted(xs, ring[:, 0]), np.searchsorted(ys, ring[:, 1])]).tolist() for ring in rings]
        inside = filled(places, cells.shape)
        assert cells[inside].sum() == pytest.approx(sum(map(area, rings)))  # where a ring crosses itself, signed parts cancel
        covered += inside
    assert covered.max() == 1 and len(features) == ndimage.label(RANDOM)[1]


def test_tiles_are_geojson(tmp_path: Path) -> None:
    ranked = [{"rank": 1, "x_px": 98, "y_px": 49, "weight": 0.4}]
    geojson.write_tiles(tmp_path / "t.geojson", ranked, 48.8, np.array([[0, 0]]), np.array([0.2], np.float32))
    assert [area(outer) for (outer,) in checked(tmp_path / "t.geojson")] == pytest.approx([48.8**2] * 2)


def test_qupath_finds_what_its_importer_reads(tmp_path: Path) -> None:
    """QuPathTypeAdapters.parseObject: objectType and isLocked; measurements an object of numbers; GsonTools.PathClassTypeAdapter throws
    unless a classification has name (or names) and color, three whole numbers of a byte."""
    geojson.write_tissue(tmp_path / "a.geojson", RING, 16, (148, 160))
    geojson.write_tiles(tmp_path / "b.geojson", [{"rank": 1, "x_px": 9, "y_px": 4, "weight": 0.4}], 48.8)
    (tissue_piece,), (tile,) = (json.loads((tmp_path / name).read_text())["features"] for name in ("a.geojson", "b.geojson"))
    properties = tissue_piece["properties"]
    assert properties["objectType"] == "annotation" and properties["isLocked"] is True
    colour = properties["classification"]["color"]
    assert properties["classification"]["name"] and len(colour) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in colour)
    assert tile["properties"]["objectType"] == "tile"
    assert all(type(v) in (int, float) for v in tile["properties"]["measurements"].values()) and tile["properties"]["measurements"]
