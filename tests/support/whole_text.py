"""What networks say of a whole text, read at once and without a cache."""

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.models import networks
from specdiff_jax.models import views


def logits(config, params, ids):
  """Returns logits [T, V] of ids [T]."""
  model, variables = networks.network(config), {'params': params}
  tokens = jnp.asarray(ids, jnp.int32)[None]
  size = tokens.shape[1]
  mask = views.causal_mask(jnp.asarray([size]), size)
  state, _, _ = model.apply(variables, tokens, jnp.arange(size)[None], mask)
  return model.apply(variables, state, method='logits')[0]


_compiled_logits = jax.jit(logits, static_argnums=0)


def compiled_logits(config, params, ids, size):
  """Returns `logits`, compiled for texts that are padded to `size` tokens."""
  padded = np.pad(np.asarray(ids, np.int32), (0, size - len(ids)))
  return _compiled_logits(config, params, padded)[: len(ids)]


def their_logits(model, ids):
  """Returns `logits` of a model of `transformers`."""
  import torch

  with torch.no_grad():
    return model(torch.tensor(np.asarray(ids)[None])).logits[0].float().numpy()


def losses(logits_TxV, ids):
  """Returns -log p [T - 1] of each token of ids [T] after the first."""
  scores = jnp.asarray(logits_TxV)[:-1]
  taken = jnp.take_along_axis(scores, jnp.asarray(ids)[1:, None], axis=1)
  return np.asarray(jax.nn.logsumexp(scores, axis=1) - taken[:, 0])


def perplexity(logits_TxV, ids):
  """Returns the perplexity of ids [T] after the first."""
  return np.exp(losses(logits_TxV, ids).mean())
