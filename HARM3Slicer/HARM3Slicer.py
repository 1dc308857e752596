"""HARM3Slicer: probability of response to therapy from MRI and a slide, with the heatmaps behind it. Not for clinical use."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

HELP = """
<p>Load MRI volumes from before and after therapy and the slide of the biopsy, press <b>Predict</b>, and read the probability of a
complete response, what each input changed, and where in the images the model looked.</p>
<p><b>Research software. Not for clinical use.</b> The model that comes along was trained on synthetic phantoms.</p>
<p>From the Python console:</p>
<pre>logic = slicer.util.getModuleLogic("HARM3Slicer")
values = logic.predict({"t1_pre": getNode("t1 before"), "t2_post": "/path/t2.nii.gz"})
table = logic.predictBatch("cohort.csv", "results")</pre>
"""


class HARM3Slicer(ScriptedLoadableModule):
    """What Slicer shows of the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("HARM3Slicer")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Quantification")]
        self.parent.dependencies = []
        self.parent.contributors = ["HARM3Slicer contributors"]
        self.parent.helpText = _(HELP)
        self.parent.acknowledgementText = _("Methods and their publications are named in the README.")
        slicer.app.connect("startupCompleted()", onStartup)


def onStartup() -> None:
    """What must be known before the user opens the module."""
    from HARM3SlicerLib import layout

    layout.register()  # a saved scene may ask for it
    registerSampleData()


def registerSampleData() -> None:
    """Offer the sample case in the module Sample Data."""
    from HARM3SlicerLib import samples

    samples.registerSampleData(lambda: slicer.util.getModuleLogic("HARM3Slicer").loadSample())


class HARM3SlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Ties the panel to Slicer: scenes that come and go, reload, exit."""

    def __init__(self, parent: Any = None) -> None:
        self.logic: Any = None  # the base class may call setup
        self.panel: Any = None
        VTKObservationMixin.__init__(self)
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        """Build the panel; must not need a main window."""
        from HARM3SlicerLib.panel import Panel

        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/HARM3Slicer.ui"))
        self.layout.addWidget(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = HARM3SlicerLogic()
        self.panel = Panel(uiWidget, self.logic.work)
        self.ui = self.panel.ui
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        # Above the selectors' own priority: they would choose the next node in place of the removed one
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved, priority=10.0)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """The application ends or the module is reloaded: nothing may stay alive or running."""
        self.removeObservers()
        if self.panel is not None:
            self.panel.close()
        if self.logic is not None:
            self.logic.close()

    def enter(self) -> None:
        self.initializeParameterNode()
        self.panel.parts["HeatmapsPart"].enter()
        self.panel.views.enter()

    def exit(self) -> None:
        self.panel.parts["HeatmapsPart"].leave()
        self.panel.views.leave()
        self.panel.setParameters(None)

    def initializeParameterNode(self) -> None:
        """Take a fresh wrapper: one made before a scene was loaded keeps None for the nodes of that scene."""
        self.panel.setParameters(self.logic.getParameterNode())

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        self.panel.setParameters(None)
        self.panel.views.forget()

    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        self.initializeParameterNode()

    def onSceneEndImport(self, caller: Any, event: Any) -> None:
        """A scene was loaded, maybe with choices and results of ours."""
        self.initializeParameterNode()
        self.panel.showLoadedRun()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller: Any, event: Any, node: Any) -> None:
        self.panel.dropNode(node)

    def onReload(self) -> None:
        """Forget the parts too, so that changed files are read again."""
        for name in list(sys.modules):
            if name.split(".")[0] == "HARM3SlicerLib":
                del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class HARM3SlicerLogic(ScriptedLoadableModuleLogic, VTKObservationMixin):
    """Predictions from Python, with or without the panel.

    Args:
        makeTransport: gives a worker process; None takes a child process of Slicer.
    """

    def __init__(self, makeTransport: Any = None) -> None:
        from HARM3SlicerLib.logic import Predictions

        ScriptedLoadableModuleLogic.__init__(self)
        VTKObservationMixin.__init__(self)
        self.work = Predictions(self.getParameterNode, makeTransport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        slicer.app.connect("aboutToQuit()", self.close)

    def getParameterNode(self) -> Any:
        from HARM3SlicerLib.parameters import HARM3SlicerParameterNode

        return HARM3SlicerParameterNode(super().getParameterNode())

    def predict(
        self,
        inputs: Mapping[str, Any],
        checkpoint: str | Path | None = None,
        output: str | Path | None = None,
        device: str = "auto",
        wait: bool = True,
        caseId: str = "case",
        ignoreMasks: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """The values of `prediction.json`, with the key "folder"; heatmaps and table are in the scene afterwards.

        Args:
            inputs: input name (t1_pre, t2_pre, t1_post, t2_post, slide, ct, tumour_pre, ...) to a node or a path; `clinical` takes a
                dictionary, `tumour_point` a markups node.
            checkpoint: None takes the demo model that comes with the module.
            output: folder for the files; None takes a temporary one.
            device: auto, cpu, cuda, cuda:<number> or mps.
            wait: False returns an empty dictionary at once; the result appears in parameter node and scene.
            fields: further fields of the case, such as slide_mpp or patient_id.

        Raises:
            HARM3Error: the case cannot be predicted; Cancelled when the user stopped it.
            RuntimeError: a bug of ours, with its details.
        """
        return self.work.predict(inputs, checkpoint, output, device, wait, caseId, ignoreMasks, fields)

    def predictBatch(
        self,
        cohort: str | Path,
        output: str | Path,
        checkpoint: str | Path | None = None,
        device: str = "auto",
        wait: bool = True,
        ignoreMasks: bool = False,
    ) -> Path:
        """Predict every row of a cohort table and give the path of `predictions.csv`; a stopped batch goes on where it was.

        Raises:
            HARM3Error: the table, the folder or the checkpoint cannot be used; Cancelled when the user stopped it.
        """
        return self.work.predictBatch(cohort, output, checkpoint, device, wait, ignoreMasks)

    def loadSample(self, wait: bool = True) -> dict[str, Any]:
        """Make the synthetic case, load it and choose it as input; input name to node or path."""
        return self.work.loadSample(wait)

    def checkComputer(self, wait: bool = True) -> dict[str, Any]:
        """Versions, devices and memory as the worker sees them."""
        return self.work.checkComputer(wait)

    def cancel(self) -> None:
        """Stop what runs."""
        self.work.runner.cancel()

    def close(self) -> None:
        """End the worker and let go of scene and application."""
        self.removeObservers()
        slicer.app.disconnect("aboutToQuit()", self.close)
        self.work.close()

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        self.work.sceneClosed()


class HARM3SlicerTest(ScriptedLoadableModuleTest):
    """Slicer's own test button: the sample case through a fake worker, and one real prediction when torch is there."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self, **kwargs: Any) -> None:
        from HARM3SlicerLib import selftest

        self.setUp()
        selftest.fakePrediction(self, HARM3SlicerLogic)
        self.setUp()
        selftest.realPrediction(self, HARM3SlicerLogic)
        self.delayDisplay("Test passed")
