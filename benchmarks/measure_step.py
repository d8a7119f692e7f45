"""Times a recipe's train step against the fastest matrix product.

  python benchmarks/measure_step.py configs/distill_smollm2.py \
      runs/trajectories [ROUNDS]

Takes the run that `distill` would make, with one batch of real trajectories
and its features, and trains nothing that is kept. Each round times one step and
one large product of the step's dtype, in turns, so that other work on the
machine meets both. The last line is one JSON object: flops (of a step, counted
in its traced program), step_s, flops_per_s, peak_flops_per_s (the best product
seen), ratio (of the best step to the best product), ratio_median (of medians),
noise (how far the medians of even and odd rounds lie apart).
"""

import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from specdiff_jax.recipes import recipe_file

SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (2688, 576, 6144))


def seconds(function, *args):
  """Returns the result and how long it took."""
  start = time.perf_counter()
  result = jax.block_until_ready(function(*args))
  return result, time.perf_counter() - start


def products(dtype):
  """Returns timers of large products, each giving FLOP/s."""
  multiply = jax.jit(
    lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())))
  )

  def timer(rows, depth, columns):
    x, w = jnp.ones((rows, depth), dtype), jnp.ones((columns, depth), dtype)
    jax.block_until_ready(multiply(x, w))
    return lambda: 2 * rows * depth * columns / seconds(multiply, x, w)[1]

  return [timer(*size) for size in SIZES]


def main(recipe: str, folder: str, rounds: int) -> None:
  """Measures, and prints."""
  from specdiff_jax.data import windows
  from specdiff_jax.recipes import decoding
  from specdiff_jax.recipes import training as build_training
  from specdiff_jax.training import flops as flops_lib

  config = recipe_file.load_recipe(recipe)
  run = build_training.run(config, decoding.verifier(config), [folder], '')
  state, frozen, step = run.start()
  rows = next(iter(windows.batches(run.data.train, run.data.sizes)))
  batch = run.prepare()(rows)
  flops = flops_lib.count(step, state, batch, frozen)
  timers = products(jnp.dtype(config.memory.train_dtype))
  times, peaks = [], []
  for number in range(rounds + 2):
    (state, _), taken = seconds(step, state, batch, frozen)
    rate = max(timer() for timer in timers for _ in range(3))
    if number > 1:  # the first two compile and settle
      times.append(taken)
      peaks.append(rate)
  median, peak = statistics.median(times), max(peaks)
  even, odd = map(statistics.median, (times[::2], times[1::2]))
  print(
    json.dumps(
      {
        'flops': flops,
        'step_s': round(median, 4),
        'step_s_best': round(min(times), 4),
        'flops_per_s': round(flops / min(times)),
        'peak_flops_per_s': round(peak),
        'ratio': round(flops / min(times) / peak, 4),
        'ratio_median': round(flops / median / statistics.median(peaks), 4),
        'noise': round(abs(even / odd - 1), 4),
        'rounds': rounds,
      }
    )
  )


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else 15)
