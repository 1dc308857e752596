"""The parts of the Slicer module: parameters, panel, scene, layout, heatmaps, and the worker process and its transport."""
