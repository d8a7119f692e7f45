"""DFlash drafters in the form of vLLM's speculators: the same tensors.

Its config.json has the layers under `transformer_layer_config`, and counts the
verifier's layers from the embedding on, one higher than z-lab's.
"""

import os
from typing import Any

from specdiff_jax.checkpoints import sources
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.drafters import published
from specdiff_jax.drafters.dflash import format as format_lib
from specdiff_jax.drafters.dflash import variants

Raw = published.Raw
# What only its own programs read.
_UNREAD = frozenset({
    'architectures', 'speculators_version', 'speculators_config', 'dtype',
    'torch_dtype', 'transformers_version', 'auto_map', 'model_type',
    'tie_word_embeddings', 'has_no_defaults_at_init', 'loss_config',
})  # fmt: skip
_READ = (
    'transformer_layer_config', 'block_size', 'aux_hidden_state_layer_ids',
    'mask_token_id', 'draft_vocab_size', 'num_target_layers',
    'speculators_model_type', *variants.KEYS,
)  # fmt: skip

_ARCHITECTURES = {
  'dflash': 'DFlashSpeculator',
  'dflash2': variants.ARCHITECTURES['dflash2'],
  'dspark': 'DSparkSpeculator',
}


def read(file: str, raw: Raw) -> published.Published:
  """Reads config.json; what it asks for besides is refused by its name."""
  layers = raw.get('transformer_layer_config')
  if not isinstance(layers, dict):
    raise errors.InputError(
      f'{file}: transformer_layer_config is {printing.short(layers)}, where '
      'the config of the layers is expected; download the file again.'
    )
  key = 'aux_hidden_state_layer_ids'
  ids = published.layers(file, key, raw.get(key), 1)
  kind = format_lib.speculators_type(raw)
  if kind not in tuple(_ARCHITECTURES):  # it may be no text
    raise errors.InputError(
      f'{file}: speculators_model_type is {printing.short(kind)}; only '
      f'{", ".join(_ARCHITECTURES)} are supported. Take another drafter.'
    )
  if kind == 'dspark' and type(raw.get('sample_from_anchor')) is not bool:
    raise errors.InputError(
      f'{file}: sample_from_anchor is missing, which older programs take for '
      'false and newer ones for true. Add it: true where block_size tokens are '
      'drafted, false where it is one less.'
    )
  only = {
    'sliding_window_non_causal': (False,),
    'target_hidden_size': (layers.get('hidden_size'),),
  }
  published.only(file, raw, only)
  published.known(file, raw, {*_UNREAD, *_READ, *only})
  own = {
    'target_layer_ids': list(ids),
    'mask_token_id': raw.get('mask_token_id'),
  }
  same = ('block_size', 'num_target_layers', 'draft_vocab_size', *variants.KEYS)
  more = {key: raw.get(key) for key in same}
  more['architectures'] = [variants.ARCHITECTURES[kind]]
  return format_lib.read(file, {**layers, **more, 'dflash_config': own})


def write(
  source: sources.Source, folder: str, dtype, progress
) -> dict[str, Any]:
  """Writes what vLLM and speculators load."""
  sizes = format_lib.sizes_of(source)
  kind = variants.kind_of(source.name, sizes)
  proposal = {'proposal_type': 'greedy', 'speculative_tokens': sizes.gamma}
  config = {
    'architectures': [_ARCHITECTURES[kind]],
    'speculators_model_type': kind,
    'speculators_version': '0.9.0',
    'speculators_config': {
      'algorithm': kind,
      'proposal_methods': [proposal],
      'default_proposal_method': 'greedy',
      'verifier': {'name_or_path': _verifier(source), 'architectures': []},
    },
    'transformer_layer_config': format_lib.layers_config(sizes),
    'draft_vocab_size': sizes.network.vocab_size,
    'target_hidden_size': sizes.network.width,
    'block_size': sizes.block,
    'aux_hidden_state_layer_ids': [x + 1 for x in sizes.features],
    'mask_token_id': sizes.mask_id,
    'sliding_window_non_causal': False,
    'sample_from_anchor': sizes.from_anchor,
    **variants.keys(kind, sizes),
  }
  return format_lib.write_new(source, folder, dtype, progress, config)


def _verifier(source: sources.Source) -> str | None:
  """Returns the name of the verifier, where it is told."""
  if not source.folder:
    return source.drafter.get('verifier_source')
  raw = files.read_json(os.path.join(source.folder, 'config.json'))
  told = raw.get('speculators_config')
  told = told.get('verifier') if isinstance(told, dict) else None
  return told.get('name_or_path') if isinstance(told, dict) else None
