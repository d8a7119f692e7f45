"""The choice among draft lengths: what pays, and that no text changes."""

import dataclasses

import contract_systems as systems
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import types
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.decoding.rules import block_verification
from specdiff_jax.decoding.rules import rejection
from specdiff_jax.drafters import adaptive as controller
from specdiff_jax.drafters import none
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.diffusion import drafter as diffusion

GREEDY = request_lib.Settings(max_new_tokens=systems.NEW)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, seed=3)


def arms(gammas=(2, 4, 6)):
  c, _ = systems.diffusion_params()
  chain = strategies.Chain(mode='shared_noise')
  return tuple(diffusion.MaskedDiffusion(c, g, chain) for g in gammas)


DRAFTER = controller.Adaptive(arms(), none.NoDraft(1))
PARAMS = controller.uncalibrated(DRAFTER, systems.diffusion_params()[1])


def session(params, settings, batch=4):
  return systems.session(
    systems.Row('ar'),
    settings,
    batch,
    engine=systems.engine_of(DRAFTER),
    drafter_params=params,
  )


def run(params, settings, batch=4):
  return session(params, settings, batch).decode(systems.REQUESTS)


@pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['T0', 'T1'])
def test_every_arm_and_every_choice_gives_the_text(settings):
  chosen = [PARAMS.replace(forced=jnp.int32(arm)) for arm in range(4)]
  eager = PARAMS.replace(cost=jnp.array([1.0, 0.1, 0.5, 0.6]))
  cycles = []
  for params in (*chosen, PARAMS, eager):
    completions = run(params, settings)
    assert systems.tokens(completions) == systems.plain(settings)
    cycles.append(sum(c.cycles for c in completions))
  # Not all of it was one and the same arm.
  assert cycles[0] == sum(len(t) - 1 for t in systems.plain(settings))
  if settings is SAMPLED:
    assert cycles[3] < cycles[0]


def state(cond, batch=1):
  """Returns a state that has seen such an acceptance curve."""
  shape = (batch, 3, 6)
  return controller.AdaptiveState(
    arms=(),
    reached=jnp.full(shape, 10.0),
    accepted=jnp.broadcast_to(10.0 * jnp.asarray(cond), shape),
    quiet=jnp.zeros(batch, jnp.int32),
    wait=jnp.full(batch, 32, jnp.int32),
  )


def wanted(cond, cost, **changes):
  params = PARAMS.replace(cost=jnp.asarray(cost))
  one = state(cond).replace(**changes)
  return int(DRAFTER.wanted(params, one)[0][0])


def test_the_proposal_is_that_of_all_arms_and_of_plain_cycles():
  """A rule that reads q is lossless only if every cycle has such a q."""
  c, _ = systems.diffusion_params()

  def adaptive(*strategies_):
    made = tuple(
      diffusion.MaskedDiffusion(c, g, s) for g, s in zip((2, 4, 6), strategies_)
    )
    return controller.Adaptive(made, none.NoDraft(1))

  shared = strategies.Chain(mode='shared_noise')
  drawn = strategies.Chain(mode='sample', keep_q=True)
  tree = strategies.BestFirst(12)
  assert (shared.proposal, drawn.proposal) == ('deterministic', 'iid')
  assert adaptive(shared, shared).proposal == 'deterministic'
  for mixed in (
    adaptive(drawn, tree),
    adaptive(shared, drawn),
    adaptive(drawn, drawn),
  ):
    assert mixed.proposal == 'unknown'
    accept.check(mixed, accept.SampleAndMatch())
    accept.check(mixed, rejection.GreedyAcceptance())
    for rule in (rejection.Rejection(), block_verification.BlockVerification()):
      with pytest.raises(errors.InputError, match="'unknown'"):
        accept.check(mixed, rule)


COST = [1.0, 1.4, 1.6, 1.8]


def test_the_arm_with_most_tokens_for_its_time_is_taken():
  for p in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97):
    tokens = [1.0] + [sum(p**j for j in range(g + 1)) for g in (2, 4, 6)]
    best = int(np.argmax(np.array(tokens) / COST))
    assert wanted(p, COST) == best
  assert {wanted(p, COST) for p in (0.1, 0.55, 0.95)} == {0, 1, 3}
  # Where drafts cost nothing, the longest pays; where they cost much, none.
  assert wanted(0.2, [1.0, 1.0, 1.0, 1.0]) == 3
  assert wanted(0.9, [1.0, 9.0, 9.0, 9.0]) == 0


def test_a_quiet_row_tries_again_and_waits_longer():
  quiet = jnp.array([31])
  assert wanted(0.01, COST, quiet=quiet) == 0
  assert wanted(0.01, COST, quiet=quiet + 1) == 1

  def verdict(count):
    path = jnp.zeros((1, 3), jnp.int32)
    return types.Verdict(path, jnp.array([count]), jnp.zeros(1, jnp.int32))

  class Silent:
    """An arm that takes nothing in."""

    max_depth, chain, features = 2, True, ()
    buckets, proposal = (3,), 'deterministic'

    def observe(self, params, state, context, verdict, features, slots):
      return state

  one = controller.Adaptive((Silent(),), none.NoDraft(1))
  params = controller.uncalibrated(one, ())
  before = state(0.5).replace(
    reached=jnp.full((1, 1, 2), 10.0),
    accepted=jnp.full((1, 1, 2), 5.0),
    quiet=quiet,
  )
  failed = one.observe(params, before, None, verdict(0), None, 3)
  assert (int(failed.wait[0]), int(failed.quiet[0])) == (64, 0)
  np.testing.assert_allclose(failed.reached[0, 0], [10.7, 10.0])
  np.testing.assert_allclose(failed.accepted[0, 0], [4.85, 5.0])
  passed = one.observe(params, before, None, verdict(2), None, 3)
  assert int(passed.wait[0]) == 32
  np.testing.assert_allclose(passed.accepted[0, 0], [5.85, 5.85])
  plain = one.observe(params, before, None, verdict(0), None, 1)
  assert int(plain.quiet[0]) == 32
  np.testing.assert_array_equal(plain.accepted, before.accepted)


def test_calibration_measures_costs_and_acceptance():
  one = session(PARAMS, SAMPLED, 2)
  found = one.calibrated(systems.REQUESTS[:2], 2, 2).drafter_params
  assert found.cost[0] == 1 and (np.asarray(found.cost) > 0).all()
  assert ((found.cond >= 0) & (found.cond <= 1)).all()
  assert not np.allclose(found.cond[2], PARAMS.cond[2])  # it saw something
  assert int(found.forced) == -1
  kinds = jax.tree.map(jax.typeof, (found, PARAMS))  # weak types included
  assert kinds[0] == kinds[1]  # hence nothing recompiles


def test_arms_of_one_size_are_refused():
  with pytest.raises(errors.InputError, match='ascending'):
    controller.Adaptive(arms((2, 2)), none.NoDraft(1))
