"""A short run of `make fuzz-http`: the front end does what its OpenAPI document says."""

from pathlib import Path

import pytest

from tests.fuzz.openapi import run

SEED, EXAMPLES_COUNT = 1, 60


@pytest.mark.timeout(180)
@pytest.mark.parametrize("store_is_filled", [True, False], ids=["filled", "empty"])
def test_every_answer_is_as_the_document_says(tmp_path: Path, store_is_filled: bool) -> None:  # noqa: FBT001  # pytest's own way
    """Status, type and body; bad requests are refused, good ones ranked; the only 5xx says that the store holds nothing."""
    code, report = run(tmp_path, EXAMPLES_COUNT, SEED, store_is_filled=store_is_filled)

    assert code == 0, report
