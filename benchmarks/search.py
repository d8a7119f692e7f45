"""Times what makes a tree of marginals: its share of a decode cycle.

  python benchmarks/search.py --budgets=9,17,33 --prompt='Why is the sky blue?'

A draft is networks, and then the search over what they say: a chain's argmax, a
lattice, a merge, D2SD's choice of prefixes, DiffuSpec's path. Each system's draft is
timed, and its networks alone in the same shapes; the search is the difference. Both
are taken in turns with whole cycles, at batch 1, and the medians count. The last
line is JSON: milliseconds, and the search's share of a cycle. The machine should be
quiet.
"""

import argparse
import collections
import json
import statistics
import time

import jax
import jax.numpy as jnp

import specdiff_jax as sd
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.recipes import decoding


def rows(flags):
  """Yields (name, system, its options)."""
  fixed = {'gamma': flags.gamma}
  yield 'chain', 'specdiff', fixed
  yield 'diffuspec', 'diffuspec', {**fixed, 'diffuspec': {'k_min': flags.gamma}}
  drafters = {'first': flags.drafter, 'second': flags.second}
  for budget in flags.budgets:
    sizes = {**fixed, 'budget': budget}
    yield f'tree of drawn chains, {budget}', 'tree', {**sizes, 'drafts': 8}
    yield f'best-first, {budget}', 'best_first', sizes
    yield f'lattice, {budget}', 'lattice', sizes
    headed = {**sizes, 'head': flags.head}
    yield f'lattice, Markov head, {budget}', 'lattice', headed
    yield f'd2sd, {budget}', 'd2sd', {**sizes, 'drafter': drafters}


def networks(drafter):
  """Returns a function that runs a drafter's networks, and no search."""

  def first_and_second(params, state, *asked):
    first, second = drafter.members
    draft, _ = first.denoise(params[0], state[0], *asked)
    # A second draft hangs on the first, as in decoding; which slots it sees of
    # it costs the same whatever they are.
    likeliest = draft.ids[jnp.argmax(draft.logits, axis=-1)][:, None]
    shape = (1, drafter.branches, drafter.gamma)
    shown = jnp.broadcast_to(jnp.arange(drafter.gamma) < 1, shape)
    kept = jnp.broadcast_to(likeliest, shape)
    return second.branches(params[1], state[1], asked[0], kept, shown)

  def searched(params, state, *asked):
    return drafter.inner.denoise(params.inner, state.inner, *asked)[0]

  def window(params, state, *asked):
    return drafter.denoise(params, state, *asked)[0]

  if hasattr(drafter, 'members'):
    return first_and_second
  return searched if hasattr(drafter, 'inner') else window


def milliseconds(call):
  begin = time.perf_counter()
  jax.block_until_ready(call())
  return 1e3 * (time.perf_counter() - begin)


def timed(system, prompt, flags):
  """Returns medians of milliseconds: a cycle, a draft, its networks."""
  session = system.session
  engine, params = session.engine, session.drafter_params
  drafter = engine.drafter
  request = request_lib.Request(0, prompt)

  def begun():
    """Returns a state a few cycles old: what was accepted has been read."""
    return run(session.start([request]), 4)

  def run(state, cycles):
    return engine.decode(session.params, params, state, jnp.int32(cycles))

  @jax.jit
  def draft(verifier, params, state):
    context = engine.context(verifier, state)
    return drafter.draft(
      params,
      state.drafter,
      context,
      state.sampling,
      state.noise,
      drafter.buckets[-1],
    )[0]

  @jax.jit
  def alone(verifier, params, state):
    context = engine.context(verifier, state)
    filled = networks(drafter)(
      params, state.drafter, context, state.sampling, state.noise
    )
    return filled.logits

  def cycle():
    """Returns milliseconds of a cycle, a mean over eight."""
    later = jax.block_until_ready(begun())
    before, begin = int(later.stats.cycles[0]), time.perf_counter()
    later = jax.block_until_ready(run(later, 8))
    taken = 1e3 * (time.perf_counter() - begin)
    return taken / (int(later.stats.cycles[0]) - before)

  found = collections.defaultdict(list)
  state = begun()
  for number in range(-3, flags.repeats):  # the first compile
    for name, call in (('draft', draft), ('networks', alone)):
      # Behind a cycle: what was just used would be in the processor's cache.
      taken = {'cycle': cycle()}
      taken[name] = milliseconds(lambda: call(session.params, params, state))
      for one, value in taken.items() if number >= 0 else ():
        found[one].append(value)
  return {name: statistics.median(values) for name, values in found.items()}


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--budgets', default='9,17,33')
  add('--prompt', default='Write a function that reverses a linked list.')
  add('--gamma', type=int, default=7)
  add('--temperature', type=float, default=0.0)
  add('--repeats', type=int, default=30)
  add('--verifier', default='quickstart')
  add('--dtype', default='bfloat16')
  add('--cache_dir', default='runs/verifier')
  add('--drafter', default='smollm2_135m_instruct.safetensors')
  add('--second', default='smollm2_135m_instruct_second.safetensors')
  add('--head', default='smollm2_135m_instruct_markov.safetensors')
  flags = parser.parse_args(argv)
  flags.budgets = [int(x) for x in flags.budgets.split(',')]
  verifier = sd.load_verifier(
    flags.verifier, dtype=flags.dtype, cache_dir=flags.cache_dir
  )
  prompt = verifier.tokenizer.encode(flags.prompt)
  table = {}
  for name, system, options in rows(flags):
    one = sd.system(
      system,
      verifier,
      max_new_tokens=128,
      temperature=flags.temperature,
      **{'drafter': flags.drafter, **options},
    )
    ms = timed(one, prompt, flags)
    ms['search'] = ms['draft'] - ms['networks']
    share = ms['search'] / ms['cycle']
    table[name] = {k: round(v, 3) for k, v in ms.items()} | {
      'share': round(share, 4)
    }
    print(
      f'{name:28}'
      + ''.join(f' {k} {ms[k]:7.2f} ms' for k in ms)
      + f'  {share:.1%}',
      flush=True,
    )
  print(json.dumps({'device': decoding.device(), 'rows': table}))


if __name__ == '__main__':
  main()
