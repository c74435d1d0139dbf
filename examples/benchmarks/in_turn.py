"""Times several things in turn, so that a busy machine is fair to all.

A machine that others use is slow for a while and then fast again. So no
subject is timed to its end before the next: a round times a block of steps of
each, and the order is flipped every other round (A B, B A, A B, ...). What
counts is the ratio within a round, of blocks that ran within moments of each
other; the median over the rounds is reported, with its quartiles.

A block has as many steps as it takes to last `block_seconds`, and to make the
fixed cost of a call small beside it: calling `fit` costs some milliseconds
before the first step. Warm-up rounds are not counted, and Python's garbage
collector rests while a block is timed.
"""

import contextlib
import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping

FIXED_SHARE = 0.03  # Of a block, at most, where that takes not too long.
MAX_STRETCH = 5  # How much longer a block may get for that.
MAX_STEPS = 1 << 20

Run = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to compare.

    Attributes:
        rounds: How many rounds count, at least 1.
        warmup_rounds: How many come before those.
        block_seconds: How long a block lasts at least.
    """

    rounds: int = 15
    warmup_rounds: int = 2
    block_seconds: float = 0.3


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of some numbers, and the quartiles around it."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Returns the spread of at least one number."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.q1:.3f}, {self.q3:.3f}]"


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What was measured.

    Attributes:
        steps: How many steps a block had.
        ms: Of each subject, milliseconds per step in each round.
    """

    steps: int
    ms: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Returns the milliseconds of a step, the median over the rounds."""
        return statistics.median(self.ms[name])

    def ratio(self, name: str, base: str) -> Spread:
        """Returns how long one subject takes relative to another.

        Args:
            name: A subject.
            base: The one it is compared with.

        Returns:
            The spread of `name / base`, one ratio per round.
        """
        pairs = zip(self.ms[name], self.ms[base])
        return Spread.of([one / other for one, other in pairs])

    def difference(self, name: str, base: str) -> Spread:
        """Returns how many milliseconds longer one takes than another.

        Args:
            name: A subject.
            base: The one it is compared with.

        Returns:
            The spread of `name - base`, one difference per round.
        """
        pairs = zip(self.ms[name], self.ms[base])
        return Spread.of([one - other for one, other in pairs])

    def to_row(self, name: str, base: str) -> dict[str, object]:
        """Returns a comparison of two subjects as data.

        Args:
            name: A subject.
            base: The one it is compared with.

        Returns:
            Milliseconds of both, their ratio with its quartiles and that of
            the fastest blocks, and what was measured in each round.
        """
        ratio = self.ratio(name, base)
        return {
            f"{base}_ms": self.median(base),
            f"{name}_ms": self.median(name),
            "ratio": ratio.median,
            "q1": ratio.q1,
            "q3": ratio.q3,
            "ratio_of_fastest": min(self.ms[name]) / min(self.ms[base]),
            "rounds": len(self.ms[name]),
            "steps_per_round": self.steps,
            f"{base}_ms_of_rounds": self.ms[base],
            f"{name}_ms_of_rounds": self.ms[name],
        }


def compare(
    subjects: Mapping[str, Run],
    settings: Settings,
    steps: int | None = None,
    prepare: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Times subjects in turn.

    Args:
        subjects: By name, what makes a given number of steps.
        settings: How to compare.
        steps: Steps of a block. By default as many as the fastest subject
            needs, see `calibrate`.
        prepare: Called before each block, not timed.
        clock: Returns seconds.

    Returns:
        What was measured.
    """
    measured: dict[str, list[float]] = {name: [] for name in subjects}
    with _quick_collections():
        if steps is None:
            steps = max(
                calibrate(run, settings.block_seconds, clock)
                for run in subjects.values()
            )
        for counts, order in _rounds(list(subjects), settings):
            for name in order:
                if prepare is not None:
                    prepare()
                seconds = time_block(subjects[name], steps, clock)
                if counts:
                    measured[name].append(1000 * seconds / steps)
    return Rounds(steps, measured)


def compare_chains(
    chains: Mapping[str, Mapping[str, Callable[[], object]]],
    settings: Settings,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Rounds]:
    """Times chains of calls in turn, of which each needs the one before.

    Args:
        chains: By subject, the calls by name, in their order; the same names
            for all subjects.
        settings: How to compare; a block is one call, however short.
        clock: Returns seconds.

    Returns:
        What was measured, by the call's name.
    """
    names = list(next(iter(chains.values())))
    measured: dict[str, dict[str, list[float]]] = {
        name: {subject: [] for subject in chains} for name in names
    }
    with _quick_collections():
        for counts, order in _rounds(list(chains), settings):
            for subject in order:
                for name in names:
                    call = chains[subject][name]
                    seconds = time_block(lambda _, call=call: call(), 1, clock)
                    if counts:
                        measured[name][subject].append(1000 * seconds)
    return {name: Rounds(1, ms) for name, ms in measured.items()}


def calibrate(
    run: Run,
    block_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Finds how many steps make a block.

    Args:
        run: Makes a given number of steps.
        block_seconds: How long a block lasts at least.
        clock: Returns seconds.

    Returns:
        The number of steps. A block takes `block_seconds` or, if the fixed
        cost of a call asks for it, up to `MAX_STRETCH` times as long.
    """
    run(1)  # Compiles.
    run(2)
    single = time_block(run, 1, clock)
    if single < block_seconds:
        again = [time_block(run, 1, clock) for _ in range(2)]
        single = statistics.median([single, *again])
    steps = 2
    seconds = time_block(run, steps, clock)
    # Until it is long enough to tell the steps from the fixed cost.
    while steps < MAX_STEPS and seconds < min(
        max(block_seconds / 2, 2 * single), MAX_STRETCH * block_seconds
    ):
        steps *= 2
        seconds = time_block(run, steps, clock)
    step = max(seconds - single, 0.0) / (steps - 1) or seconds / steps
    if not step:
        return MAX_STEPS
    fixed = max(single - step, 0.0)
    wanted = min(
        max(block_seconds, fixed / FIXED_SHARE), MAX_STRETCH * block_seconds
    )
    # Rounding errors must not add a step.
    count = math.ceil((wanted - fixed) / step - 1e-6)
    return min(max(1, count), MAX_STEPS)


def time_block(
    run: Run, steps: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Times one block, with Python's garbage collector at rest.

    Args:
        run: Makes a given number of steps.
        steps: How many.
        clock: Returns seconds.

    Returns:
        Seconds of the whole block.
    """
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        started = clock()
        run(steps)
        return clock() - started
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _quick_collections() -> Iterator[None]:
    """Lets the collector pass over all that is there already.

    It runs before each block, so that models of earlier blocks are gone.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _rounds(
    names: list[str], settings: Settings
) -> Iterator[tuple[bool, list[str]]]:
    """Yields of each round whether it counts, and the order in it."""
    for number in range(-settings.warmup_rounds, settings.rounds):
        yield number >= 0, names
        names = names[::-1]


def geometric_mean(ratios: list[float]) -> float:
    """Returns the mean of ratios, in which 2 and 1/2 cancel out."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
