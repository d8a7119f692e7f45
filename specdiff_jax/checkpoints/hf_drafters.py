"""Published diffusion drafters: what the config.json of each family says.

Most are networks of other families that see to both sides; what makes them
drafters, mask token and alignment, is read here. Sources: the models' own
config.json and modelling files. Tensor names are in `drafter_names`.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import functools
import os
from typing import Any
from typing import NamedTuple

from specdiff_jax.checkpoints import drafter_names
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import architectures as hf_architectures
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import ddit
from specdiff_jax.models import dflash

Raw = Mapping[str, Any]  # config.json
NO_MASK = -1


class Published(NamedTuple):
  """A drafter as its directory describes it.

  `mask_id` is NO_MASK where only the tokenizer tells it; `shifted` is that of
  `masked_lm.MaskedLM`, and means nothing for a DFlash drafter.
  """

  sizes: Any  # of its network, or a DFlashConfig
  our_name: Callable[[str], str | None]  # as `hf_names.our_name`
  mask_id: int
  shifted: bool = False


def read(folder: str, family: str = '') -> Published:
  """Reads config.json of a drafter's directory.

  Args:
    folder: of the drafter.
    family: one of FAMILIES, for a model whose config.json does not tell it.

  Raises:
    InputError: names the file, and what in it is not known or not supported.
  """
  file = os.path.join(folder, 'config.json')
  raw = files.read_json(file)
  try:
    return FAMILIES[family or _family(file, raw)](file, raw)
  except errors.InputError as e:
    if str(e).startswith(file):
      raise
    raise errors.InputError(f'{file}: {e}') from e


def tensors(
  folder: str, published: Published
) -> Iterator[tuple[str, str, stored.Tensor]]:
  """Yields (our name, name in the file, tensor) as `huggingface` does."""
  return directory.iterate_tensors(folder, published.sizes, published.our_name)


def architectures(raw: Raw) -> list[str]:
  """Returns what config.json calls the network: architectures, or its type."""
  found = raw.get('architectures') or [raw.get('model_type')]
  found = found if isinstance(found, list) else [found]
  return [str(name)[:80] for name in found]


def _family(file: str, raw: Raw) -> str:
  """Returns the family that config.json tells."""
  found = architectures(raw)
  for name in found:
    if name in KNOWN:
      return KNOWN[name]
  if set(found) & set(hf_architectures.FAMILIES):
    hint = (
      'which is that of an autoregressive model. If it is a diffusion '
      "drafter of this form, say which: config.masked_lm.family is 'diffugpt'"
      " or 'diffullama'"
    )
  else:
    hint = f'which is not known here; known: {", ".join(KNOWN)}'
  raise errors.InputError(
    f'{file}: the drafter has the architecture {printing.names(found)}, {hint}.'
  )


def _like(architecture: str, file: str, raw: Raw, **more: Any):
  """Returns the sizes of a model that is another one without its causal mask.

  What is said of the mask is of no account, nor are biases that the
  architecture has in any case.
  """
  ours = {**raw, 'attention_bias': None, 'is_causal': None, **more}
  if ours.get('tie_word_embeddings') is None:
    names = directory.tensor_files(os.path.dirname(file))
    ours['tie_word_embeddings'] = 'lm_head.weight' not in names
  return families.config_of(architecture, file, ours)


def _masked(file, sizes, rename, mask_id, shifted) -> Published:
  """Returns a drafter whose tensors have usual names after `rename`."""
  sizes = families.untied(os.path.dirname(file), sizes, rename)
  own = lambda name: hf_names.our_name(sizes, rename(name))
  return Published(sizes, own, mask_id, shifted)


def _mask(file: str, raw: Raw, default: int | None = None) -> int:
  if default == NO_MASK and raw.get('mask_token_id') is None:
    return NO_MASK
  return hf_sizes.integer(file, raw, 'mask_token_id', default)


def _dream(file: str, raw: Raw) -> Published:
  """Dream and DiffuCoder: Qwen2.5 that was adapted."""
  sizes = _like('Qwen2ForCausalLM', file, raw)
  return _masked(file, sizes, str, _mask(file, raw), shifted=True)


def _a2d(architecture: str, file: str, raw: Raw) -> Published:
  """A2D: Llama or Qwen that was adapted, without a shift."""
  sizes = _like(architecture, file, raw)
  return _masked(file, sizes, str, _mask(file, raw, NO_MASK), shifted=False)


def _diffullama(file: str, raw: Raw) -> Published:
  """Llama 2 that was adapted; a word it already had is the mask."""
  sizes = _like('LlamaForCausalLM', file, raw)
  rename = functools.partial(drafter_names.unwrapped, 'model')
  return _masked(file, sizes, rename, _mask(file, raw, 811), shifted=True)


def _diffugpt(file: str, raw: Raw) -> Published:
  """GPT-2 that was adapted; the small one has no token for the mask alone."""
  sizes = _like('GPT2LMHeadModel', file, raw, tie_word_embeddings=True)
  own = 50257 if sizes.vocab_size > 50257 else 10541
  rename = functools.partial(drafter_names.unwrapped, 'transformer')
  return _masked(file, sizes, rename, _mask(file, raw, own), shifted=True)


def _llada(file: str, raw: Raw) -> Published:
  """LLaDA: Llama under OLMo's names."""
  # Without these a network would be that of OLMo, not of a published LLaDA.
  for key, value in {
      'block_type': 'llama', 'activation_type': 'silu', 'rope': True,
      'layer_norm_type': 'rms', 'include_bias': False,
      'weight_tying': hf_sizes.flag(file, raw, 'weight_tying'),
  }.items():  # fmt: skip
    if raw.get(key) is None:
      raise errors.InputError(
        f'{file}: {key} is not there, and without it LLaDA would be another '
        f'network than the published ones; add it ({value!r} in those), or '
        'download the file again.'
      )
    _only(file, raw, {key: value})
  _only(file, raw, {
      'alibi': False, 'include_qkv_bias': False, 'attention_layer_norm': False,
      'input_emb_norm': False, 'scale_logits': False,
      'multi_query_attention': False, 'clip_qkv': None,
  })  # fmt: skip

  def size(key, default=None):
    return hf_sizes.number(file, raw, key, default)

  sizes = families.config_of('LlamaForCausalLM', file, {
      'vocab_size': size('embedding_size', raw.get('vocab_size')),
      'hidden_size': size('d_model'),
      'num_hidden_layers': size('n_layers'),
      'num_attention_heads': size('n_heads'),
      'num_key_value_heads': size('n_kv_heads', raw.get('n_heads')),
      'intermediate_size': size('mlp_hidden_size'),
      'max_position_embeddings': size('max_sequence_length'),
      'rms_norm_eps': size('rms_norm_eps', 1e-5),
      'rope_theta': size('rope_theta', 10000.0),
      'tie_word_embeddings': hf_sizes.flag(file, raw, 'weight_tying'),
      'quantization_config': raw.get('quantization_config'),
  })  # fmt: skip
  mask = _mask(file, raw)  # absent it would be 50256, a usual word
  return _masked(file, sizes, drafter_names.llama_name, mask, shifted=False)


def _mdlm(file: str, raw: Raw) -> Published:
  """MDLM: a DDiT, which needs no noise level."""
  _only(file, raw, {'time_conditioning': False, 'causal': False})
  keys = {
      'vocab_size': 'vocab_size', 'width': 'hidden_dim', 'layers': 'n_blocks',
      'heads': 'n_heads', 'condition_width': 'cond_dim',
      'max_positions': 'model_length',
  }  # fmt: skip
  sizes = ddit.DDiTConfig(
    **{
      ours: hf_sizes.integer(file, raw, theirs) for ours, theirs in keys.items()
    }
  )
  ours = {theirs: name for name, theirs in drafter_names.mdlm(sizes).items()}

  def our_name(name):
    return None if name.endswith('inv_freq') else ours.get(name, '')

  # Its tokenizer has no mask: one is added behind its tokens.
  return Published(sizes, our_name, sizes.vocab_size - 1)


# What only training, serving or the reader of a file needs: keys of
# dflash_config that leave the network as it is, whatever they say.
_DFLASH_KEYS = frozenset({
    'mask_token_id', 'target_layer_ids', 'block_size', 'mask_token',
    'num_target_layers', 'num_anchors', 'loss_decay_factor', 'loss_type',
    'training_objective', 'version',
})  # fmt: skip
# Keys of either place -> the values with which our network is theirs.
_DFLASH_ONLY: Mapping[str, tuple[Any, ...]] = {
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
_DFLASH_LEFT_OVER = (
    'num_experts', 'num_local_experts', 'n_routed_experts',
    'num_experts_per_tok', 'moe_intermediate_size',
    'shared_expert_intermediate_size', 'mlp_only_layers',
)  # fmt: skip
_DFLASH_WINDOWS = ('swa_window_size', 'sliding_window', 'window_size')


def _dflash(file: str, raw: Raw) -> Published:
  """DFlash, whose block and verifier layers `dflash_config` tells.

  Of its layers all see the whole text and each other's tokens; windows and
  causal blocks, of which others write, are refused by their name.
  """
  own = raw.get('dflash_config')
  own = own if isinstance(own, dict) else {}
  _agreeing(file, raw, own)
  for key, value in own.items():
    if value is None or key in _DFLASH_KEYS or key in _DFLASH_ONLY:
      continue
    if key in _DFLASH_WINDOWS and own.get('use_swa') is False:
      continue  # it says that there is none
    raise errors.InputError(
      f'{file}: dflash_config.{key} is {printing.short(value)}, which may '
      'change the network and is not supported. Take another drafter.'
    )
  raw = {**raw, **{k: v for k, v in own.items() if k not in _DFLASH_WINDOWS}}
  count = hf_sizes.integer(file, raw, 'num_hidden_layers')
  only = {
    **_DFLASH_ONLY,
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
  good = isinstance(layers, list) and 0 < len(layers) <= config_lib.MOST_LAYERS
  if not good or not all(type(x) is int and x >= 0 for x in layers):
    raise errors.InputError(
      f'{file}: dflash_config.target_layer_ids is {printing.short(layers)}, '
      "where a list of numbers of the verifier's layers is expected; "
      'download the file again.'
    )
  unread = dict.fromkeys(
    ('input_embedding_scale', 'output_multiplier', *_DFLASH_LEFT_OVER)
  )
  network = _like(
      'Qwen3ForCausalLM', file, raw, tie_word_embeddings=True,
      final_logit_softcapping=None, causal=None, **unread,
  )  # fmt: skip
  sizes = dflash.DFlashConfig(
    network=network,
    features=tuple(layers),
    block=hf_sizes.integer(file, raw, 'block_size', 16),
    mask_id=_mask(file, raw),
  )
  ours = {theirs: name for name, theirs in drafter_names.dflash(sizes).items()}
  return Published(sizes, lambda name: ours.get(name, ''), sizes.mask_id)


def _agreeing(file: str, raw: Raw, own: Raw) -> None:
  """Raises InputError where dflash_config says otherwise than what is above."""
  for key, value in own.items():
    if None not in (value, raw.get(key)) and raw[key] != value:
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}, but '
        f'dflash_config.{key} is {printing.short(value)}; give one of them.'
      )


def _only(file: str, raw: Raw, wanted: Raw) -> None:
  """Raises InputError where a key is there with another value."""
  for key, value in wanted.items():
    if raw.get(key) not in (None, value):
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}; only {value!r} is '
        'supported. Take another drafter.'
      )


FAMILIES: Mapping[str, Callable[[str, Raw], Published]] = {
  'dream': _dream,
  'llada': _llada,
  'a2d_llama': functools.partial(_a2d, 'LlamaForCausalLM'),
  'a2d_qwen2': functools.partial(_a2d, 'Qwen2ForCausalLM'),
  'a2d_qwen3': functools.partial(_a2d, 'Qwen3ForCausalLM'),
  'diffullama': _diffullama,
  'diffugpt': _diffugpt,
  'mdlm': _mdlm,
  'dflash': _dflash,
}
# What config.json calls them: architectures, or else model_type.
KNOWN = {
  'DreamModel': 'dream',
  'Dream': 'dream',
  'LLaDAModelLM': 'llada',
  'llada': 'llada',
  'A2DLlamaLMHeadModel': 'a2d_llama',
  'a2d-llama': 'a2d_llama',
  'A2DQwen2LMHeadModel': 'a2d_qwen2',
  'a2d-qwen2': 'a2d_qwen2',
  'A2DQwen3LMHeadModel': 'a2d_qwen3',
  'a2d-qwen3': 'a2d_qwen3',
  'MDLM': 'mdlm',
  'mdlm': 'mdlm',
  'DFlashDraftModel': 'dflash',
}
