"""The panel: its parts, the parameter node they show, and the one function that brings all of it up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer

from HARM3SlicerLib import clinical
from HARM3SlicerLib.jobs import Job, outcomeOf
from HARM3SlicerLib.panel_assignment import AssignmentPart
from HARM3SlicerLib.panel_batch import BatchPart
from HARM3SlicerLib.panel_clinical import ClinicalPart
from HARM3SlicerLib.panel_heatmaps import HeatmapsPart, SlidePart, Views
from HARM3SlicerLib.panel_inputs import InputsPart, givenInputs
from HARM3SlicerLib.panel_model import CardReader, ModelPart
from HARM3SlicerLib.panel_report import ReportPart
from HARM3SlicerLib.panel_result import ResultPart
from HARM3SlicerLib.panel_run import RunPart
from HARM3SlicerLib.parameters import NODES, POINT, jsonObject
from HARM3SlicerLib.wanted import Wanted

NOT_CLINICAL = "background: #fff3cd; color: #7a4f00; border: 1px solid #e0c172; border-radius: 3px; padding: 2px;"


class Panel:
    """Everything the module shows.

    Args:
        widget: loaded from the .ui file.
        work: the logic's `Predictions`.
    """

    def __init__(self, widget: Any, work: Any) -> None:
        self.widget = widget
        self.ui = slicer.util.childWidgetVariables(widget)
        self.work = work
        self.runner = work.runner
        self.parameters: Any = None
        self.wanted = Wanted()
        self.checkpointFile: Any = None
        self.cardProblem = ""
        self.result: dict[str, Any] = {}
        self.views = Views(lambda error: self.runner.fail(outcomeOf(error, "")))
        self._cards = CardReader()
        self._asked: Any = None  # what the checkpoint wants, None for one that cannot be read
        self._hasRead = False
        self._resultText = ""
        self._guiTag: Any = None
        self._modifiedTag: Any = None
        self._updating = self._again = False
        self.ui.notClinicalLabel.setStyleSheet(NOT_CLINICAL)
        kinds: tuple[Callable[[Any, Any], Any], ...] = (
            InputsPart,
            ClinicalPart,
            AssignmentPart,
            ModelPart,
            RunPart,
            ResultPart,
            HeatmapsPart,
            SlidePart,
            ReportPart,
            BatchPart,
        )
        self.parts = {kind.__name__: kind(self.ui, self) for kind in kinds}
        work.showSteps = lambda run: self.views.showSteps(run, work.getParameterNode())
        self.runner.addListener(self.updateGUI)

    def close(self) -> None:
        """Let go of widgets, parameter node and logic."""
        self.setParameters(None)
        self.runner.removeListener(self.updateGUI)
        self.work.showSteps = lambda run: iter(())
        for part in self.parts.values():
            part.close()
        self.views.close()

    def setParameters(self, parameters: Any) -> None:
        """Show another wrapper of the parameter node, or none while a scene is closed."""
        if self.parameters is not None:
            self.parameters.disconnectGui(self._guiTag)
            self.parameters.RemoveObserver(self._modifiedTag)
        self.parameters = parameters
        if parameters is not None:
            self._guiTag = parameters.connectGui(self.ui)
            self._modifiedTag = parameters.AddObserver("ModifiedEvent", self.onModified)
            self.updateGUI()

    def onModified(self, caller: Any = None, event: Any = None) -> None:
        self.updateGUI()

    def updateGUI(self) -> None:
        """Bring the whole panel to what parameters, result and runner say."""
        if self.parameters is None:
            return
        if self._updating:  # a widget that is being set tells the parameter node, which tells us
            self._again = True
            return
        self._updating = True
        try:
            for _ in range(3):
                self._again = False
                self._read()
                for part in self.parts.values():
                    part.update()
                if not self._again:
                    break
        finally:
            self._updating = False

    def given(self) -> set[str]:
        """Names of the inputs that are chosen."""
        inputs, _ = givenInputs(self.parameters, self.wanted)
        return set(inputs)

    def lacking(self) -> str:
        """Why a prediction cannot start, in a sentence; empty when it can."""
        values = jsonObject(self.parameters.clinical)
        return self.cardProblem or self.wanted.missing(self.given()) or clinical.problem(self.wanted.variables, values)

    def predict(self) -> None:
        """Start the prediction of what is chosen; raises HARM3Error when it cannot start."""
        p = self.parameters
        inputs, fields = givenInputs(p, self.wanted)
        caseId = p.caseId or "case"
        self.work.predict(inputs, p.checkpoint or None, None, p.device, False, caseId, p.ignoreMasks, fields)

    def showRun(self) -> None:
        """Put the result into the views again, as after the user changed them or a scene was loaded."""
        run = self.work.run
        if run is not None and not self.runner.busy:
            self.runner.start(Job("show", None, lambda: self.views.showSteps(run, self.work.getParameterNode())))

    def showLoadedRun(self) -> None:
        """Take up the result a loaded scene holds, and draw its maps where the scene shows them."""
        from HARM3SlicerLib import layout

        self.views.forget()
        self.work.findRun()
        node = layout.layoutNode()
        if self.work.run is not None and node is not None and node.GetViewArrangement() == layout.LAYOUT_ID:
            self.showRun()
        self.updateGUI()

    def removeResults(self) -> None:
        """Delete what the prediction made and bring the earlier layout back."""
        from HARM3SlicerLib import layout

        if self.views.display is not None:
            self.views.display.remove()
        self.views.forget()
        self.work.removeRun()
        layout.restore()
        self.updateGUI()

    def dropNode(self, node: Any) -> None:
        """Choose a node no more that is about to be removed; otherwise its selector would silently choose another one."""
        if self.parameters is None:
            return
        for member in (*NODES.values(), POINT):
            if getattr(self.parameters, member) is node:
                setattr(self.parameters, member, None)

    def _read(self) -> None:
        """Checkpoint card and result, as the parameter node names them."""
        self.checkpointFile, wanted, self.cardProblem = self._cards.read(self.parameters.checkpoint)
        if not self._hasRead or wanted is not self._asked:
            if wanted is None or self._hasRead:  # another model is worth a look; the first, when it is fine, is not
                self.ui.modelSection.collapsed = False
            self._hasRead, self._asked = True, wanted
            self.wanted = wanted or self.wanted
        text = self.parameters.result
        if text != self._resultText:
            self._resultText = text
            self.result = jsonObject(text)
