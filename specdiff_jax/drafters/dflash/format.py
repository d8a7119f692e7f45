"""DFlash drafters on disk, in z-lab's form: config.json and tensor names.

What is written of a drafter that was trained here says in the metadata of its
tensors which layers, mask and verifier it has, so that a config.json that was
changed, or put beside other weights, is found.
"""

from collections.abc import Mapping
import json
import os
from typing import Any

import numpy as np

from specdiff_jax.checkpoints import export
from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.checkpoints.hf import names
from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import family
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import published
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.drafters.dflash import variants
from specdiff_jax.text import tokenizer as tokenizer_lib

Raw = published.Raw

# What only training, serving or the reader of a file needs: keys of
# dflash_config that leave the network as it is, whatever they say.
_KEYS = frozenset({
    'mask_token_id', 'target_layer_ids', 'block_size', 'mask_token',
    'num_target_layers', 'loss_decay_factor', 'loss_type',
    'training_objective', 'version', 'training_mode', 'prefix_weight_base',
    *variants.KEYS,
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
  'sample_from_anchor': (False, True),
  'shift_label': (False,),
  'use_aux_hidden_state': (True,),
  'use_confidence_head': (False,),
  'projector_type': ('dflash',),
  'draft_vocab_size': (),  # beside the verifier's: see `read`
}
# What the config.json of a sparse verifier leaves in that of its drafter, whose
# layers are dense: no DFlash network reads these.
_LEFT_OVER = (
    'num_experts', 'num_local_experts', 'n_routed_experts',
    'num_experts_per_tok', 'moe_intermediate_size',
    'shared_expert_intermediate_size', 'mlp_only_layers',
)  # fmt: skip
_WINDOWS = ('swa_window_size', 'sliding_window', 'window_size')
_LAYERS = 'dflash_config.target_layer_ids'


def read(file: str, raw: Raw) -> published.Published:
  """DFlash and its kin, whose block and verifier layers `dflash_config` tells.

  A sliding layer of `layer_types` sees the `sliding_window` tokens that end with
  a slot. Other windows and causal blocks, of which others write, are refused by
  their name.
  """
  raw = variants.flat(raw)
  own = raw.get('dflash_config')
  own = own if isinstance(own, dict) else {}
  _agreeing(file, raw, own)
  # Where it says that there is none, a window may stand there.
  windows = _WINDOWS if own.get('use_swa') is False else ()
  published.known(file, own, {*_KEYS, *_ONLY, *windows}, 'dflash_config.')
  raw = {**raw, **{k: v for k, v in own.items() if k not in _WINDOWS}}
  only = {**_ONLY, 'draft_vocab_size': (raw.get('vocab_size'),)}
  kinds = raw.get('layer_types')
  if isinstance(kinds, list) and hf_sizes.LOCAL in kinds:
    del only['use_sliding_window']
  published.only(file, raw, only)
  for key in ('swa_window_size', 'window_size'):
    if raw.get(key) and raw.get('use_swa') is not False:
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}, but windows are not '
        'supported. Take another drafter.'
      )
  layers = published.layers(file, _LAYERS, raw.get('target_layer_ids'))
  count = hf_sizes.integer(file, raw, 'num_target_layers', 0)
  _check_counting(file, layers, count)
  unread = dict.fromkeys(
    ('input_embedding_scale', 'output_multiplier', *_LEFT_OVER, *variants.KEYS)
  )
  network = published.like(
      'Qwen3ForCausalLM', file, raw, tie_word_embeddings=True,
      final_logit_softcapping=None, causal=None, **unread,
  )  # fmt: skip
  sizes = dflash.DFlashConfig(
    network=network,
    features=layers,
    block=hf_sizes.integer(file, raw, 'block_size', 16),
    mask_id=published.mask(file, raw),
    verifier_layers=count,
    **variants.read(file, raw, network),
  )
  _as_written(file, sizes)
  ours = {theirs: name for name, theirs in tensor_names(sizes).items()}
  name = lambda theirs: (
    None if variants.is_spare(sizes, theirs) else ours.get(theirs, '')
  )
  return published.Published(sizes, name, sizes.mask_id, 'dflash')


def _check_counting(file: str, layers: tuple[int, ...], count: int) -> None:
  """Raises InputError where layers are those usual of `count`, but one more."""
  usual = dflash.published_features(count, len(layers)) if count else ()
  if usual and layers == tuple(layer + 1 for layer in usual):
    raise errors.InputError(
      f'{file}: {_LAYERS} is {list(layers)}, each one more than in published '
      f'drafters of verifiers with {count} layers, {list(usual)}: they are '
      'counted as in the speculators form. Subtract one from each.'
    )


def facts(folder: str) -> dict[str, str]:
  """Returns what the file of tensors says of itself, as written here."""
  path = os.path.join(folder, f'{directory.STEM}.safetensors')
  return safetensors_io.metadata(path) if os.path.isfile(path) else {}


def _facts(sizes: dflash.DFlashConfig) -> dict[str, str]:
  """Returns what config.json has to say of these tensors."""
  return {
    'target_layer_ids': json.dumps(sizes.features),
    'mask_token_id': str(sizes.mask_id),
    'block_size': str(sizes.block),
  }


def _as_written(file: str, sizes: dflash.DFlashConfig) -> None:
  """Raises InputError where the tensors were written with another config."""
  told = facts(os.path.dirname(file))
  for key, value in _facts(sizes).items():
    if told.get(key, value) != value:
      raise errors.InputError(
        f'{file}: {key} is {value}, but the tensors beside it were written '
        f'with {printing.short(told[key])}. Put that back, or take the '
        'weights of this config.'
      )


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
  usual = names.names(config.network) | variants.tensor_names(config.head)
  for i in range(config.layers if config.taps else 0):
    for conv in ('attention_conv', 'mlp_conv'):
      theirs = f'layers.{i}.{conv}.'
      usual[f'layer_{i}.{conv}'] = f'{theirs}base_kernel'
      usual[f'layer_{i}.{conv}_map'] = f'{theirs}kernel_projection.weight'
  return {
    ours: _OTHERS.get(ours) or usual[ours].removeprefix('model.')
    for ours in dflash.shapes(config)
  }


def trained(path: str, head: str = '') -> sources.Source:
  """Opens a file that `distill` wrote, as a drafter with the whole vocabulary.

  head: the file of a head that was trained on it, which is to lie beside it.
  """
  config: Any
  config, params, vocab = drafter_file.load(path, None, dflash.TrainedConfig)
  sizes = config.run_as
  if head:
    drafter = family.Trained(config, params, vocab, path)
    one, found = heads.load(head, drafter, None)
    sizes = variants.with_head(sizes, one)
    # It says nothing of tokens outside of the draft vocabulary.
    rows = found['successor']
    whole = np.zeros((sizes.network.vocab_size, one.rank), rows.dtype)
    whole[vocab] = rows
    params = {**params, 'head': {**found, 'successor': whole}}
  theirs = tensor_names(sizes)
  found = {
    name: stored.InMemory(np.asarray(value))
    for name, value in params_lib.flatten(params)
  }
  return sources.Source(
    name=path,
    form='hf',
    family='DFlashDraftModel',
    folder='',
    config=sizes,
    tensors=lambda: ((name, theirs[name], x) for name, x in found.items()),
    entries=list,
    tokenizer=lambda: tokenizer_lib.Tokenizer.bytes(257),
    drafter=safetensors_io.metadata(path),
  )


def sizes_of(source: sources.Source) -> dflash.DFlashConfig:
  """Returns the sizes of a DFlash drafter; InputError for any other network."""
  if isinstance(source.config, dflash.DFlashConfig):
    return source.config
  kind = type(source.config).__name__.removesuffix('Config')
  raise errors.InputError(
    f'{source.name}: this is a {kind}, not a DFlash drafter, and no other '
    'network can be written so; take --format=hf or native.'
  )


def write_new(
  source: sources.Source, folder: str, dtype, progress, config: Raw
) -> dict[str, Any]:
  """Writes tensors under z-lab's names, and a config.json of its own."""
  told = _facts(sizes_of(source))
  before = facts(source.folder) if source.folder else source.drafter
  if 'verifier' in before:
    told['verifier'] = before['verifier']
  tensors = {
    theirs: tensor
    for _, theirs, tensor in params_lib.checked(
      source.config, source.tensors(), source.name
    )
  }
  first = next(iter(tensors.values()))
  kind = np.dtype(dtype or first.dtype).name
  export.write_json(
    os.path.join(folder, 'config.json'), {**config, 'dtype': kind}
  )
  return export.write_tensors(
    folder, directory.STEM, tensors, dtype, progress, told
  )


def layers_config(sizes: dflash.DFlashConfig) -> dict[str, Any]:
  """Returns what a config.json says of the layers."""
  return {
    **families.hf_config(sizes.network),
    'tie_word_embeddings': False,
    'layer_types': hf_sizes.layer_types(sizes.network.local_layers),
  }


def write(
  source: sources.Source, folder: str, dtype, progress
) -> dict[str, Any]:
  """Writes z-lab's form, which vLLM and SGLang read too."""
  sizes = sizes_of(source)
  kind = variants.kind_of(source.name, sizes)
  if sizes.from_anchor and kind == 'dflash':
    raise errors.InputError(
      f'{source.name}: the first draft of this drafter is the output of the '
      'committed token (network.from_anchor), for which this form has no key '
      'but in DSpark; take --format=speculators, or --head a Markov head.'
    )
  own = {
    'target_layer_ids': list(sizes.features),
    'mask_token_id': sizes.mask_id,
    'block_size': sizes.block,
  }
  more = variants.keys(kind, sizes)
  if kind == 'dspark':
    # All of it stands beside the layers; vLLM asks for the bonus by its own name.
    more |= own | {'sample_from_anchor': sizes.from_anchor}
    more['dspark_bonus_anchor'] = not sizes.from_anchor
  else:
    own, more = own | more, {'block_size': sizes.block}
  # Some look for the block here, some there.
  both = {'dflash_config': own, **more}
  file = os.path.join(source.folder, 'config.json')
  raw = files.read_json(file) if source.folder else {}
  architecture = variants.ARCHITECTURES[kind]
  if architecture in published.architectures(raw) and not speculators_type(raw):
    summary = export.write_hf(source, folder, dtype, progress)
    file = os.path.join(folder, 'config.json')
    raw = files.read_json(file)
    both['dflash_config'] = {**(raw.get('dflash_config') or {}), **own}
    export.write_json(file, {**raw, **both})
    return summary
  config = {**layers_config(sizes), 'architectures': [architecture]}
  if sizes.verifier_layers:
    config['num_target_layers'] = sizes.verifier_layers
  return write_new(source, folder, dtype, progress, {**config, **both})


def speculators_type(raw: Raw) -> Any:
  """Returns what the speculators form calls a drafter; None in z-lab's."""
  return raw.get('speculators_model_type')
