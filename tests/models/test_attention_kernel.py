"""The kernel for GPUs, interpreted: what attention in parts yields."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.models import attention
from specdiff_jax.models import attention_kernel
from specdiff_jax.models import cache
from specdiff_jax.models import layers

START = (9, 21)
KV_HEADS = 2


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(cache, 'CHUNK', 16)


def draw(*shape, seed):
  return jax.random.normal(jax.random.key(seed), shape)


def setting(slots=3, heads=4, width=8, room=40, dtype=jnp.float32):
  """Returns (heads, angles, layer, mask, start) of two rows with a tree."""
  parts = [
    draw(2, slots, count, width, seed=seed)
    for seed, count in enumerate((heads, KV_HEADS, KV_HEADS))
  ]
  pair = [draw(2, KV_HEADS, 96, width, seed=seed) for seed in (4, 5)]
  layer = cache.Layer(*(x[:, :, :room].astype(dtype) for x in pair))
  start = jnp.asarray(START)
  # The first token is the others' parent.
  place = jnp.arange(room) - start[:, None, None]
  index = jnp.arange(slots)[:, None]
  mask = (place <= 0) | (place == index)
  angles = layers.rope(start[:, None] + jnp.minimum(index[:, 0], 1), width, 1e4)
  return parts, angles, layer, mask, start


@functools.partial(jax.jit, static_argnames='keep')
def found(parts, angles, layer, mask, start, keep=True):
  return attention_kernel.attend(
    parts, angles, layer, mask, attention.span(mask), 0.3,
    start if keep else None,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames='keep')
def expected(parts, angles, layer, mask, start, keep=True):
  query, key = (layers.rotate(x, *angles) for x in parts[:2])
  pair = [jnp.swapaxes(x, 1, 2) for x in (key, parts[2])]
  own = None
  if keep:
    layer = layer.written(pair, start)
  else:
    own = cache.Layer(*(x.astype(layer.keys.dtype) for x in pair))
  return attention.attend(query, layer, mask, None, 0.3, own=own), layer


@pytest.mark.parametrize(
  'sizes, keep',
  [
    ({}, True),
    ({}, False),
    ({'slots': 19}, True),  # more rows than a program has
    ({'width': 12, 'heads': 6, 'slots': 1}, False),
    ({'dtype': jnp.bfloat16}, True),
  ],
  ids=str,
)
def test_it_is_attention(sizes, keep):
  given = setting(**sizes)
  (out, layer), (wanted, written) = (f(*given, keep) for f in (found, expected))
  near = 2e-6 if 'dtype' not in sizes else 1e-2
  np.testing.assert_allclose(out, wanted, atol=near)
  for one, other in zip(layer.pair, written.pair, strict=True):
    np.testing.assert_allclose(*map(np.float32, (one, other)), atol=near)
  # The control: a mask, and a row's own keys, matter.
  parts, angles, layer, mask, start = given
  unseen = mask.at[:, :, 4].set(False)
  other = found(parts, angles, layer, unseen, start, keep)[0]
  assert np.abs(other - wanted).max() > 0.02
  other = found([parts[0], parts[1] + 1, parts[2]], *given[1:], keep)[0]
  assert np.abs(other - wanted).max() > 0.03


def test_a_row_does_not_depend_on_others():
  """Nor on how many tokens there are, nor on the cache's size, to the bit."""
  parts, angles, layer, mask, start = setting(slots=9)
  whole, written = found(parts, angles, layer, mask, start)
  few = jax.tree.map(lambda x: x[:, :2], (parts, angles, mask))
  assert (found(*few[:2], layer, few[2], start)[0] == whole[:, :2]).all()
  alone = jax.tree.map(lambda x: x[1:], (parts, angles, layer, mask, start))
  assert (found(*alone)[0] == whole[1:]).all()
  large = setting(slots=9, room=80)
  assert (found(*large)[0] == whole).all()
  assert (whole[0] != whole[1]).any()
  stacked = cache.Layer(
    *(jnp.stack([x + 1, x]) for x in layer.pair), index=jnp.int32(1)
  )
  out, both = found(parts, angles, stacked, mask, start)
  assert (out == whole).all()
  assert (both.keys[0] == layer.keys + 1).all()
  assert (both.keys[1] == written.keys).all()


def test_it_is_one_kernel():
  """What a GPU gets, with RoPE and the write; lowered without one."""
  given = setting(width=16)
  traced = found.trace(*given)
  text = traced.lower(lowering_platforms=('cuda',)).as_text()
  calls = [x for x in text.splitlines() if 'stablehlo.custom_call' in x]
  assert len(calls) == 1 and 'triton' in calls[0]
  around = text.replace(calls[0], '')
  assert 'dot_general' not in around and 'while' not in around


def test_what_it_does_not_take():
  """A prompt's tokens, and a cache whose bytes count more than kernels."""
  short, long = (
    cache.Layer(*2 * (jnp.zeros((1, 1, slots, 8)),)) for slots in (64, 80)
  )
  assert attention_kernel.fits(1024, short)
  assert not attention_kernel.fits(1025, short)
  assert not attention_kernel.fits(1, long)
