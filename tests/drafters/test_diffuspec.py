"""DiffuSpec: path search and draft length, against what they are by definition."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import types
from specdiff_jax.drafters import diffuspec
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import path_search
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters import window
from specdiff_jax.drafters.ngram import kneser_ney
from specdiff_jax.drafters.ngram import model
from specdiff_jax.recipes import decoding
from specdiff_jax.testing import models

V, GAMMA, END = 7, 4, 6
_RNG = np.random.default_rng(3)
NGRAM = model.tables(kneser_ney.fit([_RNG.integers(0, V, 90)], V, 3))
ENDS = np.arange(V) == END


def marginals(rows=40, scale=1.5, seed=0):
  """Returns log q [B, G, V], in some rows with likely ends."""
  z = scale * np.random.default_rng(seed).standard_normal((rows, GAMMA, V))
  z[::3, :, END] -= 9
  z[1::3, :, END] += 2.5
  return np.asarray(jax.nn.log_softmax(z.astype(np.float32)))


def plain_lattice(search, log_q, length):
  """Returns the candidates of each slot of a row (Eq. 7), up to its last."""
  slots = []
  for row in log_q[:length]:
    order = sorted(range(V), key=lambda v: (-row[v], v))
    kept, mass = [], 0.0
    for v in order[: search.candidates]:
      kept.append(v)
      mass += math.exp(row[v])
      if mass >= search.tau:
        break
    natural = END in kept
    slots.append(kept if natural else kept + [END])
    if natural:
      break
  return slots


@functools.cache
def table():
  """Returns log p of the n-gram for all contexts and tokens."""
  pairs = np.array(list(itertools.product(range(-1, V), repeat=2)))
  every = np.broadcast_to(np.arange(V), (len(pairs), V))
  found = np.asarray(model.log_probabilities(NGRAM, pairs, every))
  return {tuple(map(int, pair)): row for pair, row in zip(pairs, found)}


def gain(search, log_q, path, previous):
  """Returns Eq. 8 of a path's last token."""
  text = (*previous, *path)
  ngram = table()[text[-3], text[-2]][path[-1]]
  return search.lam * log_q[len(path) - 1][path[-1]] + (1 - search.lam) * ngram


def plain_beam(search, log_q, length, previous, normalised=False):
  beams = [((), 0.0)]
  for slot in plain_lattice(search, log_q, length):
    new = []
    for path, score in beams:
      if END in path:
        new.append((path, score))
        continue
      for v in slot:
        longer = (*path, v)
        new.append((longer, score + gain(search, log_q, longer, previous)))
    beams = sorted(new, key=lambda b: -b[1])[: search.beam]
  if normalised:
    beams.sort(key=lambda b: -b[1] / len(b[0]))
  return beams[0][0]


def brute_force(search, log_q, length, previous):
  """Returns the best of all paths, each with its raw sum."""
  slots = plain_lattice(search, log_q, length)
  paths = set()
  for whole in itertools.product(*slots):
    end = whole.index(END) + 1 if END in whole else len(whole)
    paths.add(whole[:end])

  def score(path):
    return sum(
      gain(search, log_q, path[: i + 1], previous) for i in range(len(path))
    )

  return max(paths, key=score)


def run(search, log_q, length, previous, noise=None, scale=1.0):
  """Returns the paths of rows."""

  @jax.jit
  def found(log_q, length, previous):
    lattice = search.lattice(log_q, jnp.asarray(ENDS), length)
    g = jnp.zeros_like(lattice.log_q)
    if noise is not None:
      g = noise(lattice.index)
    return search.search(
      lattice,
      jnp.arange(V),
      NGRAM,
      previous,
      g,
      jnp.full(length.shape, scale),
    )

  index, count = found(log_q, length, previous)
  rows = zip(np.asarray(index).tolist(), np.asarray(count).tolist())
  return [tuple(path[:size]) for path, size in rows]


def previous_of(rows):
  tokens = np.random.default_rng(9).integers(0, V, (rows, 2))
  tokens[::5, 0] = -1
  return tokens.astype(np.int32)


def inputs(rows=40):
  length = np.random.default_rng(8).integers(1, GAMMA + 1, rows)
  return marginals(rows), length.astype(np.int32), previous_of(rows)


WHOLE = path_search.PathSearch(beam=(V + 1) ** (GAMMA - 1), tau=0.95)


def test_a_wide_beam_is_brute_force():
  given = inputs()
  got = run(WHOLE, *given)
  wanted = [brute_force(WHOLE, *map(_row, row)) for row in zip(*given)]
  assert got == wanted
  assert len({len(path) for path in got}) > 2 and any(END in p for p in got)


def _row(x):
  return tuple(x.tolist()) if x.ndim == 1 and x.dtype == np.int32 else x


@pytest.mark.parametrize('lam', [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
  'beam, tau, candidates',
  [(1, 0.8, 15), (3, 0.8, 15), (3, 0.99, 3), (5, 0.5, 7)],
)
def test_it_is_the_plain_beam(beam, tau, candidates, lam):
  search = path_search.PathSearch(beam, tau, candidates, lam)
  given = inputs()
  got = run(search, *given)
  assert got == [plain_beam(search, *map(_row, row)) for row in zip(*given)]


def test_another_score_is_noticed():
  """Negative controls: a narrow beam, lengths, and an n-gram read wrongly."""
  given = inputs()
  search = dataclasses.replace(WHOLE, tau=0.6)  # ends are added
  got = run(search, *given)
  narrow = dataclasses.replace(search, beam=1)
  assert got != run(narrow, *given)
  rows = [tuple(map(_row, row)) for row in zip(*given)]
  assert got != [plain_beam(search, *row, normalised=True) for row in rows]
  assert got != run(search, *given[:2], given[2][:, ::-1])
  assert got != run(dataclasses.replace(search, lam=0.8), *given)


def test_the_candidates_of_a_slot():
  """M_i = min{m <= M_max : top-m mass >= tau}, then an end token."""
  p = np.array([
    [.5, .3, .1, .05, .03, .01, .01],  # two hold 0.8
    [.4, .3, .1, .1, .05, .03, .02],  # three: the end is added
    [.2, .2, .2, .2, .1, .05, .05],  # not held by three
    [.3, .1, .1, .1, .1, .1, .2],  # the end is among them: nothing follows
  ])  # fmt: skip
  search = path_search.PathSearch(tau=0.8 - 1e-6, candidates=3)
  log_q = np.log(p, dtype=np.float32)[None, [0, 1, 2, 3, 0]]
  lattice = search.lattice(log_q, jnp.asarray(ENDS), jnp.array([5]))
  kept = [lattice.index[0, i][lattice.kept[0, i]].tolist() for i in range(5)]
  assert kept[:4] == [[0, 1, END], [0, 1, 2, END], [0, 1, 2, END], [0, END, 1]]
  assert lattice.open[0].tolist() == [True] * 4 + [False]
  assert np.asarray(lattice.end & lattice.kept)[0].sum(1).tolist() == [1] * 5
  shorter = search.lattice(log_q, jnp.asarray(ENDS), jnp.array([2]))
  assert shorter.open[0].tolist() == [True] * 2 + [False] * 3
  # Where no end can be drafted, none is added.
  none = search.lattice(log_q, jnp.zeros(V, bool), jnp.array([5]))
  assert not np.asarray(none.kept)[..., -1].any() and none.open.all()


def test_noise_of_the_verifier_decides_alone_where_models_are_flat():
  """Marginals and n-gram are both conditioned on it."""
  g = np.random.default_rng(5).gumbel(size=(3, GAMMA, V)).astype(np.float32)
  g[..., END] = -9
  flat = np.zeros((3, GAMMA, V), np.float32)
  log_q = np.asarray(jax.nn.log_softmax(flat + g))
  search = path_search.PathSearch(tau=0.999, lam=0.5)
  gathered = lambda index: jnp.take_along_axis(jnp.asarray(g), index, axis=2)
  got = run(
    search, log_q, np.full(3, GAMMA, np.int32), previous_of(3), gathered, 1e9
  )
  assert got == [tuple(row) for row in g.argmax(-1).tolist()]


# --- lengths ----------------------------------------------------------------

PAPER = diffuspec.DraftLength(20, 30)


def lengths(one, generated, accepted):
  """Returns k after each cycle, of rows [B, T]."""
  mean, ks = jnp.zeros((len(generated), 2)), []
  after = jax.jit(one.next)
  for gen, acc in zip(np.transpose(generated), np.transpose(accepted)):
    mean, k = after(mean, jnp.asarray(gen), jnp.asarray(acc))
    ks.append(np.asarray(k))
  return np.transpose(ks)


def plain_lengths(one, generated, accepted, floor=math.floor):
  """Returns the same in Python's floats."""
  ahead = kept = 0.0
  ks = []
  for gen, acc in zip(generated, accepted):
    ahead = (1 - one.rho) * ahead + one.rho * gen
    kept = (1 - one.rho) * kept + one.rho * acc
    k = floor(ahead) + (one.delta if kept >= ahead else 0)
    ks.append(min(max(k, one.k_min), one.k_max))
  return ks


def test_lengths_by_hand():
  # L_gen 30: means 15, 22.5, 26.25, then 23.125 (20), 11.5625 (0).
  got = lengths(PAPER, [[30, 30, 30, 20, 0]], [[30, 2, 4, 9, 0]])
  # 15 + 10; 22; 26; 23; clipped from 11.
  assert got.tolist() == [[25, 22, 26, 23, 20]]
  got = lengths(PAPER, [[30, 40, 1]], [[0, 60, 60]])
  # 15 -> 20; 30 >= 27.5: 27 + 10 -> 30; 14.25 + 10 = 24.
  assert got.tolist() == [[20, 30, 24]]


@pytest.mark.parametrize('rho', [0.5, 0.25, 0.3])
def test_lengths_are_those_of_float64(rho):
  rng = np.random.default_rng(2)
  one = diffuspec.DraftLength(3, 30, delta=4, rho=rho)
  generated = rng.integers(0, 31, (200, 60))
  accepted = np.minimum(generated, rng.geometric(0.2, generated.shape) - 1)
  accepted[::2] = generated[::2]
  got = lengths(one, generated, accepted)
  pairs = list(zip(generated.tolist(), accepted.tolist()))
  wanted = np.array([plain_lengths(one, *pair) for pair in pairs])
  np.testing.assert_array_equal(got, wanted)
  # Negative control: the rounding matters.
  other = [plain_lengths(one, *pair, floor=round) for pair in pairs]
  assert (np.array(other) != wanted).any()


def test_levels_and_the_size_that_holds_a_draft():
  assert PAPER.levels == (20, 25, 30)
  assert diffuspec.DraftLength(20, 30, sizes=1).levels == (30,)
  assert diffuspec.DraftLength(3, 4, sizes=5).levels == (3, 4)
  drafter = diffuspec.DiffuSpec(Fixed(30), length=PAPER)
  assert drafter.buckets == (21, 26, 31)
  state = diffuspec.DiffuSpecState((), jnp.array([20, 21, 25, 26, 30]), 0, 0)
  params = diffuspec.DiffuSpecParams((), None, jnp.int32(-1))
  index, count = drafter.wanted(params, state)
  assert index.tolist() == [0, 1, 1, 2, 2] and count.tolist() == [1] * 5
  forced = drafter.forced(params, 1)
  assert drafter.wanted(forced, state)[0].tolist() == [1] * 5
  assert not drafter.calibrates
  assert diffuspec.DiffuSpec(Fixed(30)).buckets == (31,)


# --- the drafter ------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fixed(window.Window):
  """Fills windows with marginals that are its params."""

  gamma: int
  strategy: Any = strategies.Chain()
  features = ()

  def init(self, params, context):
    return ()

  def denoise(self, params, state, context, sampling, noise):
    found = marginals_lib.Marginals(
      logits=params[:, : self.gamma],
      ids=jnp.arange(V),
      root=context.last,
      length=context.length,
      vocab_size=V,
      states=params[:, : self.gamma],
    )
    return found, state

  def observe(self, params, state, context, verdict, features, slots):
    return state


def test_a_draft_is_cut_to_k_and_counts_its_tokens_before_an_end():
  raw = np.array([[1, 2, 3, 4], [1, END, 3, 4], [END, 2, 3, 4], [1, 2, 3, END]])
  logits = np.where(np.arange(V) == raw[..., None], 9.0, 0.0).astype('f')
  drafter = diffuspec.DiffuSpec(
    Fixed(GAMMA), None, diffuspec.DraftLength(2, GAMMA, sizes=2)
  )
  context = protocols.Context(
    jnp.full((4, 5), 5), jnp.full(4, 3), None, None, None,
    jnp.array([END, -1]),
  )  # fmt: skip
  zeros = jnp.zeros(4)
  sampling = types.Sampling(zeros, zeros.astype(int), zeros + 1)
  noise = types.Noise(jax.random.split(jax.random.key(0), 4))
  params = diffuspec.DiffuSpecParams(jnp.asarray(logits), None, jnp.int32(-1))
  state = drafter.init(params, context)
  assert state.k.tolist() == [4] * 4
  state = state.replace(k=jnp.array([3, 4, 4, 4]))
  tree, state = drafter.draft(params, state, context, sampling, noise, 5)
  assert tree.token[:, 0].tolist() == [5] * 4
  assert tree.token[:, 1:].tolist() == raw.tolist()
  assert tree.valid.sum(1).tolist() == [4, 5, 5, 5]  # the root, and k
  assert state.generated.tolist() == [3, 1, 0, 3]
  # The smaller size holds two.
  tree, state = drafter.draft(params, state, context, sampling, noise, 3)
  assert tree.token.shape == (4, 3) and tree.valid.all()
  assert state.generated.tolist() == [2, 1, 0, 2]
  verdict = types.Verdict(None, jnp.array([2, 1, 0, 0]), None)
  state = drafter.observe(params, state, context, verdict, None, 3)
  assert state.mean.tolist() == [[1, 1], [0.5, 0.5], [0, 0], [1, 0]]
  assert state.k.tolist() == [4, 4, 4, 2]  # all were accepted but the last


@pytest.mark.parametrize('search', [None, path_search.PathSearch()])
def test_a_confidence_cuts_drafts_and_decides_their_next_length(search):
  verifier = dataclasses.replace(
    models.tiny_config(), vocab_size=V, width=V, head_dim=2
  )
  head = heads.Confidence(1, V, verifier)
  logits = np.full((3, GAMMA, V), -9.0, 'f')
  logits[..., 1] = 9.0  # the likeliest token of all slots
  logits[0, 2, 0] = logits[1, 0, 0] = 5.0  # and what the head reads
  params = {
    'weights': jnp.asarray([-1.0] + [0.0] * V),
    'predecessor': jnp.zeros((V, 1)),
    'bias': jnp.zeros(1),
  }
  drafter = diffuspec.DiffuSpec(
    Fixed(GAMMA), search, diffuspec.DraftLength(1, GAMMA, 0, 1.0), head, 0.5
  )
  context = protocols.Context(
    jnp.full((3, 5), 5), jnp.full(3, 3), None, None, None, jnp.array([END])
  )
  zeros = jnp.zeros(3)
  sampling = types.Sampling(zeros, zeros.astype(int), zeros + 1)
  noise = types.Noise(jax.random.split(jax.random.key(0), 3))
  params = diffuspec.DiffuSpecParams(
    jnp.asarray(logits), None, jnp.int32(-1), params
  )
  state = drafter.init(params, context)
  tree, state = drafter.draft(params, state, context, sampling, noise, 5)
  assert (tree.valid.sum(1) - 1).tolist() == [2, 0, 4]
  assert state.generated.tolist() == [2, 0, 4]
  verdict = types.Verdict(None, jnp.array([2, 0, 1]), None)
  state = drafter.observe(params, state, context, verdict, None, 5)
  assert state.k.tolist() == [2, 1, 4]
  assert drafter.wanted(params, state)[0].tolist() == [1, 0, 2]
  # A smaller size has room for two, and counts what the window would have.
  tree, state = drafter.draft(params, state, context, sampling, noise, 3)
  assert (tree.valid.sum(1) - 1).tolist() == [2, 0, 2]
  assert state.generated.tolist() == [2, 0, 4]


def test_a_searched_draft_ends_with_its_end_token():
  logits = np.full((1, GAMMA, V), -20, 'f')
  logits[0, 0, 1] = logits[0, 1, END] = logits[0, 2, 3] = logits[0, 3, 4] = 9.0
  drafter = diffuspec.DiffuSpec(Fixed(GAMMA))
  context = protocols.Context(
    jnp.array([[2, 2, 5, 0]]), jnp.array([3]), None, None, None,
    jnp.array([END]),
  )  # fmt: skip
  zeros = jnp.zeros(1)
  sampling = types.Sampling(zeros, zeros.astype(int), zeros + 1)
  for ngram in (None, NGRAM):
    params = diffuspec.DiffuSpecParams(
      jnp.asarray(logits), ngram, jnp.int32(-1)
    )
    state = drafter.init(params, context)
    noise = types.Noise(jax.random.split(jax.random.key(0), 1))
    tree, _ = drafter.draft(params, state, context, sampling, noise, 5)
    assert tree.token[0, :3].tolist() == [5, 1, END]
    assert tree.valid[0].tolist() == [True] * 3 + [False] * 2


def build(options, **more):
  own = {'gamma': 6, 'drafter': 'random', 'diffuspec': options}
  network = {'layers': 1, 'trunk': 24, 'vocab': 40, 'ngram': 2}
  recipe = decoding.told(['diffuspec'], own | {'network': network} | more)
  return decoding.system(recipe, models.tiny_verifier(), 'diffuspec')


@pytest.mark.parametrize(
  'options, said',
  [
    ({'k_min': 5, 'k_max': 4}, 'k_min is 5, but the longest draft has 4'),
    ({'k_max': 7}, 'k_max is 7, but config.gamma'),
    ({'tau': 0.0}, 'tau is 0.0, but it has to be above 0'),
    ({'lam': 1.5}, 'lam is 1.5, but it has to be from 0 to 1'),
    ({'beam': 0}, 'beam is 0, but it has to be at least 1'),
    ({'ngram': 'no.safetensors'}, 'no such safetensors file'),
    ({'ngram': 'no.arpa'}, 'no such file'),
    ({'confidence': 'no.safetensors'}, 'no such safetensors file'),
    ({'threshold': 1.5}, 'threshold is 1.5, but it has to be from 0 to 1'),
  ],
)
def test_bad_options(options, said):
  with pytest.raises(errors.InputError, match=said):
    build(options)


@pytest.mark.parametrize('rule', ['rejection', 'block', 'without_replacement'])
def test_its_published_rule_is_lossy_and_cannot_be_built(rule):
  """min(1, p / q) of a path that was selected, not drawn from q."""
  with pytest.raises(errors.InputError, match='not lossless for drafts'):
    build({}, rule=rule)


def test_the_parts_can_be_left_out():
  neither = build({'cps': False, 'adl': False}).engine.drafter
  assert neither.search is None and neither.length is None
  both = build({}).engine.drafter
  assert both.search == path_search.PathSearch()
  assert both.length == diffuspec.DraftLength(4, 6)
  assert both.buckets == (5, 6, 7) and both.proposal == 'deterministic'
