"""What the stages of a request may take. Time that one stage does not need is the next one's; no stage gets another one's time."""

from dataclasses import dataclass, fields

from schemas.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Budgets:
    """Milliseconds, each over 0, the stages together at most the total. Raises SettingsError naming every fault."""

    #: A batch's read of the store. Past it the batch falls back; a store near by takes less than one.
    store_ms: int = 25
    #: Looking up in the snapshot what the store does not have. Past it the rest stays unknown.
    backfill_ms: int = 10
    #: A batch's matrix, model and calibration. Compiled code cannot be interrupted: past it is only counted.
    score_ms: int = 20
    #: Rules, encoding, keeping and sending: this long before its deadline, what is not ranked falls back, and what is not kept goes out.
    #: Past it is only counted.
    rules_ms: int = 15
    #: A request that names no deadline: what a feed waits before it shows something else.
    total_ms: int = 80

    def __post_init__(self) -> None:
        """Refuse budgets that nobody could keep."""
        given = {field.name.removesuffix("_ms"): getattr(self, field.name) for field in fields(self)}
        faults = [f"{stage} is {ms} ms: give it 1 at least" for stage, ms in given.items() if ms < 1]
        total_ms = given.pop("total")
        if sum(given.values()) > total_ms:
            sum_ = " + ".join(f"{stage} {ms}" for stage, ms in given.items())
            faults.append(f"{sum_} is {sum(given.values())} ms, over the total of {total_ms}: shorten a stage or raise the total")
        if faults:
            raise SettingsError("; ".join(faults))

    def reserve_s(self, deadline_ms: float) -> float:
        """How long before its deadline a request has all it waits for (seconds); of a shorter deadline than the total, a smaller part."""
        return self.rules_ms / 1000 * min(1.0, deadline_ms / self.total_ms)


#: What holds where nothing else is set.
BUDGETS = Budgets()
