"""Turns, sums, and the count of compilations."""

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import compilations
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.tools.bench import timing


def fake(name, log, tokens=(1, 2, 3)):
  def run(batch, clock):
    log.append((name, batch))
    clock.decode += 0.5
    clock.prefill += 0.25
    return [
      request_lib.Completion(0, np.asarray(tokens), 2, 2, np.asarray([2]))
      for _ in batch
    ]

  return run


def test_systems_take_turns_and_sums_are_right():
  log = []
  systems = {name: fake(name, log) for name in 'ab'}
  result = timing.interleave(systems, [(0, 1), (2,)], rounds=2)
  order = ''.join(name for name, _ in log)
  assert order == 'abbabaab'
  a = result['a']
  assert len(a.rounds) == 2 and len(a.completions) == 3
  assert a.rounds[0].emitted == 6 and a.rounds[0].new_tokens == 9
  assert a.rounds[0].seconds == 1.0
  assert a.rounds[0].tokens_per_s == 6.0
  assert a.repeatable


def test_rounds_with_other_tokens_are_noticed():
  calls = []

  def shaky(batch, clock):
    calls.append(batch)
    return fake('x', [], tokens=(1, len(calls)))(batch, clock)

  result = timing.interleave({'x': shaky}, [(0,)], rounds=2)
  assert not result['x'].repeatable


def test_compilations_are_counted():
  compilations.count()
  function = jax.jit(lambda x: x * 3 + 1)
  x, longer = np.ones(3, np.float32), np.ones(4, np.float32)
  before = compilations.count()
  jax.block_until_ready(function(x))
  assert compilations.count() == before + 1
  jax.block_until_ready(function(x + 1))
  assert compilations.count() == before + 1
  jax.block_until_ready(function(longer))
  assert compilations.count() == before + 2


def test_a_compilation_is_charged_to_its_system():
  def compiles(batch, clock):
    clock.decode += 1.0
    jax.block_until_ready(jax.jit(lambda x: x - 7)(jnp.float32(len(batch))))
    return fake('x', [])(batch, clock)

  systems = {'good': fake('good', []), 'bad': compiles}
  result = timing.interleave(systems, [(0,)], rounds=2)
  assert result['good'].recompiles == 0
  assert result['bad'].recompiles >= 2
