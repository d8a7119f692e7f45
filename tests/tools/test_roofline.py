"""The floor of traced programs, and what a chip would make of compiled ones."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from specdiff_jax.core import errors
from specdiff_jax.parallel import topology
from specdiff_jax.tools.aot import floor
from specdiff_jax.tools.aot import hlo_costs
from specdiff_jax.tools.aot import roofline

CHIP = topology.Chip(memory=1e9, bandwidth=1e9, flops=1e12, links=1e8)


def read(function, *arguments, weights=(1,)):
  traced = jax.jit(function).trace(*arguments)
  sizes = [x.nbytes * (i in weights) for i, x in enumerate(arguments)]
  return floor.weights(traced.jaxpr, sizes)


X, W = jnp.ones((2, 8)), jnp.ones((4, 8, 8))  # 1024 bytes, 256 a layer


def test_a_weight_is_read_by_each_product():
  assert read(lambda x, w: x @ w[0], X, W) == 256
  assert read(lambda x, w: x @ w[0].T.astype(jnp.bfloat16), X, W) == 256
  assert read(lambda x, w: (x @ w[0]) @ w[0], X, W) == 512
  assert read(lambda x, w: x + w[0, :2], X, W) == 0  # no product


def test_loops_read_as_often_as_they_turn():
  def scanned(x, w):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

  def looped(x, w):
    with jax.named_scope('trips_3'):
      return jax.lax.while_loop(
        lambda x: x[0, 0] < 5, lambda x: jnp.dot(x, w[0]), x
      )

  def untold(x, w):
    return jax.lax.while_loop(lambda x: x[0, 0] < 5, lambda x: x @ w[0], x)

  assert read(scanned, X, W) == 1024
  assert read(looped, X, W) == 3 * 256
  assert read(untold, X, W) == 256


def test_a_branch_and_looked_up_rows_count():
  def branch(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0] @ w[1], lambda: x @ w[0])

  assert read(branch, X, W) == 512
  table, ids = jnp.ones((100, 16)), jnp.zeros((3,), jnp.int32)
  assert read(lambda ids, w: w[ids], ids, table) == 3 * 16 * 4


def work(nbytes, flops=0, times=1, looped=True, kind='weights'):
  return hlo_costs.Work('x', times, looped, flops, {kind: nbytes})


def test_a_launch_takes_its_bytes_or_its_flops():
  costs = hlo_costs.Costs(
    0,
    (),
    (),
    (
      work(1000, times=3),
      work(500, flops=2_000_000),  # 2 microseconds
      work(700, kind='cache copies'),
      work(9999, looped=False),
    ),
  )
  one = roofline.Roofline(CHIP, costs, {'weights': 2500}, looped=True)
  assert one.hbm_bytes == 3000 + 500 + 700 and one.call_bytes == 9999
  assert one.kernels == 5
  assert one.seconds == pytest.approx(3e-6 + 2e-6 + 0.7e-6)
  assert one.floor_seconds == pytest.approx(2.5e-6)
  assert one.mfu == pytest.approx(2 / 5.7)
  causes = one.causes()
  assert causes['repeated weight reads'] == 1000
  assert causes['cache copies'] == 700
  assert sum(causes.values()) == one.hbm_bytes - one.floor_bytes
  whole = roofline.Roofline(CHIP, costs, {}, looped=False)
  assert whole.hbm_bytes == 4200 + 9999


def test_launches_take_time_on_a_gpu():
  gpu = topology.Chip(1e9, 1e9, 1e12, 1e8, launch=1e-3)
  costs = hlo_costs.Costs(0, (), (), (work(1), work(1, times=3)))
  one = roofline.Roofline(gpu, costs, {'weights': 1}, looped=True)
  assert one.seconds == pytest.approx(4e-3)


def test_what_is_between_hides_a_collective():
  gather = hlo_costs.Traffic('all-gather', '', '', 1, 1000, 1, (0, 4000))
  reduce = hlo_costs.Traffic('all-reduce', '', '', 1, 1000)
  one = roofline.Roofline(CHIP, hlo_costs.Costs(0, (gather, reduce), ()), {})
  assert one.exposed(gather) == pytest.approx(10e-6 - 4e-6)
  assert one.exposed(reduce) == pytest.approx(20e-6)
  assert one.seconds == pytest.approx(26e-6)
  # What runs once a call is no part of a cycle.
  turn = dataclasses.replace(reduce, looped=True)
  costs = hlo_costs.Costs(0, (gather, turn), ())
  one = roofline.Roofline(CHIP, costs, {}, looped=True)
  assert one.seconds == pytest.approx(20e-6)


class Device:
  def __init__(self, kind):
    self.device_kind = kind


def test_chips_are_known_by_their_kind():
  v5e, v5p = map(topology.chip, ([Device('TPU v5 lite')], [Device('TPU v5')]))
  assert v5e.bandwidth == 819e9 and v5p.bandwidth == 2765e9
  assert topology.chip([Device('NVIDIA H100 80GB HBM3')]).launch
  with pytest.raises(errors.InputError, match='TPU v6 lite'):
    topology.chip([Device('abacus')])
