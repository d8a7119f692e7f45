"""A layer of a diffusion drafter: windows that see a context and themselves.

It is one of the verifier's family, so that it can start as one of the
verifier's last layers whatever that has: biases, norms of heads, the RoPE of a
local layer. Only the window of a local layer is left out: what drafters see of
the context is limited elsewhere, for all layers alike.
"""

import jax
import jax.numpy as jnp

from specdiff_jax.models import attention
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import transformer_layer
from specdiff_jax.models import views


class DrafterLayer(transformer_layer.LayerParts):
  """A layer of the verifier's family over windows of slots."""

  def context(self, x, cos, sin):
    """Maps x [..., T, E] to rotated keys and values [..., Hkv, T, Dh]."""
    return self.keys_values(self.norm(x, self.attention_norm), cos, sin)

  def __call__(self, x, context, mask, seen, cos, sin):
    """Updates x [B, N, G, E]; mask [B, N, S] over the context, and its span."""
    h = self.norm(x, self.attention_norm)
    if x.shape[1] == 1:
      view = views.View(cos[:, 0], sin[:, 0], mask, seen)
      found = self.attended(h[:, 0], cache_lib.Layer(*context), view)
      if found:
        return self.after(x, found[0][:, None])
    query, *window = self.queries_keys_values(h, cos, sin)
    query = query * self.config.score_scale
    return self.after(x, window_attention(query, context, window, mask, seen))


def window_attention(query, context, window, mask, seen=None):
  """Attends to the context and to the own window, under one softmax.

  Args:
    query: [B, N, G, H, Dh] float32, scaled.
    context: keys and values [B, Hkv, S, Dh], shared by the N windows.
    window: keys and values [B, N, Hkv, G, Dh].
    mask: [B, N, S] bool, what each window sees of the context.
    seen: the mask's span; None where all of it is read, as for a gradient.

  Returns:
    [B, N, G, H * Dh] float32.
  """
  batch, windows, slots, heads, head_dim = query.shape
  layer = cache_lib.Layer(*context)
  query = query.reshape(batch, windows, slots, layer.kv_heads, -1, head_dim)
  query = query.transpose(0, 3, 1, 4, 2, 5)  # [B, Hkv, N, H/Hkv, G, Dh]
  outer = attention.part(query, layer, mask[:, None, :, None, None], seen)
  scores = jnp.einsum('bknrgd,bnkcd->bknrgc', query, window[0])
  top = jax.lax.stop_gradient(scores.max(-1))
  weights = jnp.exp(scores - top[..., None])
  out = jnp.einsum('bknrgc,bnkcd->bknrgd', weights, window[1])
  inner = attention.Part(out, weights.sum(-1), top)
  out = attention.merged(outer, inner).transpose(0, 2, 4, 1, 3, 5)
  return out.reshape(batch, windows, slots, heads * head_dim)
