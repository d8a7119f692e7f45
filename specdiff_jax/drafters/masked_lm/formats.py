"""Published masked language models: what the config.json of each form says.

Most are networks of other families that see to both sides; what makes them
drafters, mask token and alignment, is read here. Sources: the models' own
config.json and modelling files. Tensor names are in `names`.
"""

from collections.abc import Callable, Mapping
import functools
import os

from specdiff_jax.checkpoints.hf import families
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.core import errors
from specdiff_jax.drafters import published
from specdiff_jax.drafters.masked_lm import ddit
from specdiff_jax.drafters.masked_lm import names

Raw = published.Raw
FAMILY = 'masked_lm'


def _masked(file, sizes, rename, mask_id, shifted) -> published.Published:
  """Returns a drafter whose tensors have usual names after `rename`."""
  sizes = families.untied(os.path.dirname(file), sizes, rename)
  our_name = lambda name: hf_names.our_name(sizes, rename(name))
  return published.Published(sizes, our_name, mask_id, FAMILY, shifted)


def _dream(file: str, raw: Raw) -> published.Published:
  """Dream and DiffuCoder: Qwen2.5 that was adapted."""
  sizes = published.like('Qwen2ForCausalLM', file, raw)
  return _masked(file, sizes, str, published.mask(file, raw), shifted=True)


def _a2d(architecture: str, file: str, raw: Raw) -> published.Published:
  """A2D: Llama or Qwen that was adapted, without a shift."""
  sizes = published.like(architecture, file, raw)
  return _masked(
    file,
    sizes,
    str,
    published.mask(file, raw, published.NO_MASK),
    shifted=False,
  )


def _diffullama(file: str, raw: Raw) -> published.Published:
  """Llama 2 that was adapted; a word it already had is the mask."""
  sizes = published.like('LlamaForCausalLM', file, raw)
  rename = functools.partial(names.unwrapped, 'model')
  return _masked(
    file, sizes, rename, published.mask(file, raw, 811), shifted=True
  )


def _diffugpt(file: str, raw: Raw) -> published.Published:
  """GPT-2 that was adapted; the small one has no token for the mask alone."""
  sizes = published.like('GPT2LMHeadModel', file, raw, tie_word_embeddings=True)
  mask = 50257 if sizes.vocab_size > 50257 else 10541
  rename = functools.partial(names.unwrapped, 'transformer')
  return _masked(
    file, sizes, rename, published.mask(file, raw, mask), shifted=True
  )


def _llada(file: str, raw: Raw) -> published.Published:
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
    published.only(file, raw, {key: (value,)})
  published.only(file, raw, {
      'alibi': (False,), 'include_qkv_bias': (False,),
      'attention_layer_norm': (False,), 'input_emb_norm': (False,),
      'scale_logits': (False,), 'multi_query_attention': (False,),
      'clip_qkv': (),
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
  mask = published.mask(file, raw)  # absent it would be 50256, a usual word
  return _masked(file, sizes, names.llama_name, mask, shifted=False)


def _mdlm(file: str, raw: Raw) -> published.Published:
  """MDLM: a DDiT, which needs no noise level."""
  published.only(file, raw, {'time_conditioning': (False,), 'causal': (False,)})
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
  ours = {theirs: name for name, theirs in names.mdlm(sizes).items()}

  def our_name(name):
    return None if name.endswith('inv_freq') else ours.get(name, '')

  # Its tokenizer has no mask: one is added behind its tokens.
  return published.Published(sizes, our_name, sizes.vocab_size - 1, FAMILY)


READERS: Mapping[str, Callable[[str, Raw], published.Published]] = {
  'dream': _dream,
  'llada': _llada,
  'a2d_llama': functools.partial(_a2d, 'LlamaForCausalLM'),
  'a2d_qwen2': functools.partial(_a2d, 'Qwen2ForCausalLM'),
  'a2d_qwen3': functools.partial(_a2d, 'Qwen3ForCausalLM'),
  'diffullama': _diffullama,
  'diffugpt': _diffugpt,
  'mdlm': _mdlm,
}
# What config.json calls them: architectures, or else model_type.
ARCHITECTURES = {
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
}
