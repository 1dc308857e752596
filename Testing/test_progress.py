"""What a terminal and what a log is shown of a long work."""

import sys
import time

import pytest

from HARM3Logic import progress as module
from HARM3Logic.progress import progress


def test_a_log_gets_lines_with_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    for _ in (bar := progress(range(3), "fold-0", 3, unit="epoch")):
        bar.set_postfix({"loss": 0.5}, refresh=False)
    shown = capsys.readouterr().err
    assert "\r" not in shown and "\n\n" not in shown
    lines = shown.splitlines()
    assert any(line.startswith("fold-0: 2 of 3 epochs after 00:00") and "left, loss=0.5" in line for line in lines)
    assert lines[-1].startswith("fold-0: 3 of 3 epochs") and "00:00 left" in lines[-1]


def test_a_log_gets_few_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    list(progress(range(1000), "preparing", 1000, unit="case"))
    assert capsys.readouterr().err == ""  # over before it was worth a word

    monkeypatch.setattr(module, "EVERY_S", 0.1)
    for _ in progress(range(50), "preparing", 50, unit="case"):
        time.sleep(0.01)
    assert 2 <= len(capsys.readouterr().err.splitlines()) <= 8


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress(range(3), "fold-0", 3, unit="epoch"))
    shown = capsys.readouterr().err
    assert shown.startswith("\rfold-0:") and "3/3" in shown


def test_who_is_silent_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress(range(3), "fold-0", 3, unit="epoch", disable=True))
    assert capsys.readouterr().err == ""
