"""The report: what is shown where, and what must never be in it."""

import re
from dataclasses import replace

import numpy as np
import pytest

from HARM3Logic import report
from HARM3Logic.errors import BadGeometry
from HARM3Logic.report import VolumeView
from HARM3Logic.slide_view import SlideView, TileView, overlay
from HARM3Logic.stack import key_slices, stack
from HARM3Logic.volume import Grid, Volume

POINT = np.array([20.0, -15.0, 10.0])  # left, anterior, superior of the middle
TURN = np.radians(8)
OBLIQUE = ((np.cos(TURN), -np.sin(TURN), 0), (np.sin(TURN), np.cos(TURN), 0), (0, 0, 1))
AXES = {  # columns: where x, y, z of the file run in L P S
    "plain": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "flipped": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "upside down": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "oblique": OBLIQUE,
    "sagittal": ((0, 0, 1), (1, 0, 0), (0, -1, 0)),
    "coronal": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
}


def make_grid(axes, size=(40, 44, 11), spacing=(1.5, 2.0, 5.0), centre=(0.0, 0.0, 0.0)):
    axes = np.array(axes, dtype=float)
    origin = np.array(centre) - axes * spacing @ [(n - 1) / 2 for n in size]
    return Grid(size, spacing, tuple(map(float, origin)), tuple(map(float, axes.ravel())))


def marked(axes, point=POINT, **kwargs):
    """A volume of zeros but for the voxel at a point in LPS mm."""
    grid = make_grid(axes, **kwargs)
    x, y, z = np.rint(np.linalg.inv(grid.matrix) @ [*point, 1]).astype(int)[:3]
    array = np.zeros(grid.shape, dtype=np.float32)
    array[z, y, x] = 1
    return Volume(array, grid)


def blob(grid, point=POINT, peak=1.0, width_mm=8.0):
    k, j, i = np.indices(grid.shape)
    mm = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ grid.matrix.T
    return Volume((peak * np.exp(-((mm[..., :3] - point) ** 2).sum(axis=-1) / width_mm**2)).astype(np.float32), grid)


def make_view(name, axes="plain", peak=1.0, tumour=False, **kwargs):
    grid = make_grid(AXES[axes])
    image = Volume(np.random.default_rng(0).random(grid.shape, dtype=np.float32), grid)
    heat = blob(grid, peak=peak)
    return VolumeView(name, image, heat, heat.array > 0.3 if tumour else None, **kwargs)


def make_slide():
    attention = np.zeros((40, 100), dtype=np.float32)
    attention[10:20, 30:40] = 1
    tile = TileView(1, 300, 100, 0.00042, np.full((24, 24, 3), 128, dtype=np.uint8))
    return SlideView(np.full((40, 100, 3), 200, dtype=np.uint8), attention, 0.02, (tile,), (1000, 400), 100.0)


def make_prediction(**changes):
    names = ("t1_pre", "t2_pre", "t1_post", "t2_post", "slide")
    used = {"used": True, "sha256": "ab" * 32, "grid": {"size": [40, 44, 11], "spacing_mm": [1.5, 2.0, 5.0]}}
    return {
        "case_id": "HN-017",
        "probability": 0.613,
        "interval": [0.482, 0.731],
        "decision": "responder",
        "threshold": 0.42,
        "uncertain_zone": [0.38, 0.46],
        "logit": 0.46,
        "contributions": {"t1_pre": 0.123, "slide": -0.0456, "t2_pre": -1.2e-5},
        "inputs": {name: {**used, "grid": None} if name == "slide" else used for name in names},
        "heat": {"t1_pre": {"max": 1.0, "share_in_tumour": 0.37}, "t2_post": {"max": 1e-7, "share_in_tumour": None}},
        "tiles": [],
        "registration": {"t2_pre": {"mi_before": 0.3, "mi_after": 1.2e-5, "moved_mm": 3.0, "rotated_deg": 1.0, "poor": True}},
        "warnings": [],
        "out_of_distribution": False,
        "model": {"name": "harm3_fusion", "checkpoint_sha256": "cd" * 32, "version": "0.1.0", "synthetic": False},
        "software": {"harm3slicer": "0.1.0"},
        "device": "cpu",
        "precision": "float32",
        **changes,
    }


CARD = {"model": "harm3_fusion", "inputs": ("t1_pre", "t2_pre", "t1_post", "t2_post", "slide"), "intended_use": "Research.", "training": {}}


def render(views=(), slide=None, card=CARD, **changes):
    return report.render(make_prediction(**changes), card, list(views), slide)


def words(html):
    """What a reader sees."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)))


@pytest.mark.parametrize("name", ["plain", "flipped", "upside down", "oblique"])
def test_axial_slices_show_patient_left_on_the_right_and_anterior_up(name):
    shown = stack(marked(AXES[name]))
    axes = np.array(AXES[name])
    right_mm, down_mm, _ = POINT @ (axes * np.sign(np.diag(axes)))  # along the image's own axes, turned to L, P, S
    k, row, column = np.argwhere(shown.slices)[0]
    assert (shown.plane, shown.edges, shown.pixel_mm) == ("axial", "RLAP", (2.0, 1.5))
    assert (column - 19.5) * 1.5 == pytest.approx(right_mm, abs=0.8)
    assert (row - 21.5) * 2.0 == pytest.approx(down_mm, abs=1.1)
    assert shown.place(int(k)) == "S 10 mm"


def test_sagittal_acquisition_shows_anterior_on_the_left_and_superior_up():
    shown = stack(marked(AXES["sagittal"]))  # x runs back, y down, z left
    k, row, column = np.argwhere(shown.slices)[0]
    assert (shown.plane, shown.edges, shown.pixel_mm) == ("sagittal", "APSI", (2.0, 1.5))
    assert (column - 19.5) * 1.5 == pytest.approx(-15, abs=1)
    assert (row - 21.5) * 2.0 == pytest.approx(-10, abs=1.1)
    assert shown.place(int(k)) == "L 20 mm"


def test_coronal_acquisition_shows_left_on_the_right_and_superior_up():
    shown = stack(marked(AXES["coronal"]))
    k, row, column = np.argwhere(shown.slices)[0]
    assert (shown.plane, shown.edges, shown.pixel_mm) == ("coronal", "RLSI", (2.0, 1.5))
    assert (column - 19.5) * 1.5 == pytest.approx(20, abs=1)
    assert (row - 21.5) * 2.0 == pytest.approx(-10, abs=1.1)
    assert shown.place(int(k)) == "A 15 mm"


def test_cubic_voxels_are_shown_axially_however_they_were_acquired():
    assert stack(marked(AXES["sagittal"], size=(40, 40, 44), spacing=(1.0, 1.0, 1.2))).plane == "axial"


def test_first_key_slice_goes_through_the_point_and_its_neighbours_lie_about_8_mm_off():
    heat = stack(blob(make_grid(AXES["upside down"], size=(10, 10, 41), spacing=(1.0, 1.0, 2.0))))
    first, above, below = key_slices(heat, np.array([0.0, 0.0, 14.0]))
    assert [heat.place(k) for k in (first, above, below)] == ["S 14 mm", "S 22 mm", "S 6 mm"]


@pytest.mark.parametrize(
    ("slices", "z_mm", "expected"),
    [
        (11, 25.0, (10, 8, 6)),  # the uppermost: both neighbours lie below
        (11, -25.0, (0, 4, 2)),
        (3, 0.0, (1, 2, 0)),
        (2, -2.0, (0, 1)),
        (1, 0.0, (0,)),
        (11, 400.0, (7, 9, 5)),  # outside: its own hottest, 10 mm above the middle
        (11, None, (7, 9, 5)),
    ],
)
def test_key_slices_at_the_ends_in_small_volumes_and_beyond(slices, z_mm, expected):
    heat = stack(blob(make_grid(AXES["plain"], size=(40, 40, slices)), point=np.array([0, 0, 10.0])))
    assert key_slices(heat, None if z_mm is None else np.array([0, 0, z_mm])) == expected


def test_key_slice_without_heat_is_the_middle():
    grid = make_grid(AXES["plain"])
    assert key_slices(stack(Volume(np.zeros(grid.shape, dtype=np.float32), grid)), None)[0] == 5


def test_all_volumes_are_shown_at_the_level_of_the_hottest():
    cold = make_view("t1_pre", peak=0.4)
    hot = make_view("t2_post", "flipped", peak=1.0)
    np.testing.assert_allclose(report.hottest_point([cold, hot]), POINT, atol=1.1)
    assert report.hottest_point([make_view("t1_pre", peak=0.0)]) is None


def test_a_patient_who_moved_is_shown_at_the_same_level():
    moved = np.eye(4)
    moved[2, 3] = 15.0  # a point of the common frame lies 15 mm higher in this image
    grid = make_grid(AXES["plain"])
    image = blob(grid, point=POINT + np.array([0, 0, 15]))
    still, other = make_view("t1_pre", peak=0.9), VolumeView("t1_post", image, image, None, moved)
    np.testing.assert_allclose(report.hottest_point([still, other]), POINT, atol=1.1)
    html = render([still, other])
    places = re.findall(r'<span class="place">(.*?)</span>', html)
    assert places[::3] == ["S 10 mm", "S 25 mm"]


def test_contours_lie_round_the_blob_at_their_level_in_mm():
    rows, columns = np.indices((60, 80))
    down, right = (rows + 0.5) * 0.5, (columns + 0.5) * 2.0  # mm
    heat = np.exp(-(((down - 12) ** 2 + (right - 100) ** 2) / 10**2)).astype(np.float32)
    radii = []
    for level, _ in report.LEVELS:
        path = report.outline(heat, level, (0.5, 2.0))
        assert path.count("M") == path.count("Z") == 1
        xy = np.array(re.findall(r"([-\d.]+) ([-\d.]+)", path), dtype=float)
        distance = np.hypot(xy[:, 0] - 100, xy[:, 1] - 12)
        np.testing.assert_allclose(distance, 10 * np.sqrt(-np.log(level)), atol=0.35)
        radii.append(distance.mean())
    assert radii == sorted(radii, reverse=True)


def test_a_blob_cut_by_the_edge_has_a_closed_contour_within_half_a_pixel_of_the_image():
    heat = np.zeros((20, 20), dtype=np.float32)
    heat[:5, :4] = 1
    path = report.outline(heat, 0.5, (1.0, 1.0))
    xy = np.array(re.findall(r"([-\d.]+) ([-\d.]+)", path), dtype=float)
    assert path.count("Z") == 1
    assert xy.min() == 0 and xy.max(axis=0).tolist() == [4, 5]


def test_heat_is_clear_below_a_quarter_and_denser_above():
    alpha = report._heat_table()[:, 3]
    assert not alpha[: int(0.25 * 255)].any()
    assert alpha[70] == pytest.approx(255 * report.HEAT_ALPHA * 70 / 255, abs=1)
    assert (np.diff(alpha[70:].astype(int)) >= 0).all()


def test_attention_colours_only_what_has_any():
    view = make_slide()
    view.attention[10:20, 50:60] = 0.3
    shown = overlay(view.thumbnail, view.attention).astype(int)
    plain, weak, strong = shown[0, 0], shown[15, 55], shown[15, 35]
    assert plain[0] == plain[1] == plain[2]
    assert weak[1] > weak[0] and strong[1] > strong[0]
    assert strong.sum() < weak.sum() < plain.sum()


def test_nothing_given_can_become_markup():
    evil = '<script>alert("x")</script>'
    html = render(
        [make_view("t1_pre")],
        make_slide(),
        {**CARD, "intended_use": evil, "training": {evil: evil}},
        case_id=evil,
        device=evil,
        warnings=[{"code": evil, "message": evil}],
        software={evil: evil},
        created=evil,
    )
    assert "<script" not in html and "alert(&#34;x&#34;)" in html


def test_report_is_self_contained_and_says_what_it_is():
    html = render([make_view(n, tumour=True) for n in ("t1_pre", "t2_pre", "t1_post", "t2_post")], make_slide())
    assert "http" not in html and "@import" not in html and "<link" not in html
    seen = re.sub("<!--.*?-->", "", html)
    assert set(re.findall(r'(?:href|src)="(.{15})', seen)) <= {"data:image/jpeg", "data:image/png;"}
    assert html.count("data:image/jpeg") == 4 * 3 + 1 + 1  # key slices, slide, tile
    assert html.count('class="tumour"') == 4  # the neighbours lie beyond it
    assert "Research software, not for clinical use" in html and "synthetic" not in words(html)
    assert "61 %" in html and "48\u201373 %" in html and "Predicted responder (pCR)" in html


def test_links_to_the_viewer_wake_only_where_there_is_one():
    html = render(slide=make_slide())
    awake = re.sub("<!--.*?-->", "", report.with_viewer(html))
    assert "slide.html" not in re.sub("<!--.*?-->", "", html)
    assert re.findall(r'href="(slide[^"]*)"', awake) == ["slide.html", "slide.html#tile=1"] and "viewer-->" not in awake


def test_quality_of_the_slide_is_told():
    good = {"tissue_mm2": 12.34, "pen": 0.0, "dark": 0.031, "blurred": None, "tiles": 900, "tiles_found": 1200, "poor": ["dark"]}
    html = render(quality=[good])
    assert "12 mm&sup2; 900 of 1,200 0.0 % 3.1 % not judged" in words(html)
    assert 'class="number poor">3.1' in html and html.count("poor") == render().count("poor") + 1
    assert 'id="quality"' not in render()


def test_missing_inputs_leave_quiet_panels():
    html = render([make_view("t2_pre")])
    assert html.count("not given") == 3 and html.count("data:image/jpeg") == 3
    assert "The slide" not in html
    html = render([make_view("t2_pre")], card={**CARD, "inputs": ("t2_pre", "t2_post")})
    assert html.count("not given") == 1 and html.count("not used by this model") == 2


def test_an_almost_empty_card_will_do():
    assert "HN-017" in render([make_view("t1_pre")], card={})
    training = {"cohort_size": 1400, "auc": {"value": 0.912, "low": 0.874, "high": 0.943}, "lr": 1.2e-5, "none": None}
    text = words(render(card={**CARD, "training": training}))
    assert "1,400" in text and "0.91 (95 % interval 0.87\u20130.94)" in text and "&lt; 0.01" in text


@pytest.mark.parametrize(("card", "model"), [({"data": "trained on synthetic phantoms"}, False), ({"synthetic": True}, False), ({}, True)])
def test_a_model_of_phantoms_says_so(card, model):
    changed = {"name": "m", "checkpoint_sha256": "00" * 32, "version": "1", "synthetic": model}
    assert "Model trained on synthetic phantoms" in render(card={**CARD, "training": card}, model=changed)


@pytest.mark.parametrize("strange", [True, False])
def test_a_strange_case_is_announced_before_the_answer(strange):
    html = render(out_of_distribution=strange)
    banner = html.find("This case looks unlike the data the model was trained on")
    assert (0 < banner < html.index('class="answer"')) if strange else banner == -1


@pytest.mark.parametrize(
    ("decision", "interval", "said"),
    [
        ("uncertain", [0.3, 0.6], "take this as no answer"),
        ("responder", [0.3, 0.7], "could have gone the other way"),
        ("responder", [0.5, 0.7], "on one side of the threshold"),
        ("non-responder", [0.1, 0.3], "Predicted non-responder"),
    ],
)
def test_the_decision_is_put_into_words(decision, interval, said):
    assert said in render(decision=decision, interval=interval)


def test_no_zone_is_drawn_where_there_is_none():
    assert "I do not know" in render() and "I do not know" not in render(uncertain_zone=[0.5, 0.5])


def test_no_person_place_or_path_is_printed():
    html = render(
        card={**CARD, "training": {"centre": "Ward 7", "patient_id": "P-9", "cohort": "/data/smith/cohort.csv", "by": "C:\\smith\\c.csv"}},
        patient_id="P-9",
        centre="Ward 7",
        warnings=[
            {"code": "ink", "message": "slide 'smith_john.svs' calls its pixels RGB; the slide's scale is 0.5 and the file's is 0.4."},
            {"code": "gone", "message": "t1_pre: nothing at /data/smith/a.nrrd, sorry."},
        ],
    )
    assert not re.search("smith|Ward 7|P-9|/data", html)
    assert "Slide calls its pixels RGB; the slide&#39;s scale is 0.5 and the file&#39;s is 0.4." in html
    assert "T1c pre: nothing at, sorry." in html


def test_numbers_are_for_people():
    text = words(render([make_view("t1_pre")], make_slide(), probability=1.2e-5, interval=[1e-9, 0.9999]))
    assert not re.search(r"\de-\d", text)
    assert "&lt; 1 %" in text and "&gt; 99 %" in text
    assert "strongest heat 1.00" in words(render([make_view("t1_pre")])) and "strongest heat &lt; 0.01" in words(
        render([make_view("t2_post")])
    )
    assert "+12.3" in text and "\u22124.6" in text
    assert report.points(-1.2e-5) == "0.0" and report.percent(0.0) == "0 %" and report.percent(0.00042, 1) == "< 0.1 %"


def test_tiles_are_boxed_where_they_lie_on_the_thumbnail():
    html = render(slide=make_slide())
    box = re.search(r'<rect class="tile" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', html)
    assert [float(v) for v in box.groups()] == [30.0, 10.0, 10.0]  # level 0 is ten times the thumbnail
    assert "A tile is 200" in html  # 10 thumbnail pixels of 0.02 mm
    assert re.search(r"0\.2 mm", html)  # scale bar: the longest nice length up to a fifth of 2 mm


@pytest.mark.parametrize(("tile_px", "within"), [(100.0, True), (10.0, False)])
def test_a_number_stands_within_its_tile_where_there_is_room_and_else_beside_it(tile_px, within):
    html = render(slide=replace(make_slide(), tile_px=tile_px))
    left, width = (float(v) for v in re.search(r'<rect class="tile" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', html).groups())
    number = float(re.search(r'<text x="([\d.]+)"', html)[1])
    assert (left < number < left + width / 2) if within else number > left + width


def test_bars_against_response_lie_left_of_the_middle():
    html = render(contributions={"t1_pre": 0.2, "slide": -0.1})
    (x1, w1), (x2, w2) = [map(float, bar) for bar in re.findall(r'<rect x="([\d.]+)%" y="2" width="([\d.]+)%"', html)]
    assert x1 == 50 and x2 + w2 == pytest.approx(50) and w1 == pytest.approx(2 * w2)


def test_serious_warnings_come_first():
    html = render(warnings=[{"code": "ink", "message": "pen."}, {"code": "registration", "message": "t2_post may not be aligned."}])
    assert html.index("T2 post may not be aligned.") < html.index("Pen.")
    assert '<li class="serious">T2 post' in html and "<li>Pen." in html


def test_heat_of_another_grid_is_refused():
    view = make_view("t1_pre")
    with pytest.raises(BadGeometry, match="heatmap of t1_pre"):
        VolumeView("t1_pre", view.image, blob(make_grid(AXES["plain"], size=(5, 6, 7))))
