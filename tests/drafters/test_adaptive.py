"""The choice among draft lengths: what pays, and that no text changes."""

import dataclasses
import types as types_lib

import contract_systems as systems
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import types
from specdiff_jax.decoding import calibration
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


def trees(budgets):
  c, _ = systems.diffusion_params()
  return tuple(
    diffusion.MaskedDiffusion(c, 4, strategies.BestFirst(m)) for m in budgets
  )


def test_a_tree_tells_what_narrower_ones_would_accept():
  one = controller.Adaptive((arms((2,))[0], *trees((4, 6, 9))), none.NoDraft(1))
  params = controller.uncalibrated(one, ())
  zeros = jnp.zeros((1, 4, one.ranks))
  count = jnp.zeros(1, jnp.int32)
  state = controller.AdaptiveState((), zeros, zeros, count, count + 32)

  class Silent:
    """An arm that takes nothing in."""

    features = ()

    def __init__(self, arm):
      self.max_depth, self.chain = arm.max_depth, arm.chain
      self.buckets = arm.buckets

    def observe(self, params, state, *rest):
      return state

  silent = controller.Adaptive(tuple(map(Silent, one.arms)), one.plain)
  # The widest accepts its slots 2 and 7, then 1 alone; the next one 2.
  seen = (9, [0, 2, 7], 2), (9, [0, 1, 0], 1), (6, [0, 2, 0], 1)
  for slots, path, accepted in seen:
    verdict = types.Verdict(
      jnp.array([path]), jnp.array([accepted]), jnp.zeros(1, jnp.int32)
    )
    state = silent.observe(params, state, None, verdict, None, slots)
  m = 0.97
  reached = [1 + m + m * m] * 5 + [m + 1] * 3
  accepted = [m, 1 + m * m, 0, 0, 0, 0, m, 0]
  np.testing.assert_allclose(state.reached[0, 3], reached, rtol=1e-5)
  np.testing.assert_allclose(state.accepted[0, 3], accepted, atol=1e-5)
  assert not state.reached[0, :3].any()
  # All three trees read this curve, each as far as it goes.
  rho = np.array(accepted) / reached
  expected = [1 + rho[: n - 1].sum() for n in (4, 6, 9)]
  for arm, tokens in enumerate(expected, 2):
    for edge in (0.99, 1.01):
      cost = np.full(5, 1e6)
      cost[[0, arm]] = 1, edge * tokens
      costs = params.replace(cost=jnp.asarray(cost, jnp.float32))
      best = int(silent.wanted(costs, state.replace(quiet=count))[0][0])
      assert best == (arm if edge < 1 else 0)


def test_the_choice_is_casts_width():
  """g = sum of rho; stop when rho_{N+1} < (g + 1) / l(N) c1 (2610.00321)."""
  sizes = tuple(range(2, 34))
  one = controller.Adaptive(trees(sizes), none.NoDraft(1))
  rng = np.random.default_rng(0)
  chosen = set()
  for _ in range(100):
    rho = np.sort(rng.random(one.ranks) ** rng.integers(1, 9))[::-1]
    c0, c1 = rng.uniform(0.2, 2), rng.uniform(0.005, 0.3)
    ell = lambda n: 1 + c0 + c1 * (n + 1)
    g, wanted_width = 0.0, one.ranks
    for n in range(1, one.ranks):
      g += rho[n - 1]
      if rho[n] < (g + 1) / ell(n) * c1:
        wanted_width = n
        break
    shape = 1, len(sizes), one.ranks
    state = controller.AdaptiveState(
      (), jnp.ones(shape), jnp.broadcast_to(rho, shape).astype(jnp.float32),
      jnp.zeros(1, jnp.int32), jnp.full(1, 32, jnp.int32),
    )  # fmt: skip
    cost = [1e9, *(ell(m - 1) for m in sizes)]  # a draft it is
    params = controller.uncalibrated(one, ())
    params = params.replace(cost=jnp.asarray(cost, jnp.float32))
    best = int(one.wanted(params, state)[0][0])
    assert sizes[best - 1] - 1 == wanted_width
    chosen.add(best)
    # No draft at all, where that is the fastest.
    cost[0] = 1 / (0.01 + (1 + rho.sum()) / ell(1))
    params = params.replace(cost=jnp.asarray(cost, jnp.float32))
    assert int(one.wanted(params, state)[0][0]) == 0
  assert len(chosen) > 10


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
    quiet=quiet + 1,
  )
  failed = one.observe(params, before, None, verdict(0), None, 3)
  assert (int(failed.wait[0]), int(failed.quiet[0])) == (64, 0)
  np.testing.assert_allclose(failed.reached[0, 0], [10.7, 10.0])
  np.testing.assert_allclose(failed.accepted[0, 0], [4.85, 5.0])
  passed = one.observe(params, before, None, verdict(2), None, 3)
  assert int(passed.wait[0]) == 32
  np.testing.assert_allclose(passed.accepted[0, 0], [5.85, 5.85])
  # No trial: of a row that had not waited long enough nothing is learnt, and a
  # draft that pays need not be accepted whole.
  early = before.replace(quiet=quiet, wait=2 * before.wait)
  dear = params.replace(cost=jnp.array([1.0, 9.0]))
  for some, wait in (dear, 64), (params, 32):
    after = one.observe(some, early, None, verdict(1), None, 3)
    assert int(after.wait[0]) == wait
  plain = one.observe(params, before, None, verdict(0), None, 1)
  assert int(plain.quiet[0]) == 33
  np.testing.assert_array_equal(plain.accepted, before.accepted)


def test_calibration_measures_costs_and_acceptance():
  one = session(PARAMS, SAMPLED)
  found = one.calibrated(systems.REQUESTS[:4], 2, 2).drafter_params
  assert found.cost[0] == 1 and (np.asarray(found.cost) > 0).all()
  assert ((found.cond >= 0) & (found.cond <= 1)).all()
  assert not np.allclose(found.cond[2], PARAMS.cond[2])  # it saw something
  assert int(found.forced) == -1
  kinds = jax.tree.map(jax.typeof, (found, PARAMS))  # weak types included
  assert kinds[0] == kinds[1]  # hence nothing recompiles


def test_calibration_begins_anew_where_the_cache_has_no_room():
  """Its states go on from round to round, and a small cache is soon full."""
  starts = []

  def start():
    starts.append(len(starts))
    cycles = np.zeros(1, int)
    return types_lib.SimpleNamespace(
      done=np.zeros(1, bool),
      stats=types_lib.SimpleNamespace(cycles=cycles),
      drafter=None,
    )

  def decode(forced, state, cycles):
    room = 5  # cycles, then nothing more is drafted and no row is done
    passed = np.minimum(state.stats.cycles + cycles, room)
    state.stats.cycles = passed
    return state

  class Arms:
    buckets = (1, 3)
    forced = staticmethod(lambda params, index: index)
    calibrated = staticmethod(lambda params, shares, states: shares)

  shares = calibration.measured(Arms(), 'as given', start, decode, 2, 9)
  assert shares[0] == 1 and len(starts) > 4
  untimed = calibration.measured(Arms(), 'as given', start, decode, 0, 3)
  assert untimed == 'as given'


def test_arms_of_one_size_are_refused():
  with pytest.raises(errors.InputError, match='ascending'):
    controller.Adaptive(arms((2, 2)), none.NoDraft(1))


def test_a_change_of_arms_copies_no_cache():
  one = session(PARAMS, GREEDY)
  state = one.start(systems.REQUESTS)
  cache = jax.tree.leaves(state.cache)[0]
  assert cache.ndim == 4

  def copies(lowered):
    shape = ','.join(map(str, cache.shape))
    return lowered.compile().as_text().count(f'[{shape}]{{3,2,1,0}} copy(')

  decode = type(one.engine).decode
  lowered = decode.lower(
    one.engine, one.params, one.drafter_params, state, jnp.int32(4)
  )
  assert copies(lowered) == 0

  def write(places):
    def body(_, cache):
      return cache.at[:, :, places].set(cache[:, :, places + 1] + 1)

    return lambda cache: jax.lax.fori_loop(0, places, body, cache)

  @jax.jit
  def switched(cache):
    branches = [write(1), write(2)]
    body = lambda i, cache: jax.lax.switch(i % 2, branches, cache)
    return jax.lax.fori_loop(0, 4, body, cache)

  assert copies(switched.lower(cache)) > 0
