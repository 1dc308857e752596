"""What the panel says: results, cards and times as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from HARM3SlicerLib.wanted import LABELS

DECISIONS = {
    "responder": ("Response likely", "#2e7d32"),
    "non-responder": ("Response unlikely", "#a65a22"),
    "uncertain": ("I do not know", "#616161"),
}
AMBER, RED = "#b26a00", "#c62828"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def label(name: str) -> str:
    return LABELS.get(name, name)


def stage(text: str) -> str:
    """A stage of the work as the panel says it: inputs by their labels, a capital first."""
    text = " ".join(label(word) for word in text.split(" "))
    return text[:1].upper() + text[1:]


def middle(text: str, most: int = 36) -> str:
    """A text cut in its middle where it is longer: a file's name is known by its beginning and its end."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}...{text[-(most // 2 - 2) :]}"


def points(value: float) -> str:
    """A change of probability, in percentage points."""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f} points" if rounded else "0.0 points"


def decision(values: Mapping[str, Any]) -> tuple[str, str]:
    """The decision in words, and its colour."""
    return DECISIONS.get(str(values.get("decision")), (str(values.get("decision", "")), "#616161"))


def intervalLine(values: Mapping[str, Any]) -> str:
    low, high = values["interval"]
    return f"95 % interval {100 * low:.0f} to {percent(high)}"


def scaleLine(values: Mapping[str, Any]) -> str:
    """The line under the bar: both ends, and what the marks mean."""
    low, high = values["uncertain_zone"]
    unknown = f", I do not know from {100 * low:.0f} to {percent(high)}" if high > low else ""
    middle = f"threshold {percent(values['threshold'])}{unknown}"
    return (
        "<table width='100%' cellspacing='0' cellpadding='0'><tr><td>0 %</td>"
        f"<td align='center'>{middle}</td><td align='right'>100 %</td></tr></table>"
    )


def warnings(values: Mapping[str, Any]) -> str:
    """Warnings as a list in rich text; empty when there is none."""
    found = [str(warning.get("message", "")) for warning in values.get("warnings", ())]
    if values.get("model", {}).get("synthetic"):
        found.insert(0, "This model was trained on synthetic phantoms: for trying out, not for patients.")
    return "<br>".join(f"<span style='color:{AMBER}'><b>!</b></span> {escape(text[:1].upper() + text[1:])}" for text in found)


def resultInfo(values: Mapping[str, Any]) -> str:
    made = values.get("model", {})
    digest = str(made.get("checkpoint_sha256", ""))[:12]
    when = str(values.get("created", ""))[:16].replace("T", " ")
    parts = [f"Case {values.get('case_id', '')}", when, f"{made.get('name', '')} {digest}".strip(), str(values.get("device", ""))]
    return ", ".join(part for part in parts if part)


def heatShare(values: Mapping[str, Any]) -> str:
    """Where the heat lies, as far as a tumour mask says."""
    shares = {name: heat.get("share_in_tumour") for name, heat in values.get("heat", {}).items()}
    known = [f"{label(name)} {percent(share)}" for name, share in shares.items() if share is not None]
    return (
        f"Heat inside the tumour: {', '.join(known)}."
        if known
        else "Without a tumour segmentation it is not known how much heat lies in it."
    )


def card(values: Mapping[str, Any], digest: str) -> str:
    """The card of a checkpoint as rich text, with the SHA-256 of its file as soon as that is known."""
    training = values.get("training", {})
    auc = next((training[key] for key in ("test_auc", "auc", "inner_auc") if isinstance(training.get(key), Mapping)), None)
    rows = [("Model", str(values.get("model", "")))]
    rows.append(("Inputs", ", ".join(label(name) for name in values.get("inputs", ()))))
    needs = values.get("config", {}).get("needs", ())
    if needs:
        rows.append(("Wanted", ", ".join(label(name) for name in needs)))
    if training.get("cohort_size"):
        count, responders = training["cohort_size"], training.get("responders")
        text = f"{count} cases" + (f", {responders} responders" if responders is not None else "")
        rows.append(("Cohort", text + (f"; {training['data']}" if training.get("data") else "")))
    if auc:
        rows.append(("AUC", f"{auc['value']:.2f} (95 % interval {auc['low']:.2f} to {auc['high']:.2f})"))
    rows.append(("Use", str(values.get("intended_use", ""))))
    rows.append(("SHA-256", f"{digest[:24]}..." if digest else "..."))
    cells = "".join(f"<tr><td style='padding-right:8px'>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table cellspacing='0' cellpadding='1'>{cells}</table>"


def computer(values: Mapping[str, Any]) -> str:
    """What the worker found on this computer, in rich text."""
    gpus = [str(device) for device in values.get("devices", ()) if str(device).split(":")[0].split(" ")[0] in ("cuda", "mps")]
    parts = [
        f"PyTorch {values['torch']}" if values.get("torch") else "PyTorch is missing",
        ", ".join(gpus) if gpus else "no GPU",
        f"{values['cores']} cores" if values.get("cores") else "",
        f"{values['memory_gb']:.0f} GB memory" if values.get("memory_gb") else "",
        f"OpenSlide {values['openslide']}" if values.get("openslide") else "OpenSlide is missing: most slides cannot be read",
    ]
    problems = "".join(f"<br><span style='color:{RED}'>{escape(str(text))}</span>" for text in values.get("problems", ()))
    return escape(", ".join(part for part in parts if part)) + "." + problems


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"
