"""The winners of a search against the baseline, seed by seed, until the plan has a verdict on each.

A round is one seed: the baseline and every winner that awaits a verdict, one after the other, in an order that
turns round from seed to seed, so that a machine that drifts favours nobody. The controls run in the first rounds.
After the rounds at which the plan looks, winners with a verdict, and those that will hardly get one, are done.
Winners that run at once share the error. Or they are confirmed one after the other, from safe to bold, over the
same seeds (the baseline has them already): each has the whole error, as nothing follows one that is not proven. To
call any setting lossless falsely, the first lossy one of the ladder has to be, and that is tested once, with runs
of its own (a fixed sequence; Maurer, Hothorn & Lehmacher 1995).

The plan is made before the first run of a round, and is the same when the sweep is resumed. Where the file asks
for more seeds than an earlier run of the sweep did, the plan is extended, and says what error the whole has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from raytrain_speedup.engine.compare import settle_runs
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.statistics.estimate import SEEDS_NEEDED
from raytrain_speedup.engine.statistics.verdict import Look, Plan, plan_for
from raytrain_speedup.metric import Metric
from raytrain_speedup.tuning.planned import BASELINE, WINNER, PlannedRun, baseline_run, control_runs
from raytrain_speedup.tuning.space import Sweep
from raytrain_speedup.tuning.sweep_settings import SEARCH_SEED, SweepSettings
from raytrain_speedup.tuning.winners import Outcome

MEANINGS = {
    "lossless": "lossless",
    "lossy": "lossy",
    "futile": "given up, a verdict is unlikely within the plan",
    "continue": "goes on",
    "not yet known": "not yet known, and the plan is at its end",
}


def confirmation_plan(settings: SweepSettings, winners: int, begun: Plan | None = None) -> Plan | None:
    """The plan of a sweep's confirmation; None where so few seeds are asked for that no verdict is possible.

    Args:
        winners: how many settings are confirmed at most, those in reserve included.
        begun: the plan of an earlier run of the sweep.
    """
    confirm = settings.confirm
    max_seeds = confirm.max_seeds if confirm.until == "verdict" else len(settings.seeds)
    if begun is not None:
        return begun if max_seeds <= begun.max_seeds else begun.extended(max_seeds)
    if max_seeds < SEEDS_NEEDED:
        return None
    return plan_for(
        settings.margin,
        error=confirm.error,
        min_seeds=SEEDS_NEEDED if confirm.until == "verdict" else max_seeds,
        max_seeds=max_seeds,
        winners=winners,
        pairing=confirm.pairing,
    )


def seeds_of(settings: SweepSettings) -> Iterator[int]:
    """The seeds of the rounds: those of the file, then the smallest others."""
    yield from settings.seeds
    yield from (seed for seed in count() if seed not in settings.seeds and seed < SEARCH_SEED)


def most_rounds(settings: SweepSettings, plan: Plan | None) -> int:
    """How many rounds a confirmation can have; without a plan those of the file's seeds."""
    return len(settings.seeds) if plan is None else max(len(settings.seeds), plan.max_seeds)


class Confirmation:
    """Says which runs are next.

    Args:
        sweep: the search-space file.
        winners: the trials to confirm, best first; none where there is only the baseline to repeat.
        plan: of `confirmation_plan`.
        bolder: those to step up to, one after the other, as long as each is proven.

    Attributes:
        winners: those under confirmation now.
        looks: the last look at each winner, by name.
    """

    def __init__(
        self,
        sweep: Sweep,
        winners: Sequence[Outcome],
        plan: Plan | None,
        bolder: Sequence[Outcome] = (),
    ) -> None:
        self.sweep, self.winners, self.plan = sweep, winners, plan
        self.looks: dict[str, Look] = {}
        self._bolder = deque(bolder if plan is not None else ())
        self._said: list[str] = []
        self._most_rounds = most_rounds(sweep.settings, plan if winners else None)
        self._rounds = 0  # handed out
        self._told: dict[str, Look] = {}

    def announcement(self, finished: Mapping[str, Outcome], *, at_once: int) -> str:
        """What is about to run, and for how long at most.

        Args:
            finished: the runs of the search.
            at_once: how many of them ran at the same time.
        """
        names = ", ".join(winner.name for winner in self.winners)
        if self.plan is None:
            return f"confirming {names} over {len(self.sweep.settings.seeds)} seeds: too few for a verdict"
        plan, most = self.plan, self._most_rounds * (1 + len(self.winners) + len(self._bolder))
        known = [run.metrics.costs.wall_seconds or 0.0 for run in finished.values()]
        text = (
            f"confirming {names} against the baseline: looks after {_listed(plan.looks)} seeds, error "
            f"{plan.error:.1%}, margin {plan.margin:g}; at most {most} runs"
        )
        if any(known):
            text += f", {most * max(known) / at_once / 60:.0f} minutes"
        return text

    def news(self) -> Iterator[str]:
        """What the last look found, a line for each winner that it was news of."""
        metric = self.sweep.objective.ranks
        for name, look in self.looks.items():
            if self._told.get(name) != look:
                self._told[name] = look
                yield f"{name}: {_spoken(look, metric)}"
        while self._said:
            yield self._said.pop(0)

    def next_runs(self, finished: Mapping[str, Outcome]) -> list[PlannedRun]:
        """The runs of all rounds until the next look; none when it is over.

        Args:
            finished: the runs of the sweep by name, among them all of the rounds before that did not fail.
        """
        self._look(finished)
        if self._bolder and self._is_proven():
            bolder = self._bolder.popleft()
            self.winners, self._rounds = [bolder], 0
            self._said.append(f"proven; stepping up to {bolder.name}, the next cheaper one")
        runs: list[PlannedRun] = []
        while self._rounds < self._most_rounds:
            runs += self._round(self._rounds)
            self._rounds += 1
            if runs and self.plan is not None and self._rounds in self.plan.looks:
                break
        return runs

    def _round(self, number: int) -> list[PlannedRun]:
        settings = self.sweep.settings
        seed = next(seed for place, seed in enumerate(seeds_of(settings)) if place == number)
        repeated = number < len(settings.seeds)
        going = [winner for winner in self.winners if self._awaits(winner.name, repeated=repeated)]
        pair = [self._winner_run(winner, seed) for winner in going]
        if going or repeated:
            pair.insert(0, baseline_run(self.sweep, seed))
        controls = list(control_runs(self.sweep, seed)) if repeated else []
        return (pair if number % 2 == 0 else pair[::-1]) + controls

    def _winner_run(self, winner: Outcome, seed: int) -> PlannedRun:
        experiment, params = self.sweep.trial(winner.params, seed), dict(winner.params)
        return PlannedRun(f"{winner.name}-seed{seed}", WINNER, experiment, params, plan=self.plan)

    def _awaits(self, name: str, *, repeated: bool) -> bool:
        """Whether a winner goes on; without a plan over the seeds of the file."""
        if self.plan is None:
            return repeated
        return name not in self.looks or self.looks[name].status == "continue"

    def _look(self, finished: Mapping[str, Outcome]) -> None:
        """Look at what the rounds up to here have found."""
        seeds = [seed for seed, _ in zip(seeds_of(self.sweep.settings), range(self._rounds), strict=False)]
        baseline = _runs_of(finished, BASELINE, seeds)
        methods = {winner.name: _runs_of(finished, winner.name, seeds) for winner in self.winners}
        if self.plan is not None and all(methods.values()):
            self.looks |= settle_runs(self.plan, methods, baseline)

    def _is_proven(self) -> bool:
        """Whether all winners of this step are."""
        looks = [self.looks.get(winner.name) for winner in self.winners]
        return all(look is not None and look.status == "lossless" for look in looks)


def _spoken(look: Look, metric: Metric) -> str:
    text = f"{look.seeds} seeds, {metric.difference(look.difference, look.interval)}"
    more = "" if not look.seeds_missing else f"; about {look.seeds_missing} more seeds for a verdict"
    return f"{text}: {MEANINGS[look.status]}{more}"


def _listed(looks: Sequence[int]) -> str:
    """3, 4, ... 12"""
    few = len(looks) < 4
    return ", ".join(map(str, looks)) if few else f"{looks[0]}, {looks[1]}, ... {looks[-1]}"


def _runs_of(finished: Mapping[str, Outcome], name: str, seeds: Sequence[int]) -> list[FinalMetrics]:
    """The runs of one setting with these seeds."""
    names = (f"{name}-seed{seed}" for seed in seeds)
    return [finished[one].metrics for one in names if one in finished]
