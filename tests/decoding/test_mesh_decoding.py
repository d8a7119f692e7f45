"""Decoding on several devices, in a process of its own."""

import json
import os
import subprocess
import sys
import textwrap

import contract_systems as systems
import jax
import pytest

from specdiff_jax.decoding import request as request_lib

P = jax.sharding.PartitionSpec
GREEDY = request_lib.Settings(max_new_tokens=systems.NEW)

PROGRAM = """
    import json
    import sys

    import jax

    from specdiff_jax.recipes import decoding
    from specdiff_jax.data import prompts
    from specdiff_jax.decoding import rows
    from specdiff_jax.recipes import recipe_file

    recipe = recipe_file.load_recipe(sys.argv[1], batch=4, max_new_tokens=12)
    rows.group_of = lambda batch: 2  # as in a batch of 32
    texts = [prompts.Prompt(str(i), 'Once upon a time' * (1 + i % 3))
             for i in range(7)]

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: event.endswith('backend_compile_duration')
        and compiled.append(event)
    )

    def part(leaf):
      return leaf.addressable_shards[0].data.size / leaf.size

    def decode(name, mesh):
      config = recipe.change(decode_mesh=mesh)
      checkpoint = decoding.verifier(config)
      system = decoding.system(config, checkpoint, name)
      requests = decoding.requests(config, checkpoint, texts)
      system.warm_up(requests)
      compiled.clear()
      tokens = [made.tokens.tolist() for made in system.decode(requests)]
      recompiled = len(compiled)
      state = system.engine.pinned(system.start(requests))
      weights = checkpoint.params['layer_0']['down']
      cache = jax.tree.leaves(state.cache)[0]
      return tokens, recompiled, part(weights), part(cache)

    print(json.dumps({
        f'{name} {mesh}': decode(name, mesh)
        for name in ('specdiff', 'tree') for mesh in ((1, 1), (2, 2))
    }))
"""


@pytest.fixture(scope='module')
def found(root):
  run = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(PROGRAM),
       f'{root}/configs/tiny.py:smoke'],
      env=os.environ | {
          'PYTHONPATH': str(root),
          'JAX_NUM_CPU_DEVICES': '4',
          'JAX_PLATFORMS': 'cpu',
      },
      capture_output=True,
      text=True,
      timeout=400,
  )  # fmt: skip
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize('name', ['specdiff', 'tree'])
def test_four_devices_are_one(found, name):
  alone, recompiled, weights, cache = found[f'{name} (1, 1)']
  assert (recompiled, weights, cache) == (0, 1, 1)
  tokens, recompiled, weights, cache = found[f'{name} (2, 2)']
  assert tokens == alone
  assert recompiled == 0
  assert (weights, cache) == (1 / 2, 1 / 4)  # by heads; by rows and heads


def test_a_state_is_split_by_rows_and_caches_by_heads_too():
  """Whichever of its caches are stacked, and whoever owns them."""
  session = systems.session(
    systems.Row('shared_noise', scan_layers=True), GREEDY
  )
  session = session.keeping(trace=True)
  state = jax.eval_shape(
    session.engine.prefill,
    session.params,
    session.drafter_params,
    *session.inputs(systems.REQUESTS[:4]),
  )
  mesh = jax.sharding.AbstractMesh((2, 2), ('data', 'model'))
  found = jax.tree.map(lambda x: x.spec, session.engine.shardings(state, mesh))
  assert found.tokens == found.length == found.noise.key == P('data')
  assert found.trace == P('data')
  assert found.end_ids == P()
  assert found.drafter.last == P('data')
  assert found.cache.layers == (P(None, 'data', 'model'),) * 2
  assert found.drafter.context.layers == ((P('data', 'model'),) * 2,)
