"""harm3 demo, predict and batch: cases to probabilities, heatmaps and reports."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from HARM3Logic.case import MASKS, MRI, Case
from HARM3Logic.errors import BadOption

DEMO_SEED = 2024
BASIC = (*MRI, "slide", "ct", "clinical", *MASKS)
POINT = "--tumour-point"
SLIDE_ENCODER = (
    "where --slide is a file of features (.h5) that does not say which weights made it, as CLAM's and TRIDENT's: the tile encoder it is "
    "of; you vouch for it and for all else the file leaves unsaid"
)


def add(commands: Any) -> None:
    """Add the commands to argparse's subparsers."""
    demo = commands.add_parser("demo", help="make one synthetic case and predict it")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder of case and results (default: demo)")
    demo.add_argument("--no-viewer", action="store_true", help="do not write slide.html, the slide to walk about in")
    _add_model(demo)
    demo.set_defaults(run=_demo)

    predict = commands.add_parser("predict", help="predict one case", description="Give CASE.json, or the files one by one.")
    predict.add_argument("case", nargs="?", type=Path, metavar="CASE.json", help="the case")
    for name in BASIC:
        predict.add_argument(f"--{name.replace('_', '-')}", type=Path, nargs="+" if name == "slide" else None, metavar="FILE")
    predict.add_argument(POINT, metavar="X,Y,Z", help="a point in the tumour on the CT where no mask is given (mm, LPS)")
    predict.add_argument("--mpp", type=float, help="µm per pixel of the slide when its file does not say")
    predict.add_argument("--slide-encoder", metavar="NAME", help=SLIDE_ENCODER)
    predict.add_argument("--case-id", help="name of a case given by its files (default: case)")
    predict.add_argument("--out", type=Path, required=True, help="folder of the results")
    predict.add_argument("--no-viewer", action="store_true", help="do not write slide.html, the slide to walk about in")
    _add_model(predict)
    predict.set_defaults(run=_predict)

    batch = commands.add_parser("batch", help="predict every case of a cohort; a stopped run goes on")
    batch.add_argument("cohort", type=Path, metavar="COHORT.csv")
    batch.add_argument("--out", type=Path, required=True, help="folder of predictions.csv and cases/")
    batch.add_argument("--workers", type=int, help="processes (default: one per core, one on a GPU)")
    batch.add_argument("--viewer", action="store_true", help="write slide.html, the slide to walk about in, for finished cases too")
    _add_model(batch)
    batch.set_defaults(run=_batch)


def joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with the point's option and value as one: argparse takes a value such as -12,4,80 for an option."""
    found: list[str] = []
    for argument in arguments:
        if found and found[-1] == POINT:
            found[-1] += f"={argument}"
        else:
            found.append(argument)
    return found


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="default: the demo checkpoint, trained on synthetic phantoms")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default: auto)")
    parser.add_argument("--ignore-masks", action="store_true", help="do not use tumour masks even where they are given")


def _demo(options: argparse.Namespace) -> int:
    from HARM3Logic.phantom import NOTICE, write_phantoms
    from HARM3Logic.predict import writable

    out = writable(options.out)
    write_phantoms(out / "phantom", cases=1, seed=DEMO_SEED, workers=0)
    made = Case.read(out / "phantom" / f"PH-{DEMO_SEED}-0000" / "case.json")
    case = Case(made.case_id, made.inputs, made.patient_id, made.centre, made.label)
    case.write(out / "case.json")
    print(f"{NOTICE} {case.case_id} made in {out / 'phantom'}.")
    return _predict_and_tell(case, options)


def _predict(options: argparse.Namespace) -> int:
    return _predict_and_tell(_case(options), options)


def _case(options: argparse.Namespace) -> Case:
    given = {name: getattr(options, name) for name in BASIC if getattr(options, name) is not None}
    if (options.case is None) == (not given):
        raise BadOption(
            "predict takes either a CASE.json or the files of one case, and got " + ("both." if given else "neither."), "Give one."
        )
    if options.case is not None:
        if any(value is not None for value in (options.mpp, options.slide_encoder, options.case_id, options.tumour_point)):
            what = f"--mpp, --slide-encoder, --case-id or {POINT}"
            raise BadOption(f"{what} is given beside a CASE.json, which says it itself.", "Write it into the file.")
        return Case.read(options.case)
    inputs = {name: tuple(paths) if isinstance(paths, list) else (paths,) for name, paths in given.items()}
    return Case(
        options.case_id or "case", inputs, slide_mpp=options.mpp, slide_encoder=options.slide_encoder or "",
        tumour_point_mm=_point(options.tumour_point),
    )  # fmt: skip


def _point(text: str | None) -> tuple[float, float, float] | None:
    try:
        x, y, z = (float(part) for part in text.split(",")) if text is not None else (math.nan, 0.0, 0.0)
    except ValueError as error:
        raise BadOption(f"{POINT} is {text!r}; three numbers x,y,z in mm (LPS) are wanted.", "Correct it.") from error
    return None if text is None else (x, y, z)


def _predict_and_tell(case: Case, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from HARM3Logic import bag, viewer
    from HARM3Logic.predict import Predictor, keeping_mask, writable

    out = writable(options.out)
    viewing = not options.no_viewer and viewer.installed()
    with keeping_mask(out), tqdm(total=1.0, desc="loading", bar_format="{desc:<24} {bar} {elapsed}", leave=False, disable=None) as bar:

        def show(event: str, values: dict[str, Any]) -> None:
            bar.set_description(str(values.get("name", values.get("stage", ""))))
            if event == "progress":
                bar.n = values["value"]
            bar.refresh()

        predictor = Predictor(options.checkpoint, options.device, encoding=bag.encodes(case))
        prediction = predictor(case, ignore_masks=options.ignore_masks, on_event=show)
        prediction.write(out, viewer.write_viewer if viewing else None)
    if prediction.slide is not None and not (viewing or options.no_viewer):
        print("harm3: no slide.html: the viewer's library OpenSeadragon is not installed (make viewer).", file=sys.stderr)
    low, high = prediction.values["interval"]
    outcome = "pCR" if any(name in MRI for name in prediction.values["inputs"]) else "response"  # as in the report
    for warning in prediction.values["warnings"]:
        print(f"warning: {warning['message']}", file=sys.stderr)
    print(f"{prediction.case_id}: probability of {outcome} {prediction.probability:.0%} (95 % interval {low:.0%} to {high:.0%})")
    print(f"Decision: {prediction.decision}")
    if prediction.values["model"]["synthetic"]:
        print("The model was trained on synthetic phantoms: for trying out, not for patients.")
    print(f"Results: {out}")
    print(f"Report:  {out / 'report.html'}")
    return 0


def _batch(options: argparse.Namespace) -> int:
    from HARM3Logic.cohort import read_cohort
    from HARM3Logic.predict_cohort import predict_cohort

    def listen(event: str, values: dict[str, Any]) -> None:
        if event == "warning":
            print(f"warning: {values['message']}", file=sys.stderr)

    cases = read_cohort(options.cohort)
    failures = predict_cohort(
        cases, options.out, options.checkpoint, device=options.device, ignore_masks=options.ignore_masks, workers=options.workers,
        viewer=options.viewer, on_event=listen,
    )  # fmt: skip
    print(f"{len(cases) - len(failures)} of {len(cases)} cases predicted: {options.out / 'predictions.csv'}")
    for failure in failures:
        print(f"harm3: {failure}", file=sys.stderr)
    return 2 if failures else 0
