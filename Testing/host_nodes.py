"""What several tests of the stand-in host put into its scene and panels."""

from typing import Any

import numpy as np
import slicer


def volume(name: str) -> Any:
    return slicer.util.addVolumeFromArray(np.zeros((2, 3, 4), np.float32), name=name)


def selector(none: bool = True) -> Any:
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.noneEnabled = none
    combo.setMRMLScene(slicer.mrmlScene)
    return combo
