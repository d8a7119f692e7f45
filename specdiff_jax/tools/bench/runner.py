"""Runs a bench: systems in turns over the same prompts, after a warm-up."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import os
from typing import Any

from specdiff_jax.checkpoints import fetch
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import compilations
from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.core import reporting
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.tools.bench import costs as costs_lib
from specdiff_jax.tools.bench import metrics
from specdiff_jax.tools.bench import plan as plan_lib
from specdiff_jax.tools.bench import result
from specdiff_jax.tools.bench import rival as rival_lib
from specdiff_jax.tools.bench import simulated
from specdiff_jax.tools.bench import timing
from specdiff_jax.tools.bench import trace as trace_lib
from specdiff_jax.tools.bench import turns
from specdiff_jax.tools.grading import grading


def run(
  config: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  prompts: Sequence[prompts_lib.Prompt],
  names: Sequence[str] | None = None,
  rounds: int | None = None,
  *,
  costs: bool = False,
  control: bool = False,
  trace: bool = False,
  rivals: Sequence[str] = (),
  simulate: float | None = None,
  report: reporting.Reporter = reporting.SILENT,
  on_warm: Callable[[session_lib.Session, request_lib.Request], None]
  | None = None,
) -> result.BenchResult:
  """Returns speeds, acceptance and exactness of several systems.

  Args:
    config: checked.
    checkpoint: the verifier.
    prompts: what all systems decode; `turns` and answers are heeded.
    names: systems; by default those of the config.
    rounds: interleaved repetitions; by default those of the config.
    costs: whether the parts of each cycle are timed alone too.
    control: whether plain decoding is timed as a second system, too.
    trace: whether the first prompt is decoded once more by each system, which
      tells what proposed each token.
    rivals: some of `rival.NAMES`, timed too; greedy, whatever the recipe says.
    simulate: the rate at which drafted tokens are right, in place of what the
      drafters with networks would reach; see `simulated`.
    report: shows bars.
    on_warm: called with the last system and the first request before timing.
  """
  if stop := config.decoding.stop:
    raise errors.InputError(
      f'config.stop is {printing.short(stop)}, but systems are timed to an end '
      'token or the limit; leave it empty.'
    )
  rival_lib.check(rivals)
  simulated.check(simulate)
  plan = plan_lib.planned(config, checkpoint, names, rounds, control)
  found = _measure(
    plan, config, checkpoint, prompts, rivals, simulate, report, on_warm
  )
  systems, requests = found.systems, found.requests
  parts = _costs(plan, systems, requests, report) if costs else {}
  traced = _traces(plan, systems, requests[0], report) if trace else ()
  rows = [_row(found, name, parts.get(name)) for name in plan.names]
  steps = [one.plain_seconds for one in parts.values()]
  return _result(found, checkpoint, rows, steps, traced, simulate)


@dataclasses.dataclass(frozen=True, eq=False)
class _Measured:
  """What was decoded in turns, and what it is compared with.

  Attributes:
    plan: of the bench.
    prompts: each turn is one.
    requests: of the prompts.
    systems: by name, with those of rivals.
    rounds: of each system.
    references: plain decoding's tokens of each prompt, by system.
    rivals: what is reported of them, without their speed.
    made_up: names of the systems whose acceptance is simulated.
  """

  plan: plan_lib.Plan
  prompts: Sequence[prompts_lib.Prompt]
  requests: Sequence[request_lib.Request]
  systems: Mapping[str, Any]
  rounds: Mapping[str, timing.Measurement]
  references: Mapping[str, Sequence[Sequence[int]]]
  rivals: Sequence[metrics.Rival]
  made_up: Collection[str]

  @functools.cached_property
  def speeds(self) -> dict[str, float]:
    """Tokens a second of each system."""
    return {name: metrics.speed(one) for name, one in self.rounds.items()}

  @property
  def fastest(self) -> str:
    """The name of the fastest plain decoding."""
    return max(self.plan.ars, key=lambda name: self.speeds[name])


def _measure(
  plan: plan_lib.Plan,
  config: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  prompts: Sequence[prompts_lib.Prompt],
  rivals: Sequence[str],
  simulate: float | None,
  report: reporting.Reporter,
  on_warm: Callable[[session_lib.Session, request_lib.Request], None] | None,
) -> _Measured:
  """Returns what systems and rivals decode in turns, after a warm-up.

  Arguments are those of `run`.
  """
  systems: dict[str, Any] = plan.systems()
  prompts = turns.expanded(config, checkpoint, prompts, systems['ar'])
  requests = decoding.requests(config, checkpoint, prompts)
  batches = decoding.batches(config, requests)
  compilations.count()  # starts counting

  others = _rivals(config, checkpoint, rivals, requests, systems)
  padded = plan.padded(systems)
  made_up = {}
  if simulate is not None:
    made_up = _simulated(simulate, plan, systems, padded, batches)
    systems |= made_up
  with report.progress('compiling') as show:
    _warm_up([*systems.values(), *padded.values()], requests, show)
  systems = {n: one.calibrated(requests) for n, one in systems.items()}
  if on_warm is not None:
    on_warm(systems[plan.names[-1]], requests[0])
  with report.progress('decoding') as show:
    measured = timing.interleave(
      {name: one.decode for name, one in systems.items()},
      batches,
      plan.rounds,
      show,
    )
  return _Measured(
    plan=plan,
    prompts=prompts,
    requests=requests,
    systems=systems,
    rounds=measured,
    references=plan.references(
      systems, padded, batches, metrics.tokens(measured['ar'])
    ),
    rivals=others,
    made_up=made_up,
  )


def _row(
  found: _Measured, name: str, costs: costs_lib.Costs | None
) -> metrics.Row:
  """Sums up a system."""
  plan, system, measured = found.plan, found.systems[name], found.rounds[name]
  reference = found.references[name]
  return metrics.row(
    name,
    measured,
    ar=found.rounds['ar'],
    fastest_ar=found.rounds[found.fastest],
    reference=reference,
    size=system.size,
    costs=costs,
    coupled=name in plan.coupled,
    near_ties=plan.near_ties(
      system,
      found.systems['ar'],
      found.requests,
      reference,
      metrics.tokens(measured),
    ),
    graded=_graded(found.prompts, system, measured),
    simulated=name in found.made_up,
  )


def _result(
  found: _Measured,
  checkpoint: weights.Checkpoint,
  rows: Sequence[metrics.Row],
  steps: Sequence[float],
  traced: Sequence[trace_lib.Trace],
  simulate: float | None,
) -> result.BenchResult:
  """Returns what a bench yields; `steps` are seconds of plain steps."""
  plan, speeds = found.plan, found.speeds
  plain = metrics.tokens(found.rounds['ar'])
  return result.BenchResult(
    rows=rows,
    verifier=checkpoint.source,
    fingerprint=checkpoint.fingerprint,
    device=decoding.device(),
    dtype=plan.dtype,
    temperature=plan.temperature,
    rounds=plan.rounds,
    exact=plan.exact,
    settings=plan.facts,
    ar_tokens_per_s=speeds['ar'],
    fastest_ar_tokens_per_s=speeds[found.fastest],
    fastest_ar_dtype=plan.ars[found.fastest][0],
    ar_rows_unlike_reference=max(
      metrics.unlike(plain, found.references[name]) for name in plan.names
    ),
    rival_tokens_per_s=speeds.get(f'transformers {plan.dtype}'),
    rivals=[
      dataclasses.replace(one, tokens_per_s=speeds.get(one.name))
      for one in found.rivals
    ],
    peak_memory=costs_lib.peak_memory(),
    read_bandwidth=costs_lib.read_bandwidth() if steps else None,
    ar_bandwidth=costs_lib.weight_bytes(checkpoint.params) / min(steps)
    if steps
    else None,
    example=traced,
    simulated=simulate,
    ungraded=grading.ungraded(found.prompts),
  )


def trained_on(
  config: recipe_lib.Recipe,
  prompts: Sequence[prompts_lib.Prompt],
  names: Sequence[str] | None,
) -> list[str]:
  """Returns ids of the prompts that a drafter of the systems was trained on."""
  seen = frozenset().union(
    *(
      build_drafters.trained_on(name, config.systems[name])
      for name in names or config.bench.systems
      if name in config.systems
    )
  )
  return [one.id for one in prompts if prompts_lib.text_hash(one.text) in seen]


def _simulated(
  rate: float,
  plan: plan_lib.Plan,
  systems: Mapping[str, session_lib.Session],
  padded: Mapping[int, session_lib.Session],
  batches: plan_lib.Batches,
) -> dict[str, session_lib.Session]:
  """Returns the systems whose drafters compute, with simulated acceptance.

  The text that each is given is plain decoding's through its own shapes.
  """
  requests = [request for batch in batches for request in batch]
  names = [n for n in plan.names if systems[n].name not in ('ar', 'lookup')]
  for name in names:
    simulated.check_session(systems[name], name in plan.coupled)
  if not names:
    raise errors.InputError(
      f'simulate is {rate}, but none of the systems {", ".join(plan.names)} has a '
      'drafter that computes; give one that has.'
    )
  if plan.temperature and len({tuple(r.prompt) for r in requests}) < len(
    requests
  ):
    raise errors.InputError(
      'acceptance cannot be simulated at a temperature above 0 where a prompt '
      'stands there twice: its texts differ. Leave one out.'
    )
  shapes = {name: plan.same_shape(systems[name]) for name in names}
  texts = {
    slots: plan_lib.texts(padded.get(slots, systems['ar']), batches)
    for slots in sorted(set(shapes.values()))
  }
  return {
    name: simulated.of(systems[name], rate, requests, texts[shapes[name]])
    for name in names
  }


def _graded(
  prompts: Sequence[prompts_lib.Prompt],
  system: session_lib.Session,
  measured: timing.Measurement,
) -> list[metrics.Graded]:
  """Returns which completions are right, of prompts that say what is."""
  alone = len(measured.calls) == len(prompts)
  found = []
  for i, (prompt, completion) in enumerate(
    zip(prompts, measured.completions, strict=True)
  ):
    if grading.gradable(prompt):
      right = bool(grading.grade(prompt, system.cut(completion)[0]))
      seconds = (
        [one.total_seconds for one in measured.calls[i]] if alone else []
      )
      found.append(
        metrics.Graded(
          prompt.id,
          right,
          metrics.median(seconds) if seconds else None,
          len(completion.tokens),
        )
      )
  return found


def _warm_up(
  systems: Sequence[Any],
  requests: Sequence[request_lib.Request],
  show: reporting.Update,
) -> None:
  """Warms all up at once: compiling a program keeps one core busy."""
  show(0, len(systems))
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    started = [pool.submit(one.warm_up, requests) for one in systems]
    for number, done in enumerate(futures.as_completed(started), 1):
      done.result()
      show(number, len(systems))


def _rivals(
  config: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  names: Sequence[str],
  requests: Sequence[request_lib.Request],
  systems: dict[str, Any],
) -> list[metrics.Rival]:
  """Adds rivals to the systems; returns what is reported of each."""
  tokens, model = systems['ar'].settings.max_new_tokens, config.model
  file = model.verifier if model.verifier.endswith('.gguf') else ''
  if model.verifier == 'quickstart':
    file = fetch.quickstart_file(model.cache_dir)
  if model.adapter:  # a file of merged weights there is none
    file = ''
  room = max(len(request.prompt) for request in requests) + tokens + 64
  assistant = None
  sizes = checkpoint.config
  # Layers that are local do not go into a model of some of them.
  if (
    'transformers' in names and 'sps' in systems and not any(sizes.local_layers)
  ):
    drafted = systems['sps']
    assistant = rival_lib.Assistant(
      drafted.engine.drafter.config,
      drafted.drafter_params.network,
      drafted.engine.drafter.gamma,
    )
  found = []
  for name in names:
    try:
      ways, version = rival_lib.rivals(
        name, checkpoint, file, tokens, room, assistant
      )
    except errors.InputError as error:  # the others are still compared
      found.append(metrics.Rival(name, str(error)))
      continue
    systems.update(ways)
    found += [metrics.Rival(way, version) for way in ways]
  return found


def _traces(
  plan: plan_lib.Plan,
  systems: Mapping[str, session_lib.Session],
  request: request_lib.Request,
  report: reporting.Reporter,
) -> list[trace_lib.Trace]:
  """Decodes a request with each system of the table, after the timing."""
  found = []
  with report.progress('tracing one prompt') as show:
    for number, name in enumerate(plan.names):
      show(number, len(plan.names), name)
      found.append(trace_lib.of(systems[name], request))
  return found


def _costs(
  plan: plan_lib.Plan,
  systems: Mapping[str, session_lib.Session],
  requests: Sequence[request_lib.Request],
  report: reporting.Reporter,
) -> dict[str, costs_lib.Costs]:
  """Times the parts of the cycles of all systems of a single bucket."""
  _, plain_slots = plan.ars['ar']
  names = [
    name
    for name in plan.names
    if len(systems[name].engine.drafter.buckets) == 1
    and systems[name].name != 'ar'
  ]
  found = {}
  with report.progress('timing the parts of a cycle') as show:
    for number, name in enumerate(names):
      show(number, len(names), name)
      one = systems[name]
      # Those of the cache's most frequent size.
      queues = request_lib.by_bucket(requests, one.buckets)
      some = [requests[index] for index in max(queues, key=len)]
      found[name] = costs_lib.measure(
        one.engine,
        one.params,
        one.drafter_params,
        lambda one=one, some=some: one.start(some),
        plain_slots,
      )
  return found
