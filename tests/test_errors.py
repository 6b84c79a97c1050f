"""How an error that is not ours is told within a sentence of ours."""

from __future__ import annotations

import pytest

from fastinfogan.errors import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("shapes differ\n  at row 3"), "shapes differ"),
        (OSError(), "OSError"),
        (RuntimeError("\n\nno memory\n"), "no memory"),
        (MemoryError("  \n"), "MemoryError"),
    ],
)
def test_an_error_is_told_by_the_first_line_of_its_message_or_else_by_its_type(error: Exception, told: str) -> None:
    assert first_line(error) == told
