"""`bench`: the systems side by side, on the same prompts."""

from typing import Any

from absl import flags

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import text as text_lib
from specdiff_jax.recipes import recipe


def _define(own: flags.FlagValues) -> None:
  command.define_prompts(own)
  flags.DEFINE_list(
    'systems',
    None,
    'what to compare: some of the names of config.system',
    flag_values=own,
  )
  flags.DEFINE_integer(
    'rounds',
    None,
    'interleaved repetitions; their median is reported',
    lower_bound=1,
    flag_values=own,
  )
  flags.DEFINE_bool(
    'rival',
    False,
    "time transformers' greedy generate on the same weights too (torch on "
    'CPU, one prompt at a time; needs the extra [rival])',
    flag_values=own,
  )
  flags.DEFINE_bool(
    'costs',
    False,
    "time the parts of each system's cycle alone (r, c_draft, overhead) and "
    'predict its speed-up from them; half a minute of compilation a system',
    flag_values=own,
  )
  flags.DEFINE_string(
    'plot',
    None,
    'draw the result into this .png, .svg or .pdf',
    flag_values=own,
  )


COMMAND = command.Command(
  name='bench',
  what="""
    Decodes the same prompts with several systems in turns, after a warm-up on
    the same shapes: by default plain AR decoding (ar), prompt lookup (lookup)
    and the trained diffusion drafter (specdiff). It shows one example as it is
    decoded, then a table: tokens/s, speed-up over plain AR, tau (tokens for
    each call of the verifier, the bonus token included), and whether every
    output equals plain AR's, token for token.

    A system that chooses among shapes, and all with config.exact=False, are
    compared with plain AR at its fastest shape: rows that differ by no more
    than rounding explains are counted as near-ties.

    The last line of stdout is one JSON object with "schema": 1.
    """,
  define=_define,
  fields=recipe.described(*recipe.DECODING, recipe.Bench),
  examples=(
    'bench --config=configs/quickstart.py',
    'bench --config=configs/quickstart.py --prompts my.jsonl --limit 32 '
    '--config.temperature=1.0 --config.max_new_tokens=256',
    'bench --config=configs/tiny.py --systems ar,specdiff '
    '--config.drafter=runs/tiny/drafter.safetensors',
  ),
  exit_codes={
    0: 'done; every output was exact, or rounding explains its difference',
    1: "an output differed from plain AR's (the table says how many)",
    2: 'bad input; the message says what and where, and what to do',
  },
)


def main(argv) -> int:
  """Runs the subcommand; returns its exit code."""
  return COMMAND.run(argv, _body)


def _body(call: command.Call) -> int:
  from specdiff_jax.recipes import decoding
  from specdiff_jax.tools.bench import metrics
  from specdiff_jax.tools.bench import plan as plan_lib
  from specdiff_jax.tools.bench import plots
  from specdiff_jax.tools.bench import report
  from specdiff_jax.tools.bench import rival
  from specdiff_jax.tools.bench import timing

  config, options = call.config, call.options
  decoding.check(config)
  prompts = decoding.prompts(config, options.prompts, options.limit)
  checkpoint = command.verifier(config)
  plan = plan_lib.planned(config, checkpoint, options.systems, options.rounds)
  requests = decoding.requests(config, checkpoint, prompts)
  turns = decoding.turns(config, requests)
  timing.compilations()  # starts counting

  systems = plan.systems()
  if options.rival:
    systems['transformers'] = rival.system(
      checkpoint, systems['ar'].settings.max_new_tokens
    )
  with console.progress('compiling') as show:
    for number, (name, system) in enumerate(systems.items()):
      show(number, len(systems), name)
      system.warm_up(requests)
      systems[name] = system.calibrated(requests)
  _example(systems[plan.names[-1]], requests[0])
  with console.progress('decoding') as show:
    measured = timing.interleave(
      {name: one.decode for name, one in systems.items()},
      turns,
      plan.rounds,
      show,
    )
  plain = metrics.tokens(measured['ar'])
  references = plan.references(systems, turns, plain)

  fastest = max(plan.ars, key=lambda name: metrics.speed(measured[name]))
  parts = _costs(plan, systems, requests) if options.costs else {}
  rows = [
    metrics.row(
      name,
      measured[name],
      measured['ar'],
      measured[fastest],
      references[name],
      systems[name].size,
      parts.get(name),
      plan.coupled or name == 'ar',
      plan.excused(
        systems[name],
        systems['ar'],
        requests,
        references[name],
        metrics.tokens(measured[name]),
      ),
    )
    for name in plan.names
  ]
  fastest_dtype, _ = plan.ars[fastest]
  _show(rows, plan, fastest_dtype)
  beside = {}
  if options.rival:
    theirs = metrics.speed(measured['transformers'])
    ours = metrics.speed(measured['ar'])
    beside = {'rival': 'transformers', 'rival_tokens_per_s': round(theirs, 3)}
    ratio = ours / theirs if theirs else float('nan')
    beside |= {'ar_over_rival': round(ratio, 4) if theirs else None}
    console.say(
      f"transformers' generate, {plan.dtype}: {theirs:.1f} tokens/s; ar is "
      f'{ratio:.2f} times as fast.'
    )
  console.result(
    report.json_line(
      rows,
      device=decoding.device(),
      fastest_ar_tokens_per_s=metrics.speed(measured[fastest]),
      config=call.recipe,
      verifier=checkpoint.source,
      dtype=plan.dtype,
      temperature=plan.temperature,
      extra={
        'settings': dict(plan.facts),
        **beside,
        'rounds': plan.rounds,
        'fastest_ar_dtype': fastest_dtype,
        # Bits may differ between shapes; see config.exact.
        'ar_rows_unlike_reference': max(
          metrics.unlike(plain, references[name]) for name in plan.names
        ),
      },
    )
  )
  if options.plot:  # last: what was measured is out whatever the disk says
    plots.save(options.plot, rows, f'{checkpoint.source}, {plan.dtype}')
  return 1 if any(map(metrics.failed, rows)) else 0


def _costs(plan, systems, requests) -> dict[str, Any]:
  """Times the parts of the cycles of all systems of a single bucket."""
  from specdiff_jax.tools.bench import costs

  _, plain_slots = plan.ars['ar']
  names = [
    name
    for name in plan.names
    if len(systems[name].engine.drafter.buckets) == 1 and name != 'ar'
  ]
  found = {}
  with console.progress('timing the parts of a cycle') as show:
    for number, name in enumerate(names):
      show(number, len(names), name)
      one = systems[name]
      found[name] = costs.measure(
        one.engine,
        one.params,
        one.drafter_params,
        lambda one=one: one.start(requests),
        plain_slots,
      )
  return found


def _show(rows, plan, fastest_dtype: str) -> None:
  """Prints the tables and what their columns mean."""
  from specdiff_jax.tools.bench import report

  out = console.out()
  out.print(report.table(rows))
  for more in (report.curves(rows), report.costs(rows)):
    if more is not None:
      out.print(more)
  out.print(report.legend(plan.rounds, plan.dtype, fastest_dtype, plan.exact))


def _example(system, request) -> None:
  """Shows one prompt's completion while it is decoded."""
  stream = text_lib.Stream(system.decode_text, system.stop, system.settled_text)

  def show(number: int, tokens) -> bool:
    del number
    console.text(stream.show(tokens))
    return stream.stopped

  console.text(f'{system.name} decodes {request.id}:\n\n')
  system.decode([request], on_tokens=show)
  console.text(stream.finish() + '\n\n')
