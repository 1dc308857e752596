"""From files to a probability of response and its heatmaps; knows nothing of Slicer."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("harm3slicer")
except PackageNotFoundError:  # installed as a Slicer extension: the folder alone, without package metadata
    __version__ = "0.1.0"
