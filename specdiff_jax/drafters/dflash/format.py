"""DFlash drafters on disk, in z-lab's form: config.json and tensor names."""

from collections.abc import Mapping
import os
from typing import Any

from specdiff_jax.checkpoints import export
from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints.hf import names
from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.drafters import published
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.models import config as config_lib

Raw = published.Raw

# What only training, serving or the reader of a file needs: keys of
# dflash_config that leave the network as it is, whatever they say.
_KEYS = frozenset({
    'mask_token_id', 'target_layer_ids', 'block_size', 'mask_token',
    'num_target_layers', 'num_anchors', 'loss_decay_factor', 'loss_type',
    'training_objective', 'version',
})  # fmt: skip
# Keys of either place -> the values with which our network is theirs.
_ONLY: Mapping[str, tuple[Any, ...]] = {
  'is_causal': (False,),
  'causal': (False,),
  'use_causal_mask': (False,),
  'use_sliding_window': (False,),
  'use_swa': (False,),
  'attention_bias': (False,),
  'input_embedding_scale': (1.0,),
  'output_multiplier': (1.0,),
  'final_logit_softcapping': (),
  'sample_from_anchor': (False,),
  'shift_label': (False,),
  'use_aux_hidden_state': (True,),
  'use_confidence_head': (False,),
  'projector_type': ('dflash',),
  'draft_vocab_size': (),  # beside the verifier's: see _dflash
}
# What the config.json of a sparse verifier leaves in that of its drafter, whose
# layers are dense: no DFlash network reads these.
_LEFT_OVER = (
    'num_experts', 'num_local_experts', 'n_routed_experts',
    'num_experts_per_tok', 'moe_intermediate_size',
    'shared_expert_intermediate_size', 'mlp_only_layers',
)  # fmt: skip
_WINDOWS = ('swa_window_size', 'sliding_window', 'window_size')


def read(file: str, raw: Raw) -> published.Published:
  """DFlash, whose block and verifier layers `dflash_config` tells.

  Of its layers all see the whole text and each other's tokens; windows and
  causal blocks, of which others write, are refused by their name.
  """
  own = raw.get('dflash_config')
  own = own if isinstance(own, dict) else {}
  _agreeing(file, raw, own)
  for key, value in own.items():
    if value is None or key in _KEYS or key in _ONLY:
      continue
    if key in _WINDOWS and own.get('use_swa') is False:
      continue  # it says that there is none
    raise errors.InputError(
      f'{file}: dflash_config.{key} is {printing.short(value)}, which may '
      'change the network and is not supported. Take another drafter.'
    )
  raw = {**raw, **{k: v for k, v in own.items() if k not in _WINDOWS}}
  count = hf_sizes.integer(file, raw, 'num_hidden_layers')
  only = {
    **_ONLY,
    'layer_types': (['full_attention'] * count,),
    'draft_vocab_size': (raw.get('vocab_size'),),
  }
  for key, good in only.items():
    if raw.get(key) not in (None, *good):
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}; only '
        f'{" or ".join(map(printing.short, good or (None,)))} is supported. '
        'Take another drafter.'
      )
  for key in ('swa_window_size', 'window_size'):
    if raw.get(key) and raw.get('use_swa') is not False:
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}, but windows are not '
        'supported. Take another drafter.'
      )
  layers = raw.get('target_layer_ids')
  if (
    not isinstance(layers, list)
    or not 0 < len(layers) <= config_lib.MOST_LAYERS
    or not all(type(x) is int and x >= 0 for x in layers)
  ):
    raise errors.InputError(
      f'{file}: dflash_config.target_layer_ids is {printing.short(layers)}, '
      "where a list of numbers of the verifier's layers is expected; "
      'download the file again.'
    )
  unread = dict.fromkeys(
    ('input_embedding_scale', 'output_multiplier', *_LEFT_OVER)
  )
  network = published.like(
      'Qwen3ForCausalLM', file, raw, tie_word_embeddings=True,
      final_logit_softcapping=None, causal=None, **unread,
  )  # fmt: skip
  sizes = dflash.DFlashConfig(
    network=network,
    features=tuple(layers),
    block=hf_sizes.integer(file, raw, 'block_size', 16),
    mask_id=published.mask(file, raw),
  )
  ours = {theirs: name for name, theirs in tensor_names(sizes).items()}
  name = lambda theirs: ours.get(theirs, '')
  return published.Published(sizes, name, sizes.mask_id, 'dflash')


def _agreeing(file: str, raw: Raw, own: Raw) -> None:
  """Raises InputError where dflash_config says otherwise than what is above."""
  for key, value in own.items():
    if None not in (value, raw.get(key)) and raw[key] != value:
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}, but '
        f'dflash_config.{key} is {printing.short(value)}; give one of them.'
      )


_OTHERS = {
  'fuse': 'fc.weight',
  'context_norm': 'hidden_norm.weight',
  'final_norm': 'norm.weight',
}


def tensor_names(config: dflash.DFlashConfig) -> dict[str, str]:
  """Returns z-lab's name of each of our tensors.

  Example: tensor_names(config)['layer_0.up'] == 'layers.0.mlp.up_proj.weight'
  """
  usual = names.names(config.network)
  return {
    ours: _OTHERS.get(ours) or usual[ours].removeprefix('model.')
    for ours in dflash.shapes(config)
  }


def write(
  source: sources.Source, folder: str, dtype, progress
) -> dict[str, Any]:
  """Writes z-lab's form, which vLLM and SGLang read too."""
  sizes = source.config
  if not isinstance(sizes, dflash.DFlashConfig):
    kind = type(sizes).__name__.removesuffix('Config')
    raise errors.InputError(
      f'{source.name}: this is a {kind}, not a DFlash drafter, and no other '
      'network can be written so; take --format=hf or native.'
    )
  summary = export.write_hf(source, folder, dtype, progress)
  file = os.path.join(folder, 'config.json')
  raw = files.read_json(file)
  own = {
    'target_layer_ids': list(sizes.features),
    'mask_token_id': sizes.mask_id,
    'block_size': sizes.block,
  }
  raw['dflash_config'] = {**(raw.get('dflash_config') or {}), **own}
  raw['block_size'] = sizes.block  # some look for it here, some there
  export.write_json(file, raw)
  return summary
