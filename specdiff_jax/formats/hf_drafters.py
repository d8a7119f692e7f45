"""Published diffusion drafters: what the config.json of each family says.

Most are networks of other families that see to both sides; what makes them
drafters, mask token and alignment, is read here. Sources: the models' own
config.json and modelling files. Tensor names are in `drafter_names`.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import os
from typing import Any, NamedTuple

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.formats import drafter_names
from specdiff_jax.formats import hf_families
from specdiff_jax.formats import hf_names
from specdiff_jax.formats import huggingface
from specdiff_jax.formats import stored
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
  return huggingface.iterate_tensors(
      folder, published.sizes, published.our_name
  )


def _family(file: str, raw: Raw) -> str:
  """Returns the family that config.json tells."""
  found = raw.get('architectures') or [raw.get('model_type')]
  found = [str(x) for x in (found if isinstance(found, list) else [found])]
  for name in found:
    if name in KNOWN:
      return KNOWN[name]
  if set(found) & set(hf_families.FAMILIES):
    hint = (
        'which is that of an autoregressive model. If it is a diffusion '
        "drafter of this form, say which: config.masked_lm.family is 'diffugpt'"
        " or 'diffullama'"
    )
  else:
    hint = f'which is not known here; known: {", ".join(KNOWN)}'
  raise errors.InputError(
      f'{file}: the drafter has the architecture {", ".join(found)}, {hint}.'
  )


def _like(architecture: str, file: str, raw: Raw, **more: Any):
  """Returns the sizes of a model that is another one without its causal mask.

  What is said of the mask is of no account, nor are biases that the
  architecture has in any case.
  """
  ours = {**raw, 'attention_bias': None, 'is_causal': None, **more}
  if ours.get('tie_word_embeddings') is None:
    names = huggingface.tensor_files(os.path.dirname(file))
    ours['tie_word_embeddings'] = 'lm_head.weight' not in names
  return hf_families.config_of(architecture, file, ours)


def _masked(sizes, rename, mask_id, shifted) -> Published:
  """Returns a drafter whose tensors have usual names after `rename`."""
  own = lambda name: hf_names.our_name(sizes, rename(name))
  return Published(sizes, own, mask_id, shifted)


def _mask(file: str, raw: Raw, default: int | None = None) -> int:
  return hf_families.number(file, raw, 'mask_token_id', default)


def _dream(file: str, raw: Raw) -> Published:
  """Dream and DiffuCoder: Qwen2.5 that was adapted."""
  sizes = _like('Qwen2ForCausalLM', file, raw)
  return _masked(sizes, str, _mask(file, raw), shifted=True)


def _a2d(architecture: str, file: str, raw: Raw) -> Published:
  """A2D: Llama or Qwen that was adapted, without a shift."""
  sizes = _like(architecture, file, raw)
  return _masked(sizes, str, _mask(file, raw, NO_MASK), shifted=False)


def _diffullama(file: str, raw: Raw) -> Published:
  """Llama 2 that was adapted; a word it already had is the mask."""
  sizes = _like('LlamaForCausalLM', file, raw)
  rename = functools.partial(drafter_names.unwrapped, 'model')
  return _masked(sizes, rename, _mask(file, raw, 811), shifted=True)


def _diffugpt(file: str, raw: Raw) -> Published:
  """GPT-2 that was adapted; the small one has no token for the mask alone."""
  sizes = _like('GPT2LMHeadModel', file, raw, tie_word_embeddings=True)
  own = 50257 if sizes.vocab_size > 50257 else 10541
  rename = functools.partial(drafter_names.unwrapped, 'transformer')
  return _masked(sizes, rename, _mask(file, raw, own), shifted=True)


def _llada(file: str, raw: Raw) -> Published:
  """LLaDA: Llama under OLMo's names."""
  _only(file, raw, {
      'block_type': 'llama', 'activation_type': 'silu', 'rope': True,
      'layer_norm_type': 'rms', 'alibi': False, 'include_bias': False,
      'include_qkv_bias': False, 'attention_layer_norm': False,
      'input_emb_norm': False, 'scale_logits': False,
      'multi_query_attention': False,
  })  # fmt: skip

  def size(key, default=None):
    return hf_families.number(file, raw, key, default)

  sizes = hf_families.config_of('LlamaForCausalLM', file, {
      'vocab_size': size('embedding_size', raw.get('vocab_size')),
      'hidden_size': size('d_model'),
      'num_hidden_layers': size('n_layers'),
      'num_attention_heads': size('n_heads'),
      'num_key_value_heads': size('n_kv_heads', raw.get('n_heads')),
      'intermediate_size': size('mlp_hidden_size'),
      'max_position_embeddings': size('max_sequence_length'),
      'rms_norm_eps': size('rms_norm_eps', 1e-5),
      'rope_theta': size('rope_theta', 10000.0),
      'tie_word_embeddings': bool(raw.get('weight_tying', False)),
      'quantization_config': raw.get('quantization_config'),
  })  # fmt: skip
  mask = _mask(file, raw, 126336)
  return _masked(sizes, drafter_names.llama_name, mask, shifted=False)


def _mdlm(file: str, raw: Raw) -> Published:
  """MDLM: a DDiT, which needs no noise level."""
  _only(file, raw, {'time_conditioning': False, 'causal': False})
  keys = {
      'vocab_size': 'vocab_size', 'width': 'hidden_dim', 'layers': 'n_blocks',
      'heads': 'n_heads', 'condition_width': 'cond_dim',
      'max_positions': 'model_length',
  }  # fmt: skip
  sizes = ddit.DDiTConfig(**{
      ours: hf_families.number(file, raw, theirs)
      for ours, theirs in keys.items()
  })
  ours = {theirs: name for name, theirs in drafter_names.mdlm(sizes).items()}

  def our_name(name):
    return None if name.endswith('inv_freq') else ours.get(name, '')

  # Its tokenizer has no mask: one is added behind its tokens.
  return Published(sizes, our_name, sizes.vocab_size - 1)


def _dflash(file: str, raw: Raw) -> Published:
  """DFlash, whose block and verifier layers `dflash_config` tells."""
  own = raw.get('dflash_config')
  own = own if isinstance(own, dict) else {}
  raw = {**raw, **own}
  count = hf_families.number(file, raw, 'num_hidden_layers')
  _only(file, raw, {
      'is_causal': False, 'use_sliding_window': False, 'attention_bias': False,
      'input_embedding_scale': 1.0, 'output_multiplier': 1.0,
      'final_logit_softcapping': None, 'sample_from_anchor': False,
      'layer_types': ['full_attention'] * int(count),
  })  # fmt: skip
  layers = raw.get('target_layer_ids')
  good = isinstance(layers, list) and all(type(x) is int for x in layers)
  if not good:
    raise errors.InputError(
        f'{file}: dflash_config.target_layer_ids is {layers!r}, where a list '
        "of numbers of the verifier's layers is expected; download the file "
        'again.'
    )
  sizes = dflash.DFlashConfig(
      network=_like('Qwen3ForCausalLM', file, raw, tie_word_embeddings=True),
      features=tuple(layers),
      block=hf_families.number(file, raw, 'block_size', 16),
      mask_id=_mask(file, raw),
  )
  ours = {theirs: name for name, theirs in drafter_names.dflash(sizes).items()}
  return Published(sizes, lambda name: ours.get(name, ''), sizes.mask_id)


def _only(file: str, raw: Raw, wanted: Raw) -> None:
  """Raises InputError where a key is there with another value."""
  for key, value in wanted.items():
    if raw.get(key) not in (None, value):
      raise errors.InputError(
          f'{file}: {key} is {raw[key]!r}; only {value!r} is supported. Take '
          'another drafter.'
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
