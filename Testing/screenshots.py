"""Draws the panel and the views of the module into HARM3Slicer/Resources/Screenshots: sample case, real prediction, stand-in host.

make screenshots
"""

import argparse
from pathlib import Path
from typing import Any

from module_host import MODULE, ROOT
from PIL import Image, ImageDraw, ImageFont
from slicer_host import install, layout_manager

OUT = ROOT / "HARM3Slicer" / "Resources" / "Screenshots"
PANEL_PX = 420
VIEW_PX = 460, 400
BAR_PX = 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    layout_manager.SIZE = VIEW_PX
    host = install(render=True)
    try:
        _module, widget, logic = host.load_module(MODULE)
        host.enter("HARM3Slicer")
        logic.loadSample()
        logic.checkComputer()
        host.process_events(50)
        widget.ui.predictButton.click()
        host.wait(lambda: (logic.work.runner.progress or 0) > 0.5 or not logic.work.runner.busy, 300)
        host.grab(widget.parent, out / "running.png", width=PANEL_PX)
        host.wait(lambda: not logic.work.runner.busy, 300)
        if logic.work.runner.failure is not None:
            raise SystemExit(f"screenshots: {logic.work.runner.failure.message}")
        settle(host, widget)
        host.grab(widget.parent, out / "panel.png", width=PANEL_PX)
        views(host, out / "views.png")
        widget.ui.outlineCheckBox.click()
        settle(host, widget)
        views(host, out / "outlines.png")
        print(*(out / name for name in ("running.png", "panel.png", "views.png", "outlines.png")), sep="\n")
    finally:
        host.close()


def settle(host: Any, widget: Any) -> None:
    """Wait until the views look as the widgets say."""
    views = widget.panel.views
    host.wait(lambda: views.display is not None and not views._timer.active, 60)
    host.process_events(200)


def views(host: Any, path: Path) -> None:
    """The four volumes and the slide as they lie in the layout, each under its coloured bar."""
    from HARM3SlicerLib import layout

    places = [(tag, *layout.LABELS[tag]) for tag in layout.TAGS.values()] + [(layout.SLIDE_TAG, "slide", "#999999")]
    width, height = VIEW_PX[0], VIEW_PX[1] + BAR_PX
    sheet = Image.new("RGB", (3 * width, 2 * height), "black")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (tag, label, color) in enumerate(places):
        x, y = (width * (i % 2), height * (i // 2)) if tag != layout.SLIDE_TAG else (2 * width, 0)
        below = BAR_PX if tag != layout.SLIDE_TAG else height // 2 + BAR_PX // 2  # the slide's view is as high as both rows
        sheet.paste(Image.fromarray(host.view_image(tag)), (x, y + below))
        draw.rectangle((x, y, x + width - 1, y + BAR_PX - 1), fill=color)
        draw.text((x + 8, y + 3), label, fill="black", font=font)
    sheet.save(path)


if __name__ == "__main__":
    main()
