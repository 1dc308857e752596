"""The worker behind `qt.QProcess`: a real child process of the stand-in host."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")
pytest.importorskip("PySide6", reason="needs Qt")
if os.name == "nt":
    pytest.skip("kills process groups", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "HARM3Slicer"), str(ROOT / "Testing")]

import slicer_host  # noqa: E402

WORKER = """
import json, os, subprocess, sys, time
def say(**event): print("@harm3 " + json.dumps(event), flush=True)
if os.getpgrp() != os.getpid(): os.setsid()
about = {"argv": sys.argv[1:], "cwd": os.getcwd(), "utf8": sys.flags.utf8_mode, "offline": os.environ["HF_HUB_OFFLINE"]}
say(event="hello", pid=os.getpid(), protocol=1, **about)
for line in sys.stdin:
    job = json.loads(line)
    if job.get("kind") == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        say(event="result", job=job["job"], kind="child", child=child.pid)
    elif job.get("kind") == "crash":
        print("grüße", file=sys.stderr, flush=True)
        os.abort()
    elif job.get("kind") == "exit":
        print("last words", flush=True)
        sys.exit(3)
"""


@pytest.fixture
def host() -> Iterator[Any]:
    made = slicer_host.install()
    yield made
    assert made.slot_errors == []
    assert not [text for text in made.qt_messages if "QProcess" in text], made.qt_messages
    made.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder whose package HARM3Logic is a small worker."""
    folder = tmp_path / "Müller's 患者"
    (folder / "HARM3Logic").mkdir(parents=True)
    (folder / "HARM3Logic/__init__.py").write_text("")
    (folder / "HARM3Logic/__main__.py").write_text(WORKER, encoding="utf-8")
    return folder


@pytest.fixture
def transport(host: Any) -> Iterator[Any]:
    """The module, imported while the host's `qt` is there."""
    sys.modules.pop("HARM3SlicerLib.transport", None)
    from HARM3SlicerLib import transport

    yield transport
    host.wait(lambda: not transport._ending, 10)  # no process is left, and none is destroyed while it runs
    sys.modules.pop("HARM3SlicerLib.transport", None)


@pytest.fixture
def client(transport: Any, root: Path) -> Iterator[Any]:
    from HARM3SlicerLib.process import WorkerClient

    made = WorkerClient(lambda: transport.QProcessTransport(root))
    yield made
    made.stop()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody waits for a grandchild here


def run(host: Any, client: Any, job: dict[str, Any]) -> Any:
    outcomes: list[Any] = []
    client.submit(job, outcomes.append)
    host.wait(lambda: bool(outcomes), 20)
    return outcomes[0]


def test_a_worker_starts_answers_and_goes_with_its_children(host: Any, client: Any, root: Path) -> None:
    outcome = run(host, client, {"kind": "child"})
    assert outcome.ok, (outcome, client.log)
    hello = client.hello
    assert (hello["argv"], hello["utf8"], hello["offline"]) == (["worker"], 1, "1")
    assert Path(hello["cwd"]) == root
    assert not gone(hello["pid"])
    assert not gone(outcome.values["child"])
    began = time.perf_counter()
    client.stop()
    assert time.perf_counter() - began < 1  # nothing waits: the window would stand still
    host.wait(lambda: gone(hello["pid"]) and gone(outcome.values["child"]), 5)


def test_what_was_killed_has_ended_once_settled(host: Any, client: Any, transport: Any) -> None:
    run(host, client, {"kind": "child"})
    pid = client.hello["pid"]
    client.stop()
    assert transport._ending
    transport.settle()
    assert gone(pid)
    assert not transport._ending  # nothing is left to be destroyed while it runs


def test_a_crash_is_told_with_the_last_words(host: Any, client: Any) -> None:
    outcome = run(host, client, {"kind": "crash"})
    assert outcome.code == "crashed"
    assert f"signal {signal.SIGABRT.value}" in outcome.message
    assert "grüße" in outcome.details
    assert run(host, client, {"kind": "child"}).ok  # a new one starts


def test_an_end_is_told_with_its_code_after_the_last_output(host: Any, client: Any) -> None:
    outcome = run(host, client, {"kind": "exit"})
    assert "ended with code 3" in outcome.message
    assert "last words" in outcome.details


def test_a_failed_start_is_told_once(host: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/PythonSlicer")
    outcome = run(host, client, {"kind": "child"})
    assert outcome.code == "no_start"
    assert "PythonSlicer" in outcome.message
    assert not client.alive


def test_nothing_is_heard_after_a_stop(host: Any, client: Any) -> None:
    outcomes: list[Any] = []
    client.submit({"kind": "wait"}, outcomes.append)
    host.wait(lambda: client.hello is not None, 20)
    pid = client.hello["pid"]
    client.stop()
    host.wait(lambda: gone(pid), 5)
    host.process_events(100)
    assert (outcomes, client.log, client.alive) == ([], [], False)


def test_a_worker_ends_when_its_input_closes(host: Any, transport: Any, root: Path) -> None:
    heard: list[tuple[int, bool]] = []

    class Ear:
        feedOutput: Callable[[Any, bytes], None] = lambda self, data: None
        feedErrors = feedOutput

        def finished(self, code: int, crashed: bool) -> None:
            heard.append((code, crashed))

    made = transport.QProcessTransport(root)
    made.start(Ear())
    host.process_events(300)
    made.closeInput()
    host.wait(lambda: bool(heard), 20)
    assert heard == [(0, False)]
    made.write(b"x\n")  # to nobody: no error
    made.killTree(None)


def test_the_root_is_where_harm3logic_lies(transport: Any) -> None:
    assert transport.logicRoot() == ROOT
