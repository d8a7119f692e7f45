"""Rows stay where they are wherever a program is traced over a mesh."""

import jax
import jax.numpy as jnp
import jaxprs

from specdiff_jax.models import config as config_lib
from specdiff_jax.models import transformer
from specdiff_jax.models import views
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import pin


def layers(x):
  config = config_lib.TransformerConfig(
      vocab_size=16, width=8, layers=3, heads=2, kv_heads=1, head_dim=4,
      mlp_width=16,
  )  # fmt: skip
  model = transformer.Transformer(config)
  tokens = x.astype(jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
  mask = views.causal_mask(jnp.full(x.shape[0], x.shape[1]), x.shape[1])
  params = model.init(jax.random.key(0), tokens, positions, mask)
  return model.apply(params, tokens, positions, mask)[0]


def constraints(function, x):
  traced = jax.make_jaxpr(function)(x).jaxpr
  return list(jaxprs.primitives(traced)).count('sharding_constraint')


def test_each_layer_pins_its_rows_once():
  x = jnp.zeros((2, 4))
  for shape in ((1, 1), (1, 1, 1)):
    with pin.over(mesh_lib.make_mesh(shape)):
      # One pass makes the params, one is the pass itself.
      assert constraints(layers, x) == 2 * 3, shape


def test_without_a_mesh_nothing_is_pinned():
  assert constraints(layers, jnp.zeros((2, 4))) == 0
  assert pin.rows(x := jnp.zeros(3)) is x


def test_pinned_rows_go_over_the_axes_of_rows():
  with pin.over(mesh_lib.make_mesh((1, 1, 1))):
    text = str(jax.make_jaxpr(pin.rows)(jnp.zeros((2, 4))))
  assert "('replica', 'data')" in text
