"""A layer of a diffusion drafter: windows that see a context and themselves.

It is one of the verifier's family, so that it can start as one of the
verifier's last layers whatever that has: biases, norms of heads, the RoPE of a
local layer. Only the window of a local layer is left out: what drafters see of
the context is limited elsewhere, for all layers alike.
"""

import jax
import jax.numpy as jnp

from specdiff_jax.models import transformer_layer


class DrafterLayer(transformer_layer.LayerParts):
  """A layer of the verifier's family over windows of slots."""

  def context(self, x, cos, sin):
    """Maps x [..., T, E] to rotated keys and values [..., Hkv, T, Dh]."""
    return self.keys_values(self.norm(x, self.attention_norm), cos, sin)

  def __call__(self, x, context, mask, cos, sin):
    """Updates x [B, N, G, E]; mask [B, N, S] over the context."""
    h = self.norm(x, self.attention_norm)
    query, *window = self.queries_keys_values(h, cos, sin)
    query = query * self.config.score_scale
    return self.after(x, window_attention(query, context, window, mask))


def window_attention(query, context, window, mask):
  """Attends to the context and to the own window, under one softmax.

  Args:
    query: [B, N, G, H, Dh] float32, scaled.
    context: keys and values [B, Hkv, S, Dh], shared by the N windows.
    window: keys and values [B, N, Hkv, G, Dh].
    mask: [B, N, S] bool, what each window sees of the context.

  Returns:
    [B, N, G, H * Dh] float32.
  """
  batch, windows, slots, heads, head_dim = query.shape
  kv_heads, size = context[0].shape[1:3]
  group = heads // kv_heads
  query = query.reshape(batch, windows, slots, kv_heads, group, head_dim)
  query = query.transpose(0, 3, 1, 4, 2, 5)  # [B, Hkv, N, H/Hkv, G, Dh]
  flat = query.reshape(batch, kv_heads, -1, head_dim)
  f32 = dict(preferred_element_type=jnp.float32)
  outer = jnp.einsum(
    'bkqd,bksd->bkqs', flat.astype(context[0].dtype), context[0], **f32
  ).reshape(query.shape[:-1] + (size,))
  outer = jnp.where(mask[:, None, :, None, None], outer, -1e30)
  inner = jnp.einsum('bknrgd,bnkcd->bknrgc', query, window[0])
  top = jnp.maximum(outer.max(-1), inner.max(-1))[..., None]
  top = jax.lax.stop_gradient(top)
  outer, inner = jnp.exp(outer - top), jnp.exp(inner - top)
  total = outer.sum(-1, keepdims=True) + inner.sum(-1, keepdims=True)
  out = jnp.einsum(
    'bkqs,bksd->bkqd',
    outer.reshape(batch, kv_heads, -1, size).astype(context[1].dtype),
    context[1],
    **f32,
  ).reshape(query.shape)
  out = (out + jnp.einsum('bknrgc,bnkcd->bknrgd', inner, window[1])) / total
  out = out.transpose(0, 2, 4, 1, 3, 5)
  return out.reshape(batch, windows, slots, heads * head_dim)
