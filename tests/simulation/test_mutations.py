"""The simulation can fail: with a rule taken out of the product it goes red. `make simulate-nightly` tries every rule, the script's too."""

from pathlib import Path

import pytest

from tests.simulation.mutations import EVIDENT_COUNT, MUTATIONS, ROOT, Edit, Mutation, MutationError, is_seen


@pytest.mark.parametrize("mutation", MUTATIONS[:EVIDENT_COUNT], ids=lambda mutation: mutation.name)
def test_a_rule_that_is_taken_out_is_missed(mutation: Mutation) -> None:
    """Guard comparison, gap check, all checks before the first write."""
    assert is_seen(mutation, "0:25")


@pytest.mark.parametrize("edit", [edit for mutation in MUTATIONS for edit in mutation.edits], ids=lambda edit: edit.old[:40].strip())
def test_every_rule_is_where_its_mutation_looks_for_it(edit: Edit) -> None:
    """A rule that was rewritten needs a mutation that is."""
    assert (ROOT / edit.path).read_text().count(edit.old) == 1


def test_a_rule_that_is_not_found_is_an_error() -> None:
    """Nothing is proved by taking nothing out."""
    with pytest.raises(MutationError, match="0 times 'no such rule'"):
        is_seen(Mutation("none", (Edit(str(Path("streams") / "worker.py"), "no such rule", ""),)), "0:1")
