"""The law of rules with coins of their own, on the quickstart's real models.

Many requests go on from one state; the pairs of tokens that they emit are
counted against the verifier's own law of the next two tokens. What is left of
rules of this kind is proved by enumeration in tests/decoding.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.decoding import rows
from specdiff_jax.decoding.rules import rejection
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.diffusion import drafter as diffusion
from specdiff_jax.models import transformer
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe_file

BATCH, RUNS, BRANCHES = 64, 3, 16
RARE, SURE = 1e-3, 1e-6  # p-values of what is lossless, and of what is not


@contextlib.contextmanager
def optimised():
  """Compiles with optimisations: here decoding takes longer than compiling."""
  name = 'jax_disable_most_optimizations'
  before = jax.config.read(name)
  jax.config.update(name, False)
  try:
    yield
  finally:
    jax.config.update(name, before)


@pytest.fixture(scope='module')
def parts(root, smollm2_path):
  """Returns (config, verifier) of the quickstart, in float32.

  Its layers run in a loop, which compiles in a fraction of the time.
  """
  del smollm2_path  # skips where it is not here
  config = recipe_file.load_recipe(
    f'{root}/configs/quickstart.py',
    dtype='float32',
    gamma=2,
    drafts=2,
    draft='sample',
    temperature=1.0,
    max_new_tokens=24,
    prompt_buckets=(128,),
  )
  one = decoding.verifier(config)
  sizes, params = transformer.stacked(one.config, dict(one.params))
  return config, dataclasses.replace(one, config=sizes, params=params)


def system(parts, name, **fields):
  config, checkpoint = parts
  return decoding.system(config.change(**fields), checkpoint, name)


def begin(parts, one):
  """Returns a prefilled state of one row, at a place where much can follow.

  There the drafter's likeliest token has p = 0.4: a rule that takes it too
  often is seen.
  """
  config, checkpoint = parts
  prompt = decoding.prompts(config, None, 2)[1]
  request = decoding.requests(config, checkpoint, [prompt])[0]
  said = checkpoint.tokenizer.encode('Ines bakes 5 trays of 12 rolls,')
  request = dataclasses.replace(request, prompt=(*request.prompt, *said))
  return one.start([request])


def pairs(parts, one):
  """Returns the next two tokens [N, 2] of many requests."""
  found = []
  state = begin(parts, one)
  length = int(state.length[0])
  for run in range(RUNS):
    batch = rows.spread(state, BATCH)
    numbers = jnp.arange(BATCH) + 1000 + BATCH * run
    batch = batch.replace(
      done=jnp.zeros(BATCH, bool),
      noise=sampling_lib.request_noise(0, numbers),
    )
    with optimised():
      batch = one.engine.decode(
        one.params, one.drafter_params, batch, np.int32(2)
      )
    assert (np.asarray(batch.length) >= length + 2).all()
    found.append(np.asarray(batch.tokens)[:, length : length + 2])
  return np.concatenate(found)


@pytest.fixture(scope='module')
def law(parts):
  """Returns (p [V], {token: p [V]}): the verifier's own, next and after it."""
  one = system(parts, 'ar')
  state = begin(parts, one)
  last = state.tokens[:, state.length[0] - 1]
  nobody = jnp.zeros((1, BRANCHES, 1), jnp.int32)
  first = after(one, state, tree_lib.chains(nobody, nobody == 0, last))[0]
  likely = np.argsort(-first)[:BRANCHES]
  tree = tree_lib.chains(jnp.asarray(likely)[None, :, None], nobody == 0, last)
  return first, dict(zip(likely.tolist(), after(one, state, tree)[1:]))


def after(one, state, tree):
  """Returns the law [M, V] after each slot of a tree."""
  logits, _, _ = jax.jit(one.engine.verifier.score, static_argnums=4)(
    one.params, state.cache, tree, state.length, ()
  )
  return softmax(logits[0])


def softmax(logits):
  return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def p_value(found, law):
  """Returns the chi-square p-value, cells pooled to 5 expected or more."""
  first, second = law
  count = len(found)
  observed, expected = [], []
  rest = np.ones(count, bool)
  for token, p in second.items():
    here = found[:, 0] == token
    other = here.copy()
    left = first[token]
    for following in np.flatnonzero(count * first[token] * p >= 5):
      cell = here & (found[:, 1] == following)
      observed.append(cell.sum())
      expected.append(first[token] * p[following])
      other &= ~cell
      left -= expected[-1]
    if count * left >= 5:
      observed.append(other.sum())
      expected.append(left)
      rest &= ~other
    rest &= ~(here & ~other)
  observed.append(rest.sum())
  expected.append(1 - sum(expected))
  if count * expected[-1] < 5:  # too rare a rest joins the cell before it
    observed[-2:] = [sum(observed[-2:])]
    expected[-2:] = [sum(expected[-2:])]
  assert len(expected) >= 5 and sum(observed) == count
  return scipy.stats.chisquare(observed, count * np.array(expected)).pvalue


@pytest.mark.parametrize(
  'name, rule',
  [
    ('specdiff', 'block'),
    ('tree', 'without_replacement'),
  ],
)
def test_the_law_is_the_verifiers(parts, law, name, rule):
  found = pairs(parts, system(parts, name, rule=rule))
  assert p_value(found, law) > RARE


@dataclasses.dataclass(frozen=True)
class Liar(diffusion.MaskedDiffusion):
  """Says that its argmax chain was drawn from its marginals."""

  proposal = 'iid'


def test_what_is_lossy_is_noticed(parts, law):
  one = system(parts, 'specdiff', rule='rejection')
  drafter = one.engine.drafter
  # The shipped drafter is so sure that its own law would be a point mass.
  recorded = strategies.Chain(mode='sample', keep_q=True, temperature=4.0)

  class Argmax(strategies.Chain):
    """The most likely tokens, with the marginals that they are not of."""

    def __call__(self, given, sampling, noise, slots):
      tree = recorded(given, sampling, noise, slots)
      chain = strategies.Chain(mode='argmax')(given, sampling, noise, slots)
      return tree.replace(token=chain.token)

  liar = Liar(drafter.config, drafter.gamma, Argmax(mode='sample'))
  engine = dataclasses.replace(
    one.engine, drafter=liar, rule=rejection.Rejection()
  )
  one = dataclasses.replace(one, engine=engine)
  assert p_value(pairs(parts, one), law) < SURE
