"""Predictions without a widget: nodes or files in, values and nodes out, through one warm worker."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import slicer

from HARM3Logic import card
from HARM3Logic.case import Case
from HARM3Logic.errors import BadOption, MissingInput
from HARM3SlicerLib import samples
from HARM3SlicerLib.batch import cohortCase
from HARM3SlicerLib.choice import FIELDS, errorOf, model, sortedInputs, temporaryFolder
from HARM3SlicerLib.clinical import readAll
from HARM3SlicerLib.jobs import Job, Runner, Steps
from HARM3SlicerLib.parameters import NODES, setIfChanged
from HARM3SlicerLib.process import Outcome, WorkerClient
from HARM3SlicerLib.steps import named
from HARM3SlicerLib.wanted import Wanted


class Predictions:
    """The work of the module.

    Args:
        getParameterNode: gives the wrapper of the parameter node.
        makeTransport: gives a worker process; None takes a child process of Slicer.
    """

    def __init__(self, getParameterNode: Callable[[], Any], makeTransport: Callable[[], Any] | None = None) -> None:
        self._settle: Callable[[], None] = lambda: None
        if makeTransport is None:
            from HARM3SlicerLib import transport

            makeTransport, self._settle = transport.QProcessTransport, transport.settle
        self.runner = Runner(WorkerClient(makeTransport))
        self.getParameterNode = getParameterNode
        self.run: Any = None  # the scene.Run whose result the parameter node holds
        self.computer: dict[str, Any] = {}  # what "Check this computer" found
        self.batchRows: list[dict[str, Any]] = []
        self.batchFailures: list[str] = []
        self.showSteps: Callable[[Any], Steps] = lambda run: iter(())  # the widget puts a run into the views
        self.checkPackages = True

    def predict(
        self,
        inputs: Mapping[str, Any],
        checkpoint: str | Path | None,
        output: str | Path | None,
        device: str,
        wait: bool,
        caseId: str,
        ignoreMasks: bool,
        fields: Mapping[str, Any],
    ) -> dict[str, Any]:
        """See `HARM3SlicerLogic.predict`."""
        self._free()
        given, fields = sortedInputs(inputs, fields)
        wanted = Wanted.fromCard(card.read_header(checkpoint or card.default()))
        if fields.get("clinical"):
            fields["clinical"] = readAll(wanted.variables, fields["clinical"])
        lacking = wanted.missing({*given, *(name for name, field in FIELDS.items() if fields.get(field))})
        if lacking:
            raise MissingInput(f"case {caseId!r} cannot be predicted. {lacking}", "Choose it, or another checkpoint.")
        self._install()
        work = temporaryFolder()
        out = work / "results" if output is None else Path(output)
        line = {"kind": "predict", "case": str(work / "case" / "case.json"), "out": str(out), **model(checkpoint, device, ignoreMasks)}
        told: list[str] = []  # by the export

        def before() -> Steps:
            from HARM3SlicerLib import scene

            Case(caseId, {})  # refuses a name that cannot be a folder, before anything is written
            for name in scene.exportSteps(given, work / "case", caseId, onWarning=told.append, **fields):
                yield f"exporting {name}"

        def finished(outcome: Outcome) -> None:
            shutil.rmtree(work / "case", ignore_errors=True)  # patient data nobody needs any more

        job = Job("predict", line, before, lambda outcome, job: self._show(outcome, job, given, told), finished)
        return self._begin(job, wait)

    def predictBatch(self, cohort: str | Path, output: str | Path, checkpoint: Any, device: str, wait: bool, ignoreMasks: bool) -> Path:
        """See `HARM3SlicerLogic.predictBatch`."""
        self._free()
        cohort, output = Path(cohort).absolute(), Path(output).absolute()
        if not cohort.is_file():
            raise BadOption(f"the cohort table {str(cohort)!r} is not there.", "Check the path.")
        self._install()
        line = {"kind": "batch", "cohort": str(cohort), "out": str(output), **model(checkpoint, device, ignoreMasks)}
        self.batchRows, self.batchFailures = [], []

        def onEvent(event: dict[str, Any]) -> None:
            if event["event"] == "case" and isinstance(event.get("row"), dict):
                self.batchRows.append(event["row"])

        def finished(outcome: Outcome) -> None:
            if outcome.ok:
                self.batchFailures = [str(failure) for failure in outcome.values.get("failures", ())]

        setIfChanged(self.getParameterNode(), "batchFolder", str(output))
        self._begin(Job("batch", line, onFinished=finished, onEvent=onEvent), wait)
        return output / "predictions.csv"

    def loadSample(self, wait: bool) -> dict[str, Any]:
        """Make the synthetic case and choose it as input; with `wait` input name to node or path."""
        self._free()
        folder = samples.sampleFolder()
        made = samples.sampleCase(folder)
        if made is not None:
            return self.loadCase(made, wait)
        self._install()
        shutil.rmtree(folder, ignore_errors=True)  # what a worker that was killed left
        after = lambda outcome, job: self._choose(Path(outcome.values["case"]), job)  # noqa: E731
        return self._begin(Job("phantom", samples.sampleJob(folder), None, after), wait)

    def loadCase(self, path: str | Path, wait: bool) -> dict[str, Any]:
        """Load a `case.json` (or its folder) and choose its files as input."""
        self._free()
        job = Job("load", None)
        job.before = lambda: self._choose(Path(path), job)
        return self._begin(job, wait)

    def openBatchCase(self, cohort: str | Path, output: str | Path, caseId: str, wait: bool) -> dict[str, Any]:
        """Load the images and the prediction of one case of a batch."""
        self._free()
        case = cohortCase(Path(cohort), caseId)
        work = temporaryFolder()
        case.write(work / "case.json")
        job = Job("open", None)

        def before() -> Steps:
            yield from self._choose(work / "case.json", job)
            yield from self._take(Path(output) / "cases" / caseId, dict(job.values), [], job)

        job.before = before
        return self._begin(job, wait)

    def checkComputer(self, wait: bool) -> dict[str, Any]:
        """What the worker finds: Python, torch, devices, memory, openslide."""
        self._free()

        def finished(outcome: Outcome) -> None:
            if outcome.ok:
                self.computer = dict(outcome.values)

        return self._begin(Job("check", {"kind": "check"}, onFinished=finished), wait)

    def useInputs(self, inputs: Mapping[str, Any], case: Case | None = None) -> None:
        """Choose nodes and paths as input; what is not named is chosen no more."""
        parameters = self.getParameterNode()
        slide = inputs.get("slide", "")
        slides = slide if isinstance(slide, (list, tuple)) else [slide]
        with slicer.util.NodeModify(parameters):
            for name, member in NODES.items():
                node = inputs.get(name)
                setIfChanged(parameters, member, node if hasattr(node, "GetID") else None)
            setIfChanged(parameters, "slide", ";".join(str(path) for path in slides))
            if case is not None:
                setIfChanged(parameters, "caseId", case.case_id)
                setIfChanged(parameters, "slideMpp", case.slide_mpp or 0.0)
                setIfChanged(parameters, "clinical", json.dumps(dict(case.clinical), ensure_ascii=False) if case.clinical else "")

    def findRun(self) -> None:
        """Take up the result of a scene that was loaded."""
        from HARM3SlicerLib import scene

        self.run = scene.findRun(slicer.mrmlScene)

    def removeRun(self) -> None:
        """Delete everything the last prediction put into the scene."""
        from HARM3SlicerLib import scene

        run, self.run = self.run, None
        if run is not None:
            scene.removeRun(run)
        setIfChanged(self.getParameterNode(), "result", "")

    def sceneClosed(self) -> None:
        """The scene is being closed: end the worker without waiting, and forget what lay in the scene."""
        self.runner.stop("Stopped, because the scene was closed." if self.runner.busy else "")
        self.run = None
        self.batchRows, self.batchFailures = [], []

    def close(self) -> None:
        """End the worker; nothing runs afterwards."""
        self.runner.close()
        self._settle()

    def _free(self) -> None:
        if self.runner.busy:
            raise BadOption("another job runs; one at a time.", "Wait for it or cancel it.")

    def _install(self) -> None:
        """Install what the worker lacks, asking the user.

        Raises:
            BadOption: it was refused or failed.
        """
        if not self.checkPackages:
            return
        from HARM3SlicerLib import install

        if install.ready():
            return
        with self.runner.client.installing("installing Python packages"):
            outcome = install.install(parent=slicer.util.mainWindow())
        if not outcome.ok:
            self.runner.client.log += outcome.details.splitlines()  # "Copy details" has the log
            logging.info("HARM3Slicer: %s", outcome.details)
            raise BadOption(outcome.message, outcome.advice)

    def _begin(self, job: Job, wait: bool) -> dict[str, Any]:
        self.runner.start(job)
        if not wait:
            return {}
        try:
            while job.outcome is None:
                slicer.app.processEvents()
                time.sleep(0.003)
        except KeyboardInterrupt:
            self.runner.cancel()
            while job.outcome is None:
                slicer.app.processEvents()
            raise
        if not job.outcome.ok:
            raise errorOf(job.outcome)
        return dict(job.values or job.outcome.values)

    def _choose(self, path: Path, job: Job) -> Steps:
        """Load a case and choose its files."""
        from HARM3SlicerLib import scene

        loaded = yield from named("loading the case", scene.loadCaseSteps(path))
        self.useInputs(loaded, Case.read(path / "case.json" if path.is_dir() else path))
        job.values.update(loaded)

    def _show(self, outcome: Outcome, job: Job, inputs: Mapping[str, Any], told: list[str]) -> Steps:
        """Take over what the worker has written, and what the export had to say."""
        yield from self._take(Path(outcome.values["prediction"]).parent, inputs, told, job)

    def _take(self, folder: Path, nodes: Mapping[str, Any], told: list[str], job: Job) -> Steps:
        """Put the prediction of a folder into the scene, the parameter node and the views."""
        from HARM3SlicerLib import scene

        self.run = yield from named("showing the result", scene.loadRunSteps(folder, nodes))
        warnings = [*self.run.values.get("warnings", []), *({"code": "export", "message": text} for text in told)]
        values = {**self.run.values, "warnings": warnings, "folder": str(folder)}
        setIfChanged(self.getParameterNode(), "result", json.dumps(values, ensure_ascii=False))
        job.values.update(values)
        yield from self.showSteps(self.run)
