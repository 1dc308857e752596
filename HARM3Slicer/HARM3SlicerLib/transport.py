"""The worker as a child process of Slicer, through `qt.QProcess`: no thread, so it does not starve in an idle Slicer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import qt
import slicer

ENVIRONMENT = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
CREATE_NO_WINDOW = 0x08000000  # Windows: taskkill shows no console
FAILED_TO_START = 0  # QProcess::ProcessError; an int, for PythonQt gives enums as ints in some builds
SWEEP_MS = 500
SETTLE_MS = 1000
_ending: list[Any] = []  # processes that were let go of: destroying a QProcess within its own signal, or while it runs, is unsafe


class QProcessTransport:
    """One worker process.

    Args:
        root: folder that holds the package HARM3Logic; None takes the one this Slicer imports.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self._root = str(logicRoot() if root is None else root)
        self._process: Any = None
        self._client: Any = None

    def start(self, client: Any) -> None:
        process = qt.QProcess()
        environment = qt.QProcessEnvironment()
        for name, value in {**slicer.util.startupEnvironment(), **ENVIRONMENT}.items():
            environment.insert(name, value)
        process.setProcessEnvironment(environment)
        process.setWorkingDirectory(self._root)
        for sender, receiver in self._connections():
            if not process.connect(sender, receiver):
                raise RuntimeError(f"QProcess has no signal {sender}")
        self._process, self._client = process, client
        # -m is not enough: the launcher of an installed Slicer replaces PYTHONPATH
        code = f"import sys,runpy; sys.path.insert(0, {self._root!a}); sys.argv=['HARM3Logic','worker']; "
        process.start(sys.executable, ["-u", "-c", code + "runpy.run_module('HARM3Logic', run_name='__main__')"])

    def write(self, data: bytes) -> None:
        if self._process is not None:
            self._process.write(data)

    def closeInput(self) -> None:
        if self._process is not None:
            self._process.closeWriteChannel()

    def killTree(self, pid: int | None) -> None:
        if self._process is None:
            return
        process = self._process
        own = int(process.processId())  # of the launcher where Slicer has one; 0 when it has ended
        self._release()
        for target in {pid, own} - {None, 0}:
            _killGroup(target)
        process.kill()

    def onOutput(self) -> None:
        if self._process is not None:
            self._client.feedOutput(self._process.readAllStandardOutput().data())

    def onErrors(self) -> None:
        if self._process is not None:
            self._client.feedErrors(self._process.readAllStandardError().data())

    def onFinished(self, code: int, status: Any) -> None:
        self.onOutput()
        self.onErrors()
        if self._process is None:  # the last output made the client let go
            return
        client = self._client
        self._release()
        client.finished(code, int(status) != 0)

    def onError(self, error: Any) -> None:
        """Only a failed start ends here: `finished` follows every other error."""
        if self._process is None or int(error) != FAILED_TO_START:
            return
        client, reason = self._client, self._process.errorString()
        self._release()
        client.failedToStart(f"{sys.executable}: {reason}")

    def _connections(self) -> tuple[tuple[str, Any], ...]:
        return (
            ("readyReadStandardOutput()", self.onOutput),
            ("readyReadStandardError()", self.onErrors),
            ("finished(int,QProcess::ExitStatus)", self.onFinished),
            ("errorOccurred(QProcess::ProcessError)", self.onError),
        )

    def _release(self) -> None:
        """Be deaf from now on, and keep the QProcess until it may safely go."""
        process, self._process, self._client = self._process, None, None
        for sender, receiver in self._connections():
            process.disconnect(sender, receiver)
        _ending.append(process)
        qt.QTimer.singleShot(SWEEP_MS, _sweep)


def logicRoot() -> Path:
    """The folder that holds the package HARM3Logic."""
    import HARM3Logic

    return Path(HARM3Logic.__file__).resolve().parent.parent


def _sweep() -> None:
    """Drop the processes that have ended; look again later while some have not."""
    _ending[:] = [process for process in _ending if process.state() != qt.QProcess.NotRunning]
    if _ending:
        qt.QTimer.singleShot(SWEEP_MS, _sweep)


def settle() -> None:
    """Wait until the killed processes have ended, which takes them some ms; for application exit, after which nobody sweeps."""
    for process in _ending:
        process.waitForFinished(SETTLE_MS)
    _ending[:] = [process for process in _ending if process.state() != qt.QProcess.NotRunning]


def _killGroup(pid: int) -> None:
    """Kill a process and everything it started, without waiting."""
    if os.name == "nt":
        subprocess.Popen(["taskkill", "/T", "/F", "/PID", str(pid)], creationflags=CREATE_NO_WINDOW)
        return
    try:
        os.killpg(pid, signal.SIGKILL)  # the worker leads its own session
    except (ProcessLookupError, PermissionError):  # it has ended, or has not yet made its session: QProcess.kill reaches it
        return
