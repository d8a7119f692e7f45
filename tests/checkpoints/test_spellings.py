"""Keys of config.json that are absent, null, or spelled otherwise.

What is read is what the config class of `transformers` gives for the same
object; what it would pass over, though it says something else, is refused.
"""

import copy

import pytest

from specdiff_jax.checkpoints.hf import families
from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib

transformers = pytest.importorskip('transformers')

SIZES = {
    'vocab_size': 67, 'hidden_size': 32, 'num_hidden_layers': 6,
    'num_attention_heads': 4, 'intermediate_size': 48,
}  # fmt: skip
MORE = {
    'num_key_value_heads': 2, 'rms_norm_eps': 1e-5, 'hidden_act': 'silu',
    'tie_word_embeddings': True, 'max_position_embeddings': 77,
    'rope_theta': 5000.0,
}  # fmt: skip
WINDOWS = {'sliding_window': 5}
FAMILIES = {
    'Llama': MORE | {'attention_bias': False, 'head_dim': 12},
    'Mistral': MORE | WINDOWS | {'head_dim': 12},
    'Qwen2': MORE | WINDOWS | {
        'use_sliding_window': True, 'max_window_layers': 0
    },
    'Qwen3': MORE | WINDOWS | {
        'use_sliding_window': True, 'max_window_layers': 0, 'head_dim': 12
    },
    'Gemma3': MORE | WINDOWS | {
        'head_dim': 12, 'query_pre_attn_scalar': 20,
        'sliding_window_pattern': 2, 'rope_local_base_freq': 300.0,
        'hidden_activation': 'gelu_pytorch_tanh',
    },
}  # fmt: skip
GPT2 = {
    'vocab_size': 67, 'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'n_inner': 48,
    'n_positions': 55, 'layer_norm_epsilon': 1e-3,
    'activation_function': 'gelu_new', 'tie_word_embeddings': False,
}  # fmt: skip


def ours(family, raw):
  return families.config_of(f'{family}ForCausalLM', 'a.json', raw)


def theirs(family, raw):
  """Returns what we compare, as `transformers` reads it."""
  name = 'Gemma3Text' if family == 'Gemma3' else family
  kind = getattr(transformers, f'{name}Config')
  config = kind.from_dict(copy.deepcopy(raw))  # which it changes
  rope, near = config.rope_parameters, None
  if family == 'Gemma3':
    near = rope['sliding_attention']['rope_theta']
    rope = rope['full_attention']
  kinds = getattr(config, 'layer_types', None)
  window = getattr(config, 'sliding_window', None) or 0
  if kinds is None:
    kinds = ['sliding_attention' if window else ''] * config.num_hidden_layers
  local = tuple(kind == 'sliding_attention' for kind in kinds)
  return {
    'vocab_size': config.vocab_size,
    'width': config.hidden_size,
    'layers': config.num_hidden_layers,
    'heads': config.num_attention_heads,
    'kv_heads': config.num_key_value_heads,
    'head_dim': getattr(config, 'head_dim', None)
    or config.hidden_size // config.num_attention_heads,
    'mlp_width': config.intermediate_size,
    'norm_eps': config.rms_norm_eps,
    'tied_head': config.tie_word_embeddings,
    'max_positions': config.max_position_embeddings,
    'local': local,
    'window': window if any(local) else 0,
    'rope': (rope['rope_type'], rope['rope_theta'], rope.get('factor')),
    'near': near if any(local) else None,
    'scale': getattr(config, 'query_pre_attn_scalar', None),
  }


def read(family, raw):
  config = ours(family, raw)
  scaling = config.rope_scaling
  rope = (
      scaling.kind if scaling else 'default', config.rope_base,
      scaling.factor if scaling else None,
  )  # fmt: skip
  gemma = family == 'Gemma3'
  return {
    **{
      name: getattr(config, name)
      for name in theirs(family, raw)
      if hasattr(config, name)
    },
    'local': config.local_layers,
    'rope': rope,
    'near': config.local_rope_base or None if gemma else None,
    'scale': pytest.approx(config.score_scale**-2) if gemma else None,
  }


@pytest.mark.parametrize('family', FAMILIES)
def test_absent_keys_mean_what_they_do_in_transformers(family):
  raw = SIZES | FAMILIES[family]
  if family != 'Gemma3':
    raw = raw | {'num_attention_heads': 32, 'hidden_size': 64}
  seen = [read(family, raw)]
  for gone in [None, *FAMILIES[family]]:
    less = {k: v for k, v in raw.items() if k != gone}
    assert read(family, less) == theirs(family, less), gone
    seen.append(read(family, less))
  everything = {k: v for k, v in raw.items() if k in SIZES}
  everything |= {'num_key_value_heads': 4} if family == 'Gemma3' else {}
  assert read(family, everything) == theirs(family, everything)
  assert any(other != seen[0] for other in seen)  # the comparison sees it


@pytest.mark.parametrize(
    ('family', 'changes'),
    [
        ('Mistral', {'sliding_window': None}),
        ('Qwen2', {'sliding_window': None}),
        ('Qwen2', {'use_sliding_window': False}),
        ('Qwen2', {'num_key_value_heads': None}),
        ('Qwen3', {'max_window_layers': 6}),
        ('Qwen3', {'layer_types': ['full_attention'] * 6}),
        ('Qwen3', {'layer_types': ['sliding_attention'] * 6}),
        ('Llama', {'num_key_value_heads': None}),
        ('Llama', {'head_dim': None}),
        ('Llama', {'rope_scaling': None}),
        ('Llama', {'rope_scaling': {'type': 'linear', 'factor': 2.0}}),
        ('Llama', {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}}),
        ('Llama', {'rope_theta': None, 'rope_parameters': {
            'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 70.0}}),
        ('Llama', {'rope_parameters': {'rope_theta': 5000.0},
                   'rope_scaling': {'type': 'default'}}),
        ('Llama', {'rope_scaling': {
            'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
            'high_freq_factor': 4.0}}),
        ('Gemma3', {'layer_types': ['full_attention'] * 6}),
        ('Gemma3', {'rope_scaling': {'rope_type': 'linear', 'factor': 8.0}}),
        ('Gemma3', {'rope_theta': None, 'rope_parameters': {
            'full_attention': {'rope_type': 'linear', 'factor': 2.0,
                               'rope_theta': 11.0},
            'sliding_attention': {'rope_type': 'default',
                                  'rope_theta': 300.0}}}),
        ('Gemma3', {'rope_theta': None, 'rope_local_base_freq': None,
                    'rope_parameters': {
                        'full_attention': {'rope_type': 'default'}}}),
    ],
)  # fmt: skip
def test_other_spellings_mean_what_they_do_in_transformers(family, changes):
  raw = SIZES | FAMILIES[family] | changes
  absent = ('rope_theta', 'rope_local_base_freq')  # null is no number there
  clean = {
    k: v
    for k, v in raw.items()
    if v is not None or (k in changes and k not in absent)
  }
  assert read(family, raw) == theirs(family, clean)


def test_the_original_length_of_llama3_is_that_of_positions():
  scaling = {
      'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
  }  # fmt: skip
  raw = SIZES | FAMILIES['Llama'] | {'rope_scaling': scaling}
  assert ours('Llama', raw).rope_scaling == config_lib.RopeScaling(
    'llama3', 8.0, original=77
  )
  key = 'original_max_position_embeddings'
  for more in ({key: 33}, {'rope_scaling': scaling | {key: 33}}):
    assert ours('Llama', raw | more).rope_scaling.original == 33


def test_gpt2_has_other_names_too():
  theirs = transformers.GPT2Config.from_dict(GPT2)
  config = families.config_of('GPT2LMHeadModel', 'a.json', GPT2)
  assert (config.norm_eps, config.tied_head) == (
      theirs.layer_norm_epsilon, theirs.tie_word_embeddings,
  )  # fmt: skip
  renamed = {
      'n_embd': 'hidden_size', 'n_head': 'num_attention_heads',
      'n_layer': 'num_hidden_layers', 'n_positions': 'max_position_embeddings',
  }  # fmt: skip
  other = {renamed.get(k, k): v for k, v in GPT2.items()}
  assert families.config_of('GPT2LMHeadModel', 'a.json', other) == config
  both = transformers.GPT2Config.from_dict(other)
  assert (both.n_embd, both.n_layer) == (32, 2)
  less = {
    k: v
    for k, v in GPT2.items()
    if k in ('vocab_size', 'n_embd', 'n_layer', 'n_head')
  }
  theirs = transformers.GPT2Config.from_dict(less)
  config = families.config_of('GPT2LMHeadModel', 'a.json', less)
  assert (
      config.mlp_width, config.max_positions, config.norm_eps, config.tied_head
  ) == (
      4 * theirs.n_embd, theirs.n_positions, theirs.layer_norm_epsilon,
      theirs.tie_word_embeddings,
  )  # fmt: skip


LINEAR = {'rope_type': 'linear', 'factor': 2.0}


@pytest.mark.parametrize(
    ('family', 'changes', 'message'),
    [
        ('Llama', {'rope_parameters': LINEAR,
                   'rope_scaling': LINEAR | {'factor': 4.0}}, 'factor is 2.0'),
        ('Llama', {'rope_parameters': {'rope_theta': 4.0}}, 'rope_theta is 4'),
        ('Llama', {'rope_parameters': {'rope_type': 'default'},
                   'rope_scaling': LINEAR}, "rope_type is 'default'"),
        ('Llama', {'rope_scaling': {'type': 'linear', **LINEAR,
                                    'rope_type': 'llama3'}}, 'rope_type is'),
        ('Llama', {'rope_scaling': {'factor': 4.0}}, 'factor 4.0, but no'),
        ('Llama', {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}},
         "type 'dynamic'"),
        ('Llama', {'rope_scaling': {'type': 'longrope'}}, "type 'longrope'"),
        ('Llama', {'rope_parameters': {'full_attention': LINEAR}}, 'Gemma 3'),
        ('Llama', {'rope_parameters': LINEAR | {'partial_rotary_factor': 0.5}},
         'partial_rotary_factor 0.5'),
        ('Gemma3', {'rope_parameters': LINEAR}, 'rope_parameters has rope_t'),
        ('Llama', {'layer_norm_epsilon': 1e-3}, 'layer_norm_epsilon is 0.001'),
        ('Llama', {'n_layer': 3}, 'n_layer is 3, but num_hidden_layers'),
        ('Llama', {'hidden_activation': 'gelu'}, 'hidden_activation is'),
        ('Llama', {'sliding_window': 4}, 'sliding_window is 4'),
        ('Llama', {'layer_types': ['sliding_attention'] * 6}, 'layer_types'),
        ('Llama', {'mlp_bias': True}, 'mlp_bias is True'),
        ('Llama', {'use_qk_norm': True}, 'use_qk_norm is True'),
        ('Llama', {'num_experts': 8}, 'num_experts is 8'),
        ('Llama', {'logits_scaling': 8.0}, 'logits_scaling is 8.0'),
        ('Llama', {'rope_interleaved': True}, 'rope_interleaved is True'),
        ('Llama', {'quantization_config': {'bits': 4}}, 'quantization_config'),
        ('Mistral', {'use_sliding_window': False}, 'use_sliding_window'),
        ('Mistral', {'layer_types': ['full_attention'] * 6}, 'layer_types is'),
        ('Mistral', {'sliding_window': 0}, 'sliding_window is 0'),
        ('Qwen2', {'use_sliding_window': False,
                   'layer_types': ['sliding_attention'] * 6}, 'layer_types'),
        ('Qwen2', {'use_sliding_window': 'yes'}, "use_sliding_window is 'yes'"),
        ('Qwen3', {'attention_bias': True}, 'attention_bias is True'),
        ('Gemma3', {'sliding_window': None}, 'no sliding_window'),
        ('Gemma3', {'sliding_window_pattern': 0}, 'sliding_window_pattern is'),
        ('Gemma3', {'query_pre_attn_scalar': 0}, 'query_pre_attn_scalar is'),
    ],
)  # fmt: skip
def test_what_says_otherwise_is_refused(family, changes, message):
  raw = SIZES | FAMILIES[family] | changes
  with pytest.raises(errors.InputError, match=message) as told:
    ours(family, raw)
  assert str(told.value).startswith('a.json: ')


def test_gpt2_refuses_two_sizes():
  with pytest.raises(errors.InputError, match='hidden_size is 64, but n_embd'):
    families.config_of('GPT2LMHeadModel', 'a', GPT2 | {'hidden_size': 64})


@pytest.mark.parametrize('family', [*FAMILIES, 'GPT2'])
@pytest.mark.parametrize('size', [10**9, 10**400, 2.5, -3, [], '3', True])
def test_sizes_are_bounded_before_anything_is_done(family, size):
  keys = ('num_hidden_layers', 'hidden_size', 'vocab_size')
  base, name = SIZES | FAMILIES.get(family, {}), f'{family}ForCausalLM'
  if family == 'GPT2':
    keys, base = ('n_layer', 'n_embd', 'vocab_size'), GPT2
    name = 'GPT2LMHeadModel'
  for key in keys:
    with pytest.raises(errors.InputError, match=key):
      families.config_of(name, 'a.json', base | {key: size})
