"""EAGLE-3 drafters on disk, as their authors, SGLang and vLLM have them."""

from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.checkpoints.hf import names
from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.core import errors
from specdiff_jax.drafters import published
from specdiff_jax.drafters.eagle import network as eagle

Raw = published.Raw
_LAYERS = 'eagle_aux_hidden_state_layer_ids'
# Values with which our network is theirs.
_ONLY: Mapping[str, tuple[Any, ...]] = {
  'num_hidden_layers': (1,),
  'attention_bias': (False,),
  'norm_before_residual': (False,),
  'norm_before_fc': (False,),
  'use_aux_hidden_state': (True,),
}
_OTHERS = {
  'fuse': 'fc.weight',
  'final_norm': 'norm.weight',
  'head': 'lm_head.weight',
  'layer_0.hidden_norm': 'midlayer.hidden_norm.weight',
}
# Spellings of the same names: inside a model, and by vLLM.
_SPELLINGS = re.compile(r'^(model\.)?(layers\.0\.|midlayer\.)?')
# Which tokens can be drafted (`vocab`), the verifier's embedding, a table.
_APART = re.compile(r'd2t|t2d|embed_tokens\.weight|.*rotary_emb\.inv_freq')


def read(file: str, raw: Raw) -> published.Published:
  """EAGLE-3, whose verifier layers are the usual ones, or in `eagle_config`."""
  own = raw.get('eagle_config')
  own = own if isinstance(own, dict) else {}
  published.known(file, own, (*_ONLY, _LAYERS), 'eagle_config.')
  hidden = {'target_hidden_size': (raw.get('hidden_size'),)}
  published.only(file, {**raw, **own}, {**_ONLY, **hidden})
  network = published.like(
    'LlamaForCausalLM', file, raw, tie_word_embeddings=True
  )
  sizes = eagle.EagleConfig(
    network=network,
    features=_features(file, raw, own),
    vocab=hf_sizes.integer(file, raw, 'draft_vocab_size', network.vocab_size),
  )
  ours = {theirs: name for name, theirs in tensor_names(sizes).items()}

  def our_name(theirs: str) -> str | None:
    usual = _SPELLINGS.sub(lambda x: 'midlayer.' if x[2] else '', theirs)
    return None if _APART.fullmatch(usual) else ours.get(usual, '')

  return published.Published(sizes, our_name, published.NO_MASK, 'eagle')


def _features(file: str, raw: Raw, own: Raw) -> tuple[int, ...]:
  """Returns the verifier layers, 0-based; () where they are the usual ones.

  Those beside the other keys, not in `eagle_config`, are counted from the
  embedding on (vLLM).
  """
  outer, inner = raw.get(_LAYERS), own.get(_LAYERS)
  if inner is not None:
    return published.layers(file, _LAYERS, inner)
  return () if outer is None else published.layers(file, _LAYERS, outer, 1)


def tensor_names(config: eagle.EagleConfig) -> dict[str, str]:
  """Returns their name of each of our tensors.

  Example: tensor_names(config)['layer_0.up'] == 'midlayer.mlp.up_proj.weight'
  """
  usual = names.names(config.network)
  return {
    ours: _OTHERS.get(ours)
    or usual[ours].replace('model.layers.0.', 'midlayer.')
    for ours in eagle.shapes(config)
  }


def vocab(folder: str, config: eagle.EagleConfig) -> np.ndarray:
  """Returns the verifier's ids [vocab] of the tokens that can be drafted.

  That is i + d2t[i]; without d2t, which a whole vocabulary may lack, i.

  Raises:
    InputError: d2t is missing, of another size, or leads to no token.
  """
  own, size = np.arange(config.vocab), config.network.vocab_size
  found = directory.tensors(folder)
  if 'd2t' not in found:
    if config.vocab == size:
      return own
    raise errors.InputError(
      f"{folder}: tensor 'd2t', which says what the {config.vocab} tokens of "
      f'the drafter are among the {size} of the verifier, is missing; the '
      'weights are incomplete, download them again.'
    )
  tensor = found['d2t']
  if tensor.shape != own.shape or tensor.kind not in ('I64', 'I32'):
    raise errors.InputError(
      f"{tensor.path}: tensor 'd2t' has shape {tensor.shape} and is stored as "
      f'{tensor.kind}, but it has to be {config.vocab} whole numbers '
      '(draft_vocab_size); weights and config belong to different models.'
    )
  ids = own + stored.read(tensor)
  if ids.min() < 0 or ids.max() >= size or len(np.unique(ids)) < len(ids):
    raise errors.InputError(
      f"{tensor.path}: tensor 'd2t' leads to tokens outside 0 to {size - 1}, "
      'or twice to one. The file is damaged; download it again.'
    )
  return ids
