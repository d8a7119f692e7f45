"""What is reported of each system.

tau is tokens emitted per verifier call, the bonus token included; `accepted`
is the mean number of draft tokens accepted, without it. Prefill and the token
that it yields are in neither.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import statistics
from typing import NamedTuple

import numpy as np

from specdiff_jax.core import types
from specdiff_jax.tools.bench import costs as costs_lib
from specdiff_jax.tools.bench import timing

_LEAST_BATCHES, _RESAMPLED = 5, 2000


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table."""

  system: str
  tokens_per_s: float  # median over rounds, prefill excluded
  total_tokens_per_s: float  # median over rounds, prompt to text
  speedup: float  # over plain AR of the same dtype, median over rounds
  speedup_best: float
  speedup_over_fastest_ar: float  # over plain AR of any dtype
  tau: float
  accepted: float
  exact: bool | None  # None: the rule is equal in distribution alone
  mismatched_rows: int
  near_ties: int  # of those, differences that rounding explains
  prompts: int
  new_tokens: int
  recompiles: int
  looks: int  # of the host at what was decoded, in a round
  cycles: int
  histogram: tuple[int, ...]  # cycles by accepted draft tokens
  gamma: int  # depth of the deepest draft
  drafts: int  # of one pass
  verify_tokens: int  # scored by one call of the verifier
  costs: costs_lib.Costs | None = None  # if they were measured
  # By `core.types.ENDS`: cycles by accepted draft tokens, as `histogram`.
  ends: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  # 95 % of `speedup_over_fastest_ar`, were the prompts other ones of their kind.
  interval: tuple[float, float] | None = None
  graded: tuple['Graded', ...] = ()  # of the prompts that say what is right
  simulated: bool = False  # its acceptance is made up: see `simulated`

  @property
  def correct(self) -> float | None:
    """Share of the graded prompts whose completion is right."""
    if not self.graded:
      return None
    return sum(bool(one.correct) for one in self.graded) / len(self.graded)

  @property
  def prediction_error(self) -> float | None:
    """The cost model's speed-up over the measured one, less 1."""
    if self.costs is None or not self.speedup:
      return None
    return self.costs.predicted_speedup(self.tau) / self.speedup - 1

  @property
  def break_even_tau(self) -> float | None:
    """tau at which it would be as fast as `ar`: a cycle over a plain step."""
    return self.tau / self.speedup if self.speedup else None


class Graded(NamedTuple):
  """Whether a prompt's completion is right, and what it took."""

  id: str
  correct: bool
  seconds: float | None  # from prompt to text; None where it was not alone
  tokens: int


@dataclasses.dataclass(frozen=True)
class Rival:
  """Another program on the same prompts, or why it is missing."""

  name: str
  version: str  # or how to get it
  tokens_per_s: float | None = None  # median over rounds, prefill excluded


def row(
  system: str,
  measured: timing.Measurement,
  *,
  ar: timing.Measurement,
  fastest_ar: timing.Measurement,
  reference: Sequence[Sequence[int]],
  size: Mapping[str, int],
  costs: costs_lib.Costs | None = None,
  coupled: bool = True,
  near_ties: int = 0,
  graded: Sequence[Graded] = (),
  simulated: bool = False,
) -> Row:
  """Sums up a system.

  Args:
    system: its name.
    measured: its rounds.
    ar: those of plain decoding in the same dtype.
    fastest_ar: those of the fastest plain decoding.
    reference: plain decoding's tokens of each prompt.
    size: its gamma, drafts and verify_tokens.
    costs: of its cycle, if they were measured.
    coupled: whether its tokens, not only their distribution, are plain
      decoding's.
    near_ties: outputs whose first difference rounding explains.
    graded: which of its outputs are right.
    simulated: whether its acceptance is made up.
  """
  outputs = tokens(measured)
  differ = unlike(outputs, reference)
  histogram = add([c.accepted.tolist() for c in measured.completions])
  cycles = sum(c.cycles for c in measured.completions)
  emitted = sum(c.emitted for c in measured.completions)
  ratios = speedups(measured, ar)
  return Row(
    system=system,
    tokens_per_s=speed(measured),
    total_tokens_per_s=median([r.total_tokens_per_s for r in measured.rounds]),
    speedup=median(ratios),
    speedup_best=max(ratios),
    speedup_over_fastest_ar=median(speedups(measured, fastest_ar)),
    tau=emitted / cycles if cycles else 0.0,
    accepted=mean_accepted(histogram),
    exact=(differ == 0 and measured.repeatable) if coupled else None,
    mismatched_rows=differ,
    near_ties=near_ties,
    prompts=len(outputs),
    new_tokens=sum(map(len, outputs)),
    recompiles=measured.recompiles,
    looks=measured.rounds[0].looks,
    cycles=cycles,
    histogram=histogram,
    costs=costs,
    ends=ends(measured),
    interval=interval(measured, fastest_ar),
    graded=tuple(graded),
    simulated=simulated,
    **size,
  )


def ends(measured: timing.Measurement) -> dict[str, tuple[int, ...]]:
  """Returns why drafts ended, by accepted tokens; nothing where not told."""
  told = [c.ends for c in measured.completions if c.ends is not None]
  if not told:
    return {}
  return {
    name: add([one[:, i].tolist() for one in told])
    for i, name in enumerate(types.ENDS)
  }


def wrong(exact: bool | None, mismatched: int, near_ties: int) -> int:
  """Returns how many outputs differ where rounding does not explain it.

  One that is not the same in every round counts, too.
  """
  return max(0, max(mismatched, 1) - near_ties) if exact is False else 0


def failed(row: Row) -> bool:
  """Returns whether an output differs where rounding does not explain it."""
  return wrong(row.exact, row.mismatched_rows, row.near_ties) > 0


def tokens(measured: timing.Measurement) -> list[list[int]]:
  """Returns the tokens of each prompt's completion."""
  return [c.tokens.tolist() for c in measured.completions]


def unlike(
  outputs: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]
) -> int:
  """Returns how many outputs differ from the reference anywhere."""
  pairs = zip(outputs, reference, strict=True)
  return sum(list(a) != list(b) for a, b in pairs)


def speedups(
  measured: timing.Measurement, base: timing.Measurement
) -> list[float]:
  """Returns the ratio of decoding speeds of each round."""
  return [
    a.tokens_per_s / b.tokens_per_s if b.tokens_per_s else 0.0
    for a, b in zip(measured.rounds, base.rounds, strict=True)
  ]


def interval(
  measured: timing.Measurement, base: timing.Measurement
) -> tuple[float, float] | None:
  """Returns 95 % of the ratio of speeds, resampled over prompts.

  A bootstrap over batches, each with its rounds and its partner's, since texts
  differ more than rounds do. None of fewer than 5 batches.
  """
  count = len(measured.calls)
  if count < _LEAST_BATCHES or measured is base:
    return None
  parts = np.array(
    [
      [sum(getattr(one, name) for one in calls) for calls in found.calls]
      for found in (measured, base)
      for name in ('emitted', 'seconds')
    ]
  )  # [4, batches]
  drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLED, count))
  emitted, seconds, of_base, base_seconds = parts[:, drawn].sum(axis=-1)
  ratios = emitted * base_seconds / np.maximum(seconds * of_base, 1e-9)
  low, high = np.quantile(ratios, (0.025, 0.975))
  return float(low), float(high)


def speed(measured: timing.Measurement) -> float:
  """Returns the median tokens/s, prefill excluded."""
  return median([r.tokens_per_s for r in measured.rounds])


def median(values: Sequence[float]) -> float:
  """Returns the median; 0 of nothing."""
  return float(statistics.median(values)) if values else 0.0


def add(histograms: Sequence[Sequence[int]]) -> tuple[int, ...]:
  """Adds histograms, the shorter ones as if they ended in zeros."""
  return tuple(map(sum, itertools.zip_longest(*histograms, fillvalue=0)))


def mean_accepted(histogram: Sequence[int]) -> float:
  """Returns the mean accepted count over cycles."""
  cycles = sum(histogram)
  tokens = sum(count * number for count, number in enumerate(histogram))
  return tokens / cycles if cycles else 0.0


def surv(histogram: Sequence[int]) -> list[float]:
  """Returns Pr(accepted >= j), j = 1...; their sum is the mean accepted.

  surv([1, 1, 2]) == [0.75, 0.5]
  """
  cycles = sum(histogram)
  if not cycles:
    return []
  return [sum(histogram[j:]) / cycles for j in range(1, len(histogram))]


def cond(histogram: Sequence[int]) -> list[float | None]:
  """Returns Pr(accept j | accepted j - 1), or None where j was never reached.

  cond([1, 1, 2]) == [0.75, 2 / 3]
  """
  curve = [1.0, *surv(histogram)]
  return [b / a if a else None for a, b in zip(curve, curve[1:])]
