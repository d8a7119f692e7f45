"""An EAGLE drafter: its network, its tree, and the keys that it keeps."""

import dataclasses
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import prefilled
import published_models
import published_references
import pytest

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import family
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import published as published_lib
from specdiff_jax.drafters.eagle import drafter as eagle
from specdiff_jax.drafters.eagle import format as format_lib
from specdiff_jax.drafters.eagle import network as eagle_network
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import networks
from specdiff_jax.verifiers import causal

WIDTH, VOCAB, DEPTH, ROOM = (
  published_models.WIDTH,
  published_models.VOCAB,
  3,
  30,
)
RNG = np.random.default_rng(1)
TEXT = RNG.integers(0, VOCAB, (2, ROOM))
FEATURES = RNG.standard_normal((2, ROOM, 3, WIDTH)).astype(np.float32)
EMBED = RNG.standard_normal((VOCAB, WIDTH)).astype(np.float32)
LENGTH = np.array([9, 14])


@functools.cache
def published():
  """Returns config.json, tensors, and what is read of them."""
  raw, tensors = published_models.make('eagle3', scale=0.5)
  with tempfile.TemporaryDirectory() as folder:
    published_models.write(folder, raw, tensors, tokenizer=False)
    found = published_lib.read(folder)
    params, _ = params_lib.gather(
      found.sizes, published_lib.tensors(folder, found), 'float32', 'test'
    )
    vocab = format_lib.vocab(folder, found.sizes)
  head = params.pop('head')
  return raw, tensors, found.sizes, family.DrafterParams(params, vocab, head)


def test_the_network_is_that_of_the_reference():
  """With the verifier's states for eight tokens, and its own for three more."""
  raw, tensors, sizes, params = published()
  assert sizes.features == (0, 1, 0)
  x = EMBED[TEXT[0, 1:12]]
  read = FEATURES[:1, :8]
  _, wanted = published_references.eagle3(raw, tensors, x, joined(read[0]))

  @jax.jit
  def whole(p, read):
    model = eagle_network.Eagle(sizes)
    run = functools.partial(networks.apply, model, p)
    at = jnp.arange(1, 9)[None]
    h = run(read, method='fused')
    mask = at <= at[..., None]
    out, text = run(x[None, :8], h, at, mask, method='text')
    every, pair = [out], None
    for k in range(8, 11):
      seen = jnp.ones((1, 1, 8), bool)
      out, pair = run(
        x[None, None, k : k + 1], every[-1][:, None, -1:],
        jnp.full((1, 1, 1), k + 1), text.pair, seen, pair, method='beside',
      )  # fmt: skip
      every.append(out[:, 0])
    return run(jnp.concatenate(every, axis=1), method='normed')[0]

  def difference(p, read=read):
    got = whole(p, read) @ np.asarray(params.head).T
    return np.abs(got - wanted).max() / np.ptp(wanted)

  assert np.ptp(wanted) > 1
  assert difference(params.network) < 1e-5
  # Negative controls: layers in another order, the halves of x exchanged.
  assert difference(params.network, read[:, :, ::-1] * [[[1], [2], [1]]]) > 1e-3
  layer = dict(params.network['layer_0'])
  layer['key'] = np.roll(layer['key'], WIDTH, axis=1)
  assert difference(params.network | {'layer_0': layer}) > 1e-3


def joined(features):
  return features.reshape(len(features), -1).astype(np.float64)


def drafter(budget=13, frontier=2, candidates=3):
  tree = lattice.Lattice(budget, frontier, candidates)
  return eagle.Eagle(published()[2], DEPTH, tree)


def context(length):
  verifier = causal.CausalVerifier(networks.network(published()[2].network))
  return protocols.Context(
    jnp.asarray(TEXT), jnp.asarray(length),
    cache_lib.Cache(((jnp.zeros((2, 1, ROOM + 9, 2)),) * 2,)),
    {'embed': jnp.asarray(EMBED)}, verifier,
  )  # fmt: skip


def law(temperature):
  return types.Sampling(
    jnp.full(2, temperature), jnp.zeros(2, jnp.int32), jnp.ones(2)
  )


NOISE = sampling_lib.request_noise(3, jnp.arange(2))


@functools.partial(jax.jit, static_argnums=0)
def _draft(one, params, state, context, law, noise):
  return one.draft(params, state, context, law, noise, one.buckets[0])


def draft(one, state, length, temperature=0.0):
  given = context(length), law(temperature), NOISE
  return _draft(one, published()[3], state, *given)


@functools.partial(jax.jit, static_argnums=0)
def _started(one, params, context, features):
  return prefilled.prefilled(one, params, context, features)


def started(one, length):
  """Returns the state after a prompt, with garbage behind it in its bucket."""
  known = np.arange(ROOM) < np.asarray(length)[:, None] - 1
  features = np.where(known[..., None, None], FEATURES, 77.0)
  return _started(one, published()[3], context(length), features)


def log_q(row, length, prefix, temperature):
  """Returns log q [W] after a prefix of drafted tokens, by the reference."""
  raw, tensors, _, params = published()
  tokens = [*TEXT[row, 1:length], *prefix]
  read = joined(FEATURES[row, : length - 1])
  _, logits = published_references.eagle3(raw, tensors, EMBED[tokens], read)
  scores = logits[-1] / (temperature or 1)
  if temperature:
    at = jnp.full((2, 1), length + len(prefix))
    g = sampling_lib.gumbel(NOISE, at, jnp.asarray(params.vocab))
    scores = scores + np.asarray(g, np.float64)[row, 0]
  return scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()


def expanded(row, length, one, temperature):
  """Returns the prefixes of EAGLE-2's tree, best first, in plain Python."""
  ids, tree = published()[3].vocab, one.tree
  pool, level = [], [((), 0.0)]
  for depth in range(DEPTH):
    found = []
    for prefix, score in level:
      follow = log_q(row, length, prefix, temperature)
      for place in np.argsort(-follow)[: tree.candidates]:
        found.append((prefix + (int(ids[place]),), score + follow[place]))
    pool += found
    level = sorted(found, key=lambda x: -x[1])[: tree.frontier]
  pool.sort(key=lambda x: -x[1])
  return [prefix for prefix, _ in pool[: one.buckets[0] - 1]]


def prefixes(tree, row):
  """Returns the prefix of each valid slot of a tree, in their order."""
  token, parent, valid = (
    np.asarray(x)[row] for x in (tree.token, tree.parent, tree.valid)
  )
  found = {0: ()}
  for slot in range(1, valid.sum()):
    found[slot] = found[int(parent[slot])] + (int(token[slot]),)
  return [found[slot] for slot in range(1, valid.sum())]


@pytest.mark.parametrize('temperature', [0.0, 0.8])
def test_the_tree_is_that_of_a_plain_expansion(temperature):
  one = drafter()
  assert not one.chain and one.buckets == (13,) and one.max_depth == DEPTH
  tree, _ = draft(one, started(one, LENGTH), LENGTH, temperature)
  depths = set()
  for row, length in enumerate(LENGTH):
    wanted = expanded(row, length, one, temperature)
    assert prefixes(tree, row) == wanted
    depths |= {len(prefix) for prefix in wanted}
    # What each depth was chosen from.
    of_depth = np.asarray(tree.candidates)[row]
    assert of_depth.shape == (DEPTH, 6) and (of_depth[0, 3:] == -1).all()
    for prefix in wanted:
      assert prefix[-1] in of_depth[len(prefix) - 1]
  assert depths == {1, 2, 3}
  # Negative control: another distribution.
  assert prefixes(tree, 0) != expanded(0, LENGTH[0], one, 0.5)


def test_all_that_is_scored_fits_a_large_budget():
  one = drafter(budget=99)
  assert one.buckets == (1 + 3 + 2 * 6,)
  tree, _ = draft(one, started(one, LENGTH), LENGTH)
  assert np.asarray(tree.valid).all()
  assert prefixes(tree, 1) == expanded(1, LENGTH[1], one, 0.0)


@pytest.mark.parametrize('temperature', [0.0, 0.8])
def test_one_of_each_depth_is_a_chain(temperature):
  one = drafter(DEPTH + 1, 1, 1)
  assert one.chain and one.buckets == (DEPTH + 1,)
  tree, _ = draft(one, started(one, LENGTH), LENGTH, temperature)
  for row, length in enumerate(LENGTH):
    assert prefixes(tree, row) == expanded(row, length, one, temperature)
  assert drafter(3, 1, 1).max_depth == 2


@functools.partial(jax.jit, static_argnums=0)
def _observe(one, params, state, context, count, features):
  verdict = types.Verdict(None, count, None)
  return one.observe(params, state, context, verdict, features, one.buckets[0])


def observed(one, state, length, count):
  """Returns the state after a cycle that accepts `count` [B] tokens."""
  path = np.full((2, DEPTH + 1, 3, WIDTH), 55.0, np.float32)
  for row in range(2):
    first = length[row] - 1
    path[row, : count[row] + 1] = FEATURES[row, first : first + count[row] + 1]
  given = context(length), jnp.asarray(count), path
  return _observe(one, published()[3], state, *given)


# Nothing, a part, and all of a draft, in either order.
ACCEPTED = ((0, DEPTH), (DEPTH, 0), (2, 1), (0, 0))


def after(accepted, lose=0):
  """Returns keys and tree after cycles, and where the text ends.

  `lose` counts the last token of each path as not accepted by the drafter.
  """
  one, length = drafter(), np.array([5, 7])
  state = started(one, length)
  for count in accepted:
    _, state = draft(one, state, length)
    state = observed(one, state, length, np.maximum(np.array(count) - lose, 0))
    length = length + np.array(count) + 1
  tree, state = draft(one, state, length)
  return state.cache.layers[0], tree, length


def test_states_are_in_step_with_what_was_accepted():
  """Keys and trees are those of a drafter that reads all of the text anew."""
  keys, tree, length = after(ACCEPTED)
  again, state = draft(drafter(), started(drafter(), length), length)
  for row in range(2):
    assert prefixes(tree, row) == prefixes(again, row)
    assert prefixes(tree, row) == expanded(row, length[row], drafter(), 0.0)
    for got, wanted in zip(keys, state.cache.layers[0]):
      known = slice(1, length[row])
      got, wanted = got[row, :, known], wanted[row, :, known]
      np.testing.assert_allclose(got, wanted, atol=1e-5)
  # Negative control: the state of the last accepted token is lost.
  wrong = after(ACCEPTED, lose=1)[0]
  known = slice(1, length[0])
  assert np.abs(wrong[0][0, :, known] - keys[0][0, :, known]).max() > 1e-2


def test_prompts_in_chunks_are_prompts_at_once():
  """The last chunk begins earlier, and one row ends before it."""
  one, params = drafter(), published()[3]
  state = one.init(params, context(LENGTH))
  for start in (0, 6, 8):
    chunk = FEATURES[:, start : start + 6]
    at = jnp.full(2, start)
    state = one.read(params, state, context(LENGTH), chunk, at)
  tree, _ = draft(one, state, LENGTH)
  whole, _ = draft(one, started(one, LENGTH), LENGTH)
  for row in range(2):
    assert prefixes(tree, row) == prefixes(whole, row)


def test_more_candidates_than_tokens_are_refused():
  with pytest.raises(errors.InputError, match='candidates is 91.*90 tokens'):
    drafter(99, 8, 91)
  sizes = published()[2]
  with pytest.raises(errors.InputError, match='draft_vocab_size'):
    dataclasses.replace(sizes, vocab=VOCAB + 1)
