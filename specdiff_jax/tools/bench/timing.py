"""Timing: systems interleaved over the same batches, compilations counted.

Ratios of speeds are taken inside one process, round by round, because the
machines are shared and noisy; absolute speeds are reported, never gated.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

from specdiff_jax.core import compilations
from specdiff_jax.decoding import request as request_lib


@dataclasses.dataclass(frozen=True)
class Round:
  """One pass of one system over all batches, or over one of them."""

  emitted: int  # by decode cycles: without the token that prefill yields
  new_tokens: int  # all
  seconds: float  # of decode cycles
  total_seconds: float  # with prefill and the host's work
  looks: int = 0  # times that the host looked, one fetch each

  @property
  def tokens_per_s(self) -> float:
    """Tokens a second of decoding, prefill excluded."""
    return self.emitted / self.seconds if self.seconds else 0.0

  @property
  def total_tokens_per_s(self) -> float:
    """Tokens a second from prompt to text."""
    return self.new_tokens / self.total_seconds if self.total_seconds else 0.0


@dataclasses.dataclass(frozen=True)
class Measurement:
  """All rounds of one system."""

  rounds: tuple[Round, ...]
  completions: tuple[request_lib.Completion, ...]  # of round 1, by prompt
  repeatable: bool  # all rounds gave the same tokens
  recompiles: int  # compilations while it was timed
  # By batch, then by round.
  calls: tuple[tuple[Round, ...], ...] = ()


# system(batch, clock=clock) -> completions; the clock takes up the seconds.
System = Callable[..., Sequence[request_lib.Completion]]


def interleave(
  systems: Mapping[str, System],
  batches: Sequence[Any],
  rounds: int,
  progress: Callable[[int, int, str], None] = lambda *_: None,
) -> dict[str, Measurement]:
  """Runs every system over every batch, `rounds` times, taking turns.

  The systems take turns batch by batch, and another one begins each time, so
  that a slow minute of the machine hits all of them alike. Warm up first: a
  compilation is counted, and its time is not taken out.

    interleave({'ar': run_ar, 'specdiff': run_specdiff}, batches, rounds=3)
  """
  names = list(systems)
  runs = {name: [[] for _ in range(rounds)] for name in names}
  recompiles = dict.fromkeys(names, 0)
  done, total = 0, rounds * len(batches) * len(names)
  for number in range(rounds):
    for index, batch in enumerate(batches):
      shift = (number + index) % len(names)
      for name in names[shift:] + names[:shift]:
        progress(done, total, name)
        before = compilations.count()
        runs[name][number].append(_timed(systems[name], batch))
        recompiles[name] += compilations.count() - before
        done += 1
  progress(done, total, '')
  return {name: _measurement(runs[name], recompiles[name]) for name in names}


@dataclasses.dataclass(frozen=True)
class _Call:
  """One system over one batch."""

  completions: tuple[request_lib.Completion, ...]
  clock: request_lib.Clock
  seconds: float


def _timed(system: System, batch: Any) -> _Call:
  clock = request_lib.Clock()
  start = time.perf_counter()
  completions = tuple(system(batch, clock=clock))
  return _Call(completions, clock, time.perf_counter() - start)


def _measurement(runs: list[list[_Call]], recompiles: int) -> Measurement:
  """Sums up `runs` [rounds][batches]."""
  outputs = [
    [c.tokens.tolist() for call in calls for c in call.completions]
    for calls in runs
  ]
  return Measurement(
    rounds=tuple(_round(calls) for calls in runs),
    completions=tuple(c for call in runs[0] for c in call.completions),
    repeatable=all(output == outputs[0] for output in outputs),
    recompiles=recompiles,
    calls=tuple(
      tuple(_round([call]) for call in of_batch)
      for of_batch in zip(*runs, strict=True)
    ),
  )


def _round(calls: list[_Call]) -> Round:
  made = [c for call in calls for c in call.completions]
  return Round(
    emitted=sum(c.emitted for c in made),
    new_tokens=sum(len(c.tokens) for c in made),
    seconds=sum(call.clock.decode for call in calls),
    total_seconds=sum(call.seconds for call in calls),
    looks=sum(call.clock.looks for call in calls),
  )
