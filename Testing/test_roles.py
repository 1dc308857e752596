"""Roles of the images in a folder: from real naming styles, dates and DICOM headers."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "HARM3Slicer"))

from HARM3SlicerLib import names, roles  # noqa: E402

from HARM3Logic.errors import BadCase  # noqa: E402

NAMES = [  # name, sequence, time, contrast, ordinal, date
    ("t1_pre", "t1", "pre", None, None, ""),
    ("T2_post", "t2", "post", None, None, ""),
    ("T1_C+", "t1", "", True, None, ""),
    ("t1ce", "t1", "", True, None, ""),
    ("T1+Gd", "t1", "", True, None, ""),
    ("T1 FS +C baseline", "t1", "pre", True, None, ""),
    ("AX T1 POST GAD", "t1", "", True, None, ""),
    ("AX T1 POST GD FS preNAC", "t1", "pre", True, None, ""),
    ("T1_pre_contrast_postNACT", "t1", "post", False, None, ""),
    ("t1w_without_contrast_baseline", "t1", "pre", False, None, ""),
    ("STIR_cor", "t2", "", None, None, ""),
    ("T2w_TSE_follow-up", "t2", "post", None, None, ""),
    ("T2_FS_followup", "t2", "post", None, None, ""),
    ("preT1", "t1", "pre", None, None, ""),
    ("postT2wFS", "t2", "post", None, None, ""),
    ("t1post", "t1", "post", None, None, ""),
    ("PREt1", "t1", "pre", None, None, ""),
    ("MRI_20190312_T1ce", "t1", "", True, None, "2019-03-12"),
    ("T2 2019-07-01", "t2", "", None, None, "2019-07-01"),
    ("T2_12.03.2019", "t2", "", None, None, "2019-03-12"),
    ("T2_25-03-2019", "t2", "", None, None, "2019-03-25"),
    ("T2_03-04-2019", "t2", "", None, None, ""),  # third of April or fourth of March
    ("T2_20190231", "t2", "", None, None, ""),  # no such day
    ("visit1_T2", "t2", "", None, 1, ""),
    ("T1_visit-2_ce", "t1", "", True, 2, ""),
    ("sub-007_ses-02_T2w", "t2", "", None, 2, ""),
    ("tp2_t1gd", "t1", "", True, 2, ""),
    ("week12 t2", "t2", "", None, 12, ""),
    ("posterior_T2", "t2", "", None, None, ""),
    ("press_T1", "t1", "", None, None, ""),
    ("T2_representation", "t2", "", None, None, ""),
    ("postage", "", "", None, None, ""),
    ("precision_t2", "t2", "", None, None, ""),
    ("T1 mit KM vor Therapie", "t1", "pre", True, None, ""),
    ("T2 nach Chemo", "t2", "post", None, None, ""),
    ("T1 nativ", "t1", "", False, None, ""),
    ("t1_mprage_postchemo", "t1", "post", None, None, ""),
    ("T2_pre-treatment", "t2", "pre", None, None, ""),
    ("T2 preop", "t2", "", None, None, ""),  # before surgery is after neoadjuvant therapy; not said
    ("T1c_restaging", "t1", "post", True, None, ""),
    ("but1er", "", "", None, None, ""),
    ("HN-017", "", "", None, None, ""),
]


@pytest.mark.parametrize(("name", "sequence", "time", "contrast", "ordinal", "date"), NAMES, ids=[row[0] for row in NAMES])
def test_what_a_name_says(name: str, sequence: str, time: str, contrast: bool | None, ordinal: int | None, date: str) -> None:
    said = names.read(name)
    assert (said.sequence, said.time, said.contrast, said.ordinal, said.date) == (sequence, time, contrast, ordinal, date)


def folder(path: Path, *files: str) -> Path:
    for name in files:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return path


def chosen(found: roles.Assignment) -> dict[str, str]:
    return {role: choice.path.relative_to(found.folder).as_posix() for role, choice in found.choices.items()}


def codes(found: roles.Assignment) -> set[str]:
    return {warning.code for warning in found.warnings}


FOLDERS = {  # files in the order t1_pre, t2_pre, t1_post, t2_post
    "plain": ("t1_pre.nrrd", "t2_pre.nrrd", "t1_post.nrrd", "t2_post.nrrd"),
    "folders": ("pre/T1ce.nii.gz", "pre/T2.nii.gz", "post/T1ce.nii.gz", "post/T2.nii.gz"),
    "contrast by post": ("baseline/T1_post.nii", "baseline/T2.nii", "follow-up/T1_post.nii", "follow-up/T2.nii"),
    "sessions": ("ses-01/s_T1w_ce.nii.gz", "ses-01/s_T2w.nii.gz", "ses-02/s_T1w_ce.nii.gz", "ses-02/s_T2w.nii.gz"),
    "sessions with post": ("ses-01/T1_post.nii.gz", "ses-01/T2.nii.gz", "ses-02/T1_post.nii.gz", "ses-02/T2.nii.gz"),
    "dates": ("20190312_T1C+.mha", "20190312_T2.mha", "20190801_T1C+.mha", "20190801_T2.mha"),
    "one side named": ("T1.nrrd", "T2.nrrd", "T1_after.nrrd", "T2_after.nrrd"),
    "Müller 患者": ("Müller 患者/preNAC T1+Gd.nrrd", "Müller 患者/preNAC STIR.nrrd", "患者 postNAC/T1+Gd.nrrd", "患者 postNAC/T2.nrrd"),
    "visits": ("T1ce_visit1.nii", "T2_visit1.nii", "T1ce_visit3.nii", "T2_visit3.nii"),
}


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS)
def test_four_volumes_find_their_roles(tmp_path: Path, files: tuple[str, ...]) -> None:
    found = roles.assign(folder(tmp_path, *files))
    assert chosen(found) == dict(zip(("t1_pre", "t2_pre", "t1_post", "t2_post"), files, strict=True))
    assert codes(found) == {"missing_role"}  # the slide
    assert all(choice.reason.endswith(".") and choice.reason[0].isupper() for choice in found.choices.values())


def test_native_and_enhanced_series_of_two_visits(tmp_path: Path) -> None:
    files = [f"{day}/{name}.nrrd" for day in ("2019-03-12", "2019-07-30") for name in ("T1_pre", "T1_post", "T2", "ADC")]
    found = roles.assign(folder(tmp_path, *files))
    assert chosen(found) == {
        "t1_pre": "2019-03-12/T1_post.nrrd", "t2_pre": "2019-03-12/T2.nrrd",
        "t1_post": "2019-07-30/T1_post.nrrd", "t2_post": "2019-07-30/T2.nrrd",
    }  # fmt: skip
    reasons = {left.name: left.reason for left in found.unassigned}
    assert reasons["2019-03-12/ADC.nrrd"] == "'adc' in its name: no input is made of it."
    assert reasons["2019-03-12/T1_pre.nrrd"] == "Could be t1_pre, but '2019-03-12/T1_post.nrrd' fits better."


def test_masks_slide_and_ct(tmp_path: Path) -> None:
    folder(tmp_path, *FOLDERS["plain"], "t1_pre_seg.nii.gz", "tumour_post.nrrd", "HE_biopsy.svs", "macro.tif", "CT_abdomen.nrrd")
    found = roles.assign(tmp_path)
    assert chosen(found) == {
        "t1_pre": "t1_pre.nrrd", "t2_pre": "t2_pre.nrrd", "t1_post": "t1_post.nrrd", "t2_post": "t2_post.nrrd",
        "slide": "HE_biopsy.svs", "tumour_pre": "t1_pre_seg.nii.gz", "tumour_post": "tumour_post.nrrd", "ct": "CT_abdomen.nrrd",
    }  # fmt: skip
    assert found.warnings == ()
    assert [left.name for left in found.unassigned] == ["macro.tif"]


def test_mask_of_a_ct(tmp_path: Path) -> None:
    assert chosen(roles.assign(folder(tmp_path / "a", "CT.nrrd", "tumour.nrrd"))) == {"ct": "CT.nrrd", "tumour_ct": "tumour.nrrd"}
    found = chosen(roles.assign(folder(tmp_path / "b", "CT.nrrd", "CT_seg.nrrd", "T2_pre.nrrd", "tumour_pre.nrrd")))
    assert found == {"t2_pre": "T2_pre.nrrd", "tumour_pre": "tumour_pre.nrrd", "ct": "CT.nrrd", "tumour_ct": "CT_seg.nrrd"}


def test_slide_of_the_biopsy_before_that_of_the_resection(tmp_path: Path) -> None:
    assert chosen(roles.assign(folder(tmp_path, "a_resection.svs", "b_biopsy_HE.ndpi", "c_Ki67.svs")))["slide"] == "b_biopsy_HE.ndpi"


def test_plain_stain_before_a_marker(tmp_path: Path) -> None:
    assert chosen(roles.assign(folder(tmp_path, "a_p16.svs", "b.svs"))) == {"slide": "b.svs"}


def test_what_speaks_of_therapy_beats_the_folder(tmp_path: Path) -> None:
    assert chosen(roles.assign(folder(tmp_path, "post/T2_prechemo.nrrd"))) == {"t2_pre": "post/T2_prechemo.nrrd"}


def test_t2_before_stir(tmp_path: Path) -> None:
    found = roles.assign(folder(tmp_path, "STIR_pre.nrrd", "T2_pre.nrrd"), wanted=())
    assert chosen(found) == {"t2_pre": "T2_pre.nrrd"} and codes(found) == set()


def test_what_belongs_to_an_mrxs_slide_is_not_looked_at(tmp_path: Path) -> None:
    found = roles.assign(folder(tmp_path, "S1.mrxs", "S1/Data0001.tif"))
    assert chosen(found) == {"slide": "S1.mrxs"} and found.unassigned == ()


def test_swapped_dates_same_date_and_other_patient(tmp_path: Path) -> None:
    swapped = roles.assign(folder(tmp_path / "a", "T1ce_pre_20200105.nrrd", "T1ce_post_20190101.nrrd"))
    assert set(chosen(swapped)) == {"t1_pre", "t1_post"} and "dates_swapped" in codes(swapped)
    same = roles.assign(folder(tmp_path / "b", "T1ce_pre_20200105.nrrd", "T1ce_post_20200105.nrrd"))
    assert "same_date" in codes(same) and "dates_swapped" not in codes(same)
    others = roles.assign(folder(tmp_path / "c", "sub-01_T1ce_pre.nrrd", "sub-02_T1ce_post.nrrd"))
    assert "different_patients" in codes(others)


def test_a_visit_of_two_days_and_one_in_between(tmp_path: Path) -> None:
    days = ("T1ce_20210110", "T2_20210112", "T1ce_20210220", "T2_20210220", "T1ce_20210401", "T2_20210401")
    found = roles.assign(folder(tmp_path, *(f"{name}.nrrd" for name in days)), wanted=())
    assert [Path(name).stem for name in chosen(found).values()] == [days[0], days[1], days[4], days[5]]
    assert codes(found) == {"more_visits"}
    assert found.unassigned[0].reason == "T1, but its date 2021-02-20 lies between the first and the last visit."


def test_two_days_of_one_visit_are_no_two_timepoints(tmp_path: Path) -> None:
    assert roles.assign(folder(tmp_path, "T1ce_20210110.nrrd", "T1ce_20210112.nrrd")).choices == {}


def test_a_draw_is_told(tmp_path: Path) -> None:
    found = roles.assign(folder(tmp_path, "T2_pre.nrrd", "T2_FS_pre.nrrd"))
    assert "ambiguous" in codes(found) and "t2_pre" in found.choices and len(found.unassigned) == 1


def test_axial_and_enhanced_win(tmp_path: Path) -> None:
    found = roles.assign(folder(tmp_path, "T2 sag pre.nrrd", "T2 ax pre.nrrd", "T1 ax pre.nrrd", "T1 ax +C pre.nrrd", "STIR pre.nrrd"))
    assert chosen(found) == {"t1_pre": "T1 ax +C pre.nrrd", "t2_pre": "T2 ax pre.nrrd"}
    assert "ambiguous" not in codes(found)


def test_only_a_native_t1_is_told(tmp_path: Path) -> None:
    assert "no_contrast" in codes(roles.assign(folder(tmp_path, "T1_native_baseline.nrrd")))


def test_without_any_timepoint_nothing_is_guessed(tmp_path: Path) -> None:
    found = roles.assign(folder(tmp_path, "T1ce.nrrd", "T2.nrrd"))
    assert found.choices == {}
    assert found.unassigned[0].reason == "T1, but nothing says whether before or after therapy."
    assert [w.code for w in found.warnings] == ["missing_role"] * 5


def test_only_wanted_roles_are_missed(tmp_path: Path) -> None:
    assert codes(roles.assign(folder(tmp_path, "CT.nrrd"), wanted=("ct",))) == set()


def test_a_case_file_is_read_as_it_is(tmp_path: Path) -> None:
    folder(tmp_path, "a.nrrd", "b.svs", "t1_pre.nrrd")
    case = {"case_id": "HN-1", "patient_id": "P1", "inputs": {"t1_post": "a.nrrd", "slide": "b.svs", "t2_pre": "gone.nrrd"}}
    (tmp_path / "case.json").write_text(json.dumps(case), encoding="utf-8")
    found = roles.assign(tmp_path, wanted=())
    assert chosen(found) == {"t1_post": "a.nrrd", "slide": "b.svs", "t2_pre": "gone.nrrd"}
    assert found.case is not None and found.case.case_id == "HN-1"
    assert [w.message for w in found.warnings] == ["case.json names a file that is not there: t2_pre (gone.nrrd)."]


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadCase, match="not a folder"):
        roles.assign(tmp_path / "nothing")
    with pytest.raises(BadCase, match="holds no image"):
        roles.assign(folder(tmp_path, "notes.txt"))
    monkeypatch.setattr("HARM3SlicerLib.series.MOST_FILES", 2)
    with pytest.raises(BadCase, match="more than 2 files"):
        roles.assign(folder(tmp_path, "a.nrrd", "b.nrrd"))


def test_steps_name_each_file_and_end_with_the_assignment(tmp_path: Path) -> None:
    steps, seen = roles.assignSteps(folder(tmp_path, *FOLDERS["plain"])), []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            assert len(end.value.choices) == 4
            break
    assert seen == sorted(FOLDERS["plain"])


def dicom(path: Path, uid: str, description: str, date: str, **tags: object) -> None:
    """Three slices of one series, headers only."""
    pydicom = pytest.importorskip("pydicom")
    path.mkdir(parents=True, exist_ok=True)
    for k in range(int(tags.pop("slices", 6))):  # type: ignore[call-overload]
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{uid}.{k + 1}"
        data.SeriesInstanceUID, data.SeriesDescription, data.StudyDate = f"1.2.3.{uid}", description, date
        data.Modality, data.PatientID = tags.get("Modality", "MR"), tags.get("PatientID", "HN-1")
        for name, value in tags.items():
            setattr(data, name, value)
        data.save_as(path / f"IM{uid}_{k:04d}", enforce_file_format=True)


def test_dicom_tree(tmp_path: Path) -> None:
    t1 = {"RepetitionTime": 600.0, "EchoTime": 11.0, "ContrastBolusAgent": "Dotarem"}
    t2 = {"RepetitionTime": 4200.0, "EchoTime": 98.0}
    for number, day in (("1", "20210110"), ("2", "20210402")):
        dicom(tmp_path / f"DCM{number}" / "0", f"{number}0", "t2 tra quick", day, slices=3, **t2)  # a scout whatever its name
        dicom(tmp_path / f"DCM{number}" / "A", f"{number}1", "localizer", day, slices=3)
        dicom(tmp_path / f"DCM{number}" / "B", f"{number}2", "tse tra hals", day, **t2)  # the tags alone tell
        dicom(tmp_path / f"DCM{number}" / "C", f"{number}3", "tse tra fs", day, **t1)
        dicom(tmp_path / f"DCM{number}" / "D", f"{number}4", "t1_tse_tra", day, RepetitionTime=600.0, EchoTime=11.0)
    found = roles.assign(tmp_path, wanted=roles.MRI)
    assert chosen(found) == {"t1_pre": "DCM1/C", "t2_pre": "DCM1/B", "t1_post": "DCM2/C", "t2_post": "DCM2/B"}
    assert found.warnings == ()
    assert found.choices["t2_pre"].reason == "T2 by TR 4200 ms and TE 98 ms, pre because its date 2021-01-10 is early."
    assert (
        found.choices["t1_post"].reason == "T1 by TR 600 ms and TE 11 ms, contrast agent Dotarem, post because its date 2021-04-02 is late."
    )
    assert len(found.choices["t1_pre"].files) == 6


def test_two_dicom_series_in_one_folder(tmp_path: Path) -> None:
    dicom(tmp_path, "1", "T1 +C baseline", "20210110")
    dicom(tmp_path, "2", "T1 +C follow-up", "20210402", PatientID="HN-2")
    found = roles.assign(tmp_path, wanted=())
    assert [f.name for f in found.choices["t1_post"].files] == [f"IM2_{k:04d}" for k in range(6)]
    assert found.choices["t1_post"].path == found.choices["t1_post"].files[0] and found.choices["t1_post"].shared
    assert codes(found) == {"shared_folder", "different_patients"}


def test_series_of_one_name_and_a_slide_in_dicom(tmp_path: Path) -> None:
    for uid in ("1", "2"):
        dicom(tmp_path / "mr", uid, "T2 baseline", "20210110")
    dicom(tmp_path / "slide", "3", "HE", "20210110", Modality="SM")
    found = roles.assign(tmp_path, wanted=("clinical",))
    assert [found.choices["t2_pre"].name, found.unassigned[0].name] == ["mr: T2 baseline", "mr: T2 baseline #2"]
    assert found.unassigned[0].shared and len(found.unassigned[0].files) == 6
    assert found.choices["slide"].path == tmp_path / "slide" / "IM3_0000" and found.choices["slide"].files == ()
    assert "missing_role" not in codes(found)


def test_dicom_without_pydicom_is_judged_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom(tmp_path / "pre" / "T1_C+", "1", "x", "20210110")
    dicom(tmp_path / "post" / "T1_C+", "2", "x", "20200110")
    for module in ("series", "roles"):
        monkeypatch.setattr(f"HARM3SlicerLib.{module}.hasPydicom", lambda: False)
    found = roles.assign(tmp_path, wanted=())
    assert chosen(found) == {"t1_pre": "pre/T1_C+", "t1_post": "post/T1_C+"}
    assert codes(found) == {"no_pydicom"}
