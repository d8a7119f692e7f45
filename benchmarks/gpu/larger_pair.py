"""Times cycles of an 8B verifier and a DFlash-shaped drafter, without weights.

  python benchmarks/gpu/larger_pair.py [--smoke]

Both have random weights in bfloat16, so that nothing is accepted; what a cycle and
its parts take does not hang on it. Of each batch and context: milliseconds of a
plain step and of a cycle, their floors (weights, KV cache and logits once, at the
bandwidth that this device reads in a sum), r and c_draft, and what speed-up a tau
of 4 and 6 would give (simulated, and called so). The last line is one JSON object.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp

from specdiff_jax.recipes import recipe_file

POINTS = ((1, 2048), (8, 2048), (1, 32768))  # batch, context
TAUS = (4, 6)


def filled(shapes, seed: int = 0):
  """Returns random arrays of these shapes, made on the device leaf by leaf."""
  leaves, tree = jax.tree.flatten(shapes)

  def draw(key, leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.zeros(leaf.shape, leaf.dtype)
    if len(leaf.shape) < 2:  # the scale of a norm
      return jnp.ones(leaf.shape, leaf.dtype)
    scale = leaf.shape[-1] ** -0.5
    return scale * jax.random.normal(key, leaf.shape, leaf.dtype)

  keys = jax.random.split(jax.random.key(seed), len(leaves))
  made = [
    jax.jit(draw, static_argnums=1)(key, jax.ShapeDtypeStruct(x.shape, x.dtype))
    for key, x in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, made)


def point(config, bandwidth: float, passes: int):
  """Returns the figures of one batch and context."""
  from specdiff_jax.recipes import training
  from specdiff_jax.tools.aot import lowering
  from specdiff_jax.tools.bench import costs

  mesh = training.mesh(config, jax.devices()[:1])
  checkpoint = lowering.verifier(config, jax.devices()[0].platform)
  floors = {}
  for system in ('ar', config.drafting.system):
    one = config.change(system=system)
    floors[system] = sum(
      lowering.PROGRAMS['decode'](one, mesh, checkpoint).floor.values()
    )
  serving = lowering.Serving.of(config, mesh, checkpoint)
  params, drafter_params = map(filled, serving.models)
  prefilled = serving.engine.prefill(params, drafter_params, *serving.inputs)
  # A random verifier may say at once that a text ends.
  prefilled = prefilled.replace(end_ids=jnp.full_like(prefilled.end_ids, -1))
  prefilled = prefilled.replace(done=jnp.zeros_like(prefilled.done))
  found = costs.measure(
    serving.engine,
    params,
    drafter_params,
    lambda: jax.tree.map(jnp.copy, prefilled),
    1,
    passes=passes,
    rounds=3,
  )
  plain, cycle = found.plain_seconds, found.plain_seconds * found.cycle
  return {
    'plain_ms': 1e3 * plain,
    'cycle_ms': 1e3 * cycle,
    'plain_floor_ms': 1e3 * floors['ar'] / bandwidth,
    'cycle_floor_ms': 1e3 * floors[config.drafting.system] / bandwidth,
    'r': found.r,
    'c_draft': found.c_draft,
    'overhead': found.overhead,
    'simulated_speedup': {
      str(tau): found.predicted_speedup(tau) for tau in TAUS
    },
  }


def main(smoke: bool) -> None:
  """Measures, and prints a line a point."""
  from specdiff_jax.recipes import decoding
  from specdiff_jax.tools.bench import costs

  config = recipe_file.load_recipe(
    f'configs/llama3_1_8b_dflash.py{":smoke" * smoke}'
  )
  bandwidth = costs.read_bandwidth(16 if smoke else 8192)
  told = {'device': decoding.device(), 'read_gb_s': bandwidth / 1e9}
  for batch, context in ((1, 16), (2, 32)) if smoke else POINTS:
    begin = time.perf_counter()
    new = 8 if smoke else 64
    one = config.change(
      batch=batch, prompt_buckets=(context,), max_new_tokens=new
    )
    name = f'batch {batch}, context {context}'
    told[name] = point(one, bandwidth, passes=2 if smoke else 4)
    seconds = time.perf_counter() - begin
    print(name, told[name], f'{seconds:.0f} s', file=sys.stderr, flush=True)
  print(json.dumps(told))


if __name__ == '__main__':
  main('--smoke' in sys.argv[1:])
