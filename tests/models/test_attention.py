"""Attention by chunks: what all at once yields, whatever the cache's size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.models import attention
from specdiff_jax.models import cache

BATCH, SLOTS, HEADS, KV_HEADS, WIDTH = 2, 3, 4, 2, 8
LENGTH = np.array([9, 21])  # slots that are seen


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(cache, 'CHUNK', 8)


def draw(*shape, seed):
  return jax.random.normal(jax.random.key(seed), shape)


def setting(slots):
  """Returns (query, layer, mask) over `slots` slots; those unseen are noise."""
  keys, values = (
    draw(BATCH, KV_HEADS, 64, WIDTH, seed=seed)[:, :, :slots] for seed in (1, 2)
  )
  mask = np.arange(slots) < LENGTH[:, None, None] - np.arange(SLOTS)[:, None]
  query = draw(BATCH, SLOTS, HEADS, WIDTH, seed=3)
  return query, cache.Layer(keys, values), jnp.asarray(mask)


def attended(form, slots, **more):
  query, layer, mask = setting(slots)

  def run(query, layer, mask):
    seen = attention.span(mask)
    return attention.attend(query, layer, mask, seen, form=form, **more)

  return np.asarray(jax.jit(run)(query, layer, mask))


@pytest.mark.parametrize('slots', [24, 27, 40])
def test_chunks_are_the_whole(slots):
  """Also where the last chunk is shorter than the others."""
  whole = attended('dense', slots)
  np.testing.assert_allclose(attended('chunked', slots), whole, atol=2e-6)
  # The control: keys that count were not read.
  query, layer, mask = setting(slots)
  seen = attention.Span(jnp.int32(0), jnp.int32(LENGTH.max() - 8))
  short = attention.attend(query, layer, mask, seen, form='chunked')
  assert np.abs(short[1] - whole[1]).max() > 1e-2


def test_the_sizes_that_a_cache_grows_through(monkeypatch):
  """Whole chunks, so that no row sees parts of one; the last whole tiles."""
  monkeypatch.setattr(cache, 'TILE', 4)
  sizes = [cache.rounded(slots, most=26) for slots in range(1, 27)]
  assert sorted(set(sizes)) == [4, 8, 16, 24, 28]
  assert all(size >= slots for slots, size in enumerate(sizes, 1))


@pytest.mark.parametrize('slots', [28, 64])
def test_the_size_of_a_cache_of_chunks_changes_no_bit(slots):
  small, large = attended('chunked', 24), attended('chunked', slots)
  assert (small == large).all()
  assert (small[0] != small[1]).any()


def test_what_no_query_sees_is_not_read():
  """A local layer's chunks begin late, and rows are apart."""
  query, layer, mask = setting(40)
  place = jnp.arange(40)
  mask = (mask & (place >= 8)) | (place == 8)
  whole = attention.attend(query, layer, mask, form='dense')

  def run(layer):
    seen = attention.span(mask)
    return attention.attend(query, layer, mask, seen, form='chunked')

  broken = layer.keys.at[:, :, :8].set(jnp.nan).at[:, :, 24:].set(jnp.nan)
  found = jax.jit(run)(cache.Layer(broken, layer.values))
  np.testing.assert_allclose(found, whole, atol=2e-6)
  within = layer.keys.at[:, :, 9].set(jnp.nan)  # the control
  assert jnp.isnan(jax.jit(run)(cache.Layer(within, layer.values))).any()


@pytest.mark.parametrize('form', ('dense', 'chunked'))
def test_keys_that_lie_apart(form):
  """Against all of them in one array."""
  query, layer, mask = setting(24)
  own = cache.Layer(
    *(draw(BATCH, KV_HEADS, SLOTS, WIDTH, seed=seed) for seed in (4, 5))
  )
  both = cache.Layer(
    *(
      jnp.concatenate(pair, axis=2)
      for pair in zip(layer.pair, own.pair, strict=True)
    )
  )
  seen = jnp.ones((BATCH, SLOTS, SLOTS), bool)
  whole = attention.attend(query, both, jnp.concatenate([mask, seen], axis=2))
  found = attention.attend(
    query, layer, mask, attention.span(mask), form=form, own=own
  )
  np.testing.assert_allclose(found, whole, atol=2e-6)
  alone = attention.attend(query, layer, mask)
  assert np.abs(alone - whole).max() > 1e-2


def test_a_stacked_layer_is_the_same():
  query, layer, mask = setting(24)
  stacked = [jnp.stack([x + 1, x]) for x in layer.pair]
  one = cache.Layer(*stacked, index=jnp.int32(1))
  for form in ('dense', 'chunked'):
    seen = attention.span(mask)
    alone, found = (
      attention.attend(query, keys, mask, seen, form=form)
      for keys in (layer, one)
    )
    assert (alone == found).all()


def test_only_a_cpu_reads_all_at_once():
  query, layer, mask = setting(40)

  def run(query, layer, mask):
    return attention.attend(query, layer, mask, attention.span(mask))

  traced = jax.jit(run).trace(query, layer, mask)
  loops = {
    name: 'while' in traced.lower(lowering_platforms=(name,)).as_text()
    for name in ('cpu', 'tpu', 'cuda')
  }
  assert loops == {'cpu': False, 'tpu': True, 'cuda': True}


def test_a_query_that_sees_nothing_is_finite():
  query, layer, mask = setting(24)
  found = attention.attend(
    query, layer, mask & False, attention.span(mask), form='chunked'
  )
  assert jnp.isfinite(found).all()


@pytest.mark.parametrize('stacked', [False, True])
def test_rows_that_are_done_apart_are_the_same(monkeypatch, stacked):
  query, layer, mask = setting(24)
  seen = attention.span(mask)
  if stacked:
    pair = jax.tree.map(lambda x: jnp.stack([x + 1, x]), layer.pair)
    layer = cache.Layer(*pair, index=jnp.int32(1))

  def run():
    return attention.attend(query, layer, mask, seen, form='chunked')

  whole = run()
  monkeypatch.setattr(attention, '_SCORES', 1)
  text = str(jax.make_jaxpr(run)())
  assert f'f32[1,{KV_HEADS},2,{SLOTS},8]' in text  # scores of one row
  np.testing.assert_allclose(run(), whole, atol=1e-6)
