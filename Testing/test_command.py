"""The verbs of Training: that all of them are asked and end in the same way."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import pytest

from HARM3Logic.errors import BadOption
from Training import command

TRAINING = Path(command.__file__).parent


def verbs() -> dict[str, str]:
    """Modules that are run, and their source."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TRAINING.glob("*.py"))}
    return {name: source for name, source in found.items() if 'if __name__ == "__main__":' in source}


def calls(source: str) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("name", verbs())
def test_every_verb_ends_by_the_one_function(name: str) -> None:
    source = verbs()[name]
    assert source.rstrip().endswith('if __name__ == "__main__":\n    sys.exit(main())')
    assert {"command.run", "main"} <= calls(source)
    assert "parser.parse_args" not in calls(source)


def test_the_verbs_are_found() -> None:
    assert {"train", "search", "evaluate", "table1", "ct_table", "pretrain", "export", "attention_test", "ship_encoder"} <= set(verbs())


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (2, 2)])
def test_the_exit_code_is_that_of_the_work(given: int | None, code: int) -> None:
    assert command.run(argparse.ArgumentParser(), lambda asked: given, []) == code


def test_what_the_user_can_mend_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(asked: argparse.Namespace) -> None:
        raise BadOption("--jobs is 0.", "Correct it.")

    assert command.run(argparse.ArgumentParser(), refused, []) == 2
    assert capsys.readouterr().err == "--jobs is 0. Correct it.\n"


def test_being_stopped_is_no_failure_and_a_bug_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(asked: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    assert command.run(argparse.ArgumentParser(), stopped, []) == 130
    assert "kept" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        command.run(argparse.ArgumentParser(), lambda asked: 1 // 0, [])


def test_the_help_tells_what_the_module_tells() -> None:
    found = command.parser("train", "Train: python -m X.\n\nIt writes.\n\nLeak check.", 0, -1)
    assert (found.prog, found.description, found.epilog) == ("python -m Training.train", "Train: python -m X.", "Leak check.")
    assert command.parser("train", "Train.\n\nMore.").epilog is None
    assert command.parser("train", None, 1, 2).description == ""


def test_numbers_that_are_too_small_are_refused_by_name() -> None:
    asked = argparse.Namespace(repeats=0, epochs=None, folds=2)
    command.at_least(asked, epochs=1, folds=2)
    with pytest.raises(BadOption, match="--repeats is 0; 1 or more are wanted"):
        command.at_least(asked, folds=2, repeats=1)
