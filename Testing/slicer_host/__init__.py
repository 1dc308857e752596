"""A stand-in for 3D Slicer's window: real MRML from slicer-core, and `qt`, `ctk`, `slicer.app` with PythonQt's manners, off screen.

    @pytest.fixture
    def host():
        host = slicer_host.install()            # main_window=False: layoutManager() is None, as with --no-main-window
        yield host                              # testing=False: dialogs are asked for (and answered, see below)
        host.close()                            # what Slicer does when it exits; everything is as before

    module, widget, logic = host.load_module(Path("HARM3Slicer/HARM3Slicer.py"))   # imported, startupCompleted(), setup() ran
    host.enter("HARM3Slicer")                   # the user opens the panel; host.enter("") leaves it
    widget.ui.predictButton.click()
    host.wait(lambda: not logic.busy, seconds=5)
    host.process_events(50)                     # ms of event loop
    assert host.slot_errors == []               # what slots raised; it is also printed, as in Slicer
    assert host.qt_messages == []               # what Qt complained about
    assert host.dialogs == []                   # dialogs asked for: (what, text); they never wait
    host.answer("QFileDialog.getOpenFileName", "/data/a.csv")  # what the user will say; unanswered dialogs are closed
    host.grab(widget.parent, Path("panel.png"), width=420)
    host.grab_view("preT1", Path("view.png"))   # needs install(render=True)

It is strict where Slicer is: an unknown attribute, property, signal or `.ui` name is an error (an unknown signal gives False), and
`label.text()` is "'str' object is not callable".
"""

import ctypes
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
if sys.version_info < (3, 12):  # None is counted there, and PySide6 6.12 hands it out uncounted: Python would end after some thousand calls
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40

import slicer
import slicer.util
from PySide6.QtCore import QCoreApplication, QEvent, QEventLoop, QTimer, QtMsgType, qInstallMessageHandler

from . import ctk_widgets, modules, mrml_widgets, parameters, qt_module, scripted_module, services, validators
from .application import qSlicerApplication
from .pythonqt import proxy_class, wrap
from .signals import forget, slot_errors
from .ui_loader import QUiLoader

_MISSING = object()
qt_messages: list[str] = []  # what Qt itself complained about


def _message(kind: QtMsgType, context: Any, text: str) -> None:
    if "propagateSizeHints" not in text:  # the off-screen platform says so of every window
        qt_messages.append(text)
        print(f"Qt: {text}", file=sys.stderr)


class Loaded(NamedTuple):
    """A module the host loaded: the Python module, its widget, its logic (None when the widget has none)."""

    module: ModuleType
    widget: Any
    logic: Any


class Host:
    """What a test holds; made by `install`."""

    def __init__(self, main_window: bool, testing: bool, render: bool) -> None:
        self._before: dict[str, Any] = {}
        self._started = False
        self._loaded: list[str] = []
        self._path = list(sys.path)
        self.slot_errors, self.dialogs, self.qt_messages = slot_errors, qt_module.dialogs, qt_messages
        self.opened_urls, self.pip_calls = qt_module.opened_urls, services.pip_calls
        for record in (slot_errors, qt_module.dialogs, qt_module.answers, qt_module.opened_urls, services.pip_calls, qt_messages):
            record.clear()
        services.pip_refuses = services.pip_fails = False
        self._modules_before = {name: sys.modules.get(name, _MISSING) for name in ("qt", "ctk", "SampleData")}
        self._put(modules=SimpleNamespace(sampleDataSources={}), selfTests={}, mrmlScene=None)
        qInstallMessageHandler(_message)
        raw = qSlicerApplication.instance() or qSlicerApplication()
        if not isinstance(raw, qSlicerApplication):
            raise RuntimeError("another QApplication was made before the host's")
        self._raw = raw
        self._put(app=wrap(raw))
        self._provide_modules()
        raw._begin(main_window, testing, render)
        self.scene = slicer.mrmlScene

    def _put(self, **names: Any) -> None:
        for name, value in names.items():
            self._before.setdefault(name, getattr(slicer, name, _MISSING))
            setattr(slicer, name, value)

    def _provide_modules(self) -> None:
        widgets = (*mrml_widgets.WIDGETS, modules.qSlicerScriptedLoadableModule, modules.qSlicerScriptedLoadableModuleWidget)
        self._put(**{cls.__name__: proxy_class(cls) for cls in widgets})
        QUiLoader.classes = {cls.__name__: cls for cls in (*ctk_widgets.WIDGETS, *widgets)}
        sys.modules["qt"] = qt_module.QtModule("qt")
        ctk = ModuleType("ctk")
        for cls in ctk_widgets.WIDGETS:
            setattr(ctk, cls.__name__, proxy_class(cls))
        ctk.ctkWidgetsUtils = ctk_widgets.ctkWidgetsUtils
        sys.modules["ctk"] = ctk
        sys.modules["SampleData"] = services.sample_data_module()
        wrapper = ModuleType("slicer.parameterNodeWrapper")
        for source in (validators, parameters):
            names = [n for n in vars(source) if n[0].isupper() or n in ("parameterNodeWrapper", "isParameterNodeWrapper")]
            vars(wrapper).update({n: getattr(source, n) for n in names})
        provided = {
            "ScriptedLoadableModule": scripted_module,
            "parameterNodeWrapper": wrapper,
            "packaging": services.packaging_module(),
            "i18n": services.i18n_module(),
        }
        for name, module in provided.items():
            self._modules_before[f"slicer.{name}"] = sys.modules.get(f"slicer.{name}", _MISSING)
            sys.modules[f"slicer.{name}"] = module
        self._put(**provided)

    def start(self) -> None:
        """Slicer has started: `startupCompleted()` comes once."""
        if not self._started:
            self._started = True
            self._raw.startupCompleted.emit()

    def load_module(self, path: Path | str) -> Loaded:
        """Load a scripted module and build its panel, without entering it."""
        path = Path(path).resolve()
        self._loaded.append(path.stem)
        own = {path.stem, f"{path.stem}Lib"}  # tests may hold parts that they imported before
        self._modules_before |= {name: module for name, module in sys.modules.items() if name.split(".")[0] in own}
        python = modules.import_scripted(path)
        raw = modules.qSlicerScriptedLoadableModule(path)
        module = wrap(raw)
        self._raw._manager._modules[path.stem] = raw
        setattr(slicer.modules, path.stem.lower(), module)
        instance = getattr(python, path.stem)(module)
        setattr(slicer.modules, f"{path.stem}Instance", instance)
        if hasattr(instance, "setup"):
            instance.setup()
        self.start()
        widget = module.widgetRepresentation().self()
        return Loaded(python, widget, getattr(widget, "logic", None))

    def enter(self, name: str) -> None:
        """The user opens a module's panel; "" leaves the one that is open."""
        self._raw._manager._enter(name)

    def process_events(self, milliseconds: int = 0) -> None:
        """Let the event loop run; deferred deletions happen too."""
        if milliseconds:
            loop = QEventLoop()
            QTimer.singleShot(milliseconds, loop.quit)
            loop.exec()
        QCoreApplication.processEvents()
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)

    def wait(self, condition: Callable[[], bool], seconds: float = 5) -> None:
        """Run the event loop until a condition holds; AssertionError when it does not in time."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s"
            self.process_events(5)

    def answer(self, what: str, *values: Any) -> None:
        """Queue what the user will say to a dialog (`QFileDialog.getOpenFileName`, `QMessageBox.question`, `QDialog` ...)."""
        qt_module.answers.setdefault(what, deque()).extend(values)

    def refuse_packages(self, refuse: bool = True) -> None:
        """The user says no to the next installations."""
        services.pip_refuses = refuse

    def fail_packages(self, fail: bool = True) -> None:
        """pip will end with an error."""
        services.pip_fails = fail

    def press_sample(self, name: str) -> Any:
        """Press a sample's button in the module Sample Data."""
        return services.press_sample_button(name)

    def grab(self, widget: Any, path: Path | str, width: int | None = None) -> None:
        """Draw a widget into a PNG; with `width` (px) at the height its layout asks for."""
        raw = widget._raw
        raw.show()
        if width is not None:
            raw.resize(width, raw.height())
            for _ in range(3):  # word-wrapped labels settle their height in turns
                self.process_events()
                wanted = (
                    raw.layout().totalHeightForWidth(width)
                    if raw.layout() and raw.layout().hasHeightForWidth()
                    else raw.sizeHint().height()
                )
                raw.resize(width, max(wanted, raw.minimumSizeHint().height()))
        self.process_events(20)
        if not raw.grab().save(str(path)):
            raise OSError(f"{path} could not be written")

    def view_image(self, tag: str) -> Any:
        """What a slice view shows: H W 3, rows from the top."""
        widget = self._raw._layout._slices[tag]
        if widget._drawn is None:
            raise RuntimeError("views are drawn only after install(render=True)")
        return widget._drawn.grab()

    def grab_view(self, tag: str, path: Path | str) -> None:
        """Draw a slice view into a PNG."""
        from PIL import Image

        Image.fromarray(self.view_image(tag)).save(path)

    def close(self) -> None:
        """End as Slicer does: the modules are unloaded, then `aboutToQuit()`; afterwards nothing of the host is left to see."""
        self.enter("")
        for name in self._loaded:
            self._raw._manager.moduleAboutToBeUnloaded.emit(name)
        self._raw.aboutToQuit.emit()
        for name in self._loaded:
            if (widget := self._raw._manager._modules[name]._widget) is not None:
                widget.deleteLater()
        forget(self._raw)
        self.process_events()
        self._raw._end()
        self.process_events()
        for name in [n for n in sys.modules if n.split(".")[0] in {*self._loaded, *(f"{x}Lib" for x in self._loaded)}]:
            del sys.modules[name]
        for name, module in self._modules_before.items():
            sys.modules.pop(name, None)
            if module is not _MISSING:
                sys.modules[name] = module
        for name, value in self._before.items():
            delattr(slicer, name) if value is _MISSING else setattr(slicer, name, value)
        sys.path[:] = self._path

    def report(self) -> str:
        """The tracebacks of all slot errors."""
        return "\n".join("".join(traceback.format_exception(e)) for e in self.slot_errors)


def install(*, main_window: bool = True, testing: bool = True, render: bool = False) -> Host:
    """Put the stand-in modules into place, with an empty scene.

    Args:
        main_window: False is Slicer's `--no-main-window`.
        testing: Slicer's `--testing`: no dialog is shown, questions are answered False.
        render: slice views can be drawn (`view_image`).
    """
    return Host(main_window, testing, render)
