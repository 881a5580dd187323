"""Every row of docs/faults.md has its test, which checks what is read."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import fault_rows

TESTS = Path(__file__).parent


def test_every_row_has_its_test() -> None:
    rows = fault_rows()
    assert len(rows) > 50
    named = [row[3] for row in rows]
    assert len(set(named)) == len(named)
    for _, _, read, test in rows:
        file, _, function = test.partition("::")
        (path,) = TESTS.rglob(file)
        found = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef) and node.name == function
        ]
        assert found, f"{test} is in docs/faults.md and doesn't exist"
        arguments = [argument.arg for argument in found[0].args.args]
        assert ("reads" in arguments) == (read not in ("", "nothing")), f"{test} doesn't check what is read"
