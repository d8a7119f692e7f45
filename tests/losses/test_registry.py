"""A loss is one function with its dataclass; the mix of the warm-up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import fields
from specdiff_jax.losses import making
from specdiff_jax.losses import options as options_lib
from specdiff_jax.losses import registry
from specdiff_jax.losses import slots as slots_lib
from specdiff_jax.losses import windows

Q = jnp.array([[[0.5, 0.4, 0.9], [0.3, 0.8, 0.2]]])


def made(**more):
  valid = jnp.ones(Q.shape, bool)
  return slots_lib.Slots(jnp.log(Q), Q > 0.4, valid, **more)


@pytest.fixture
def focal():
  """A new loss with one hyper-parameter: this is all of it."""

  @dataclasses.dataclass(frozen=True)
  class Focus:
    focus: float = fields.field(2.0, 'exponent of focal', decides='run', low=0)

  @registry.register('focal', Focus)
  def loss(log_q, valid, focus):
    each = -((1 - jnp.exp(log_q)) ** focus) * log_q
    return windows.mean(each, valid), windows.window_metrics(log_q, valid)

  yield Focus
  del registry.LOSSES['focal']


def test_a_new_loss_is_a_function_with_its_dataclass(focal):
  loss = making.make('focal', focal(focus=1.0), steps=10)
  value, metrics = loss.value(made(), 0)
  q = np.asarray(Q)
  np.testing.assert_allclose(value, np.mean(-(1 - q) * np.log(q)), rtol=1e-6)
  assert metrics['windows'] == 2 and not loss.statistics
  # The control: the hyper-parameter is its own.
  other, _ = making.make('focal', focal(), steps=10).value(made(), 0)
  assert abs(other - value) > 1e-3


def test_a_loss_takes_over_after_the_warm_up():
  options = options_lib.Warmed(ce_fraction=0.5, beta_end=1.0, decay=3.0)
  loss = making.make('streak', options, steps=8)
  run = jax.jit(lambda step: loss.value(made(), step))
  log_q, valid = jnp.log(Q), jnp.ones(Q.shape, bool)
  ce, _ = windows.decayed_ce(log_q, valid, 3.0)
  for step, beta in ((0, None), (3, None), (4, 0.0), (6, 0.5), (8, 1.0)):
    value, metrics = run(step)
    streak, _ = windows.streak_loss(log_q, valid, beta or 0.0)
    wanted = ce if beta is None else streak
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    assert metrics['beta'] == (beta or 0.0)
    assert metrics['ce_weight'] == (beta is None)
  assert abs(ce - streak) > 1e-2  # the control


def test_hyper_parameters_are_told_once():
  """Fields of one name mean the same in all losses, and say what they are."""
  told = {}
  for loss in making.LOSSES.values():
    for name, about in fields.abouts(loss.options).items():
      assert told.setdefault(name, about) == about
      assert about.decides == 'run' and about.help
    assert len(fields.abouts(loss.options)) == len(
      dataclasses.fields(loss.options)
    )
  assert len(told) == 13
