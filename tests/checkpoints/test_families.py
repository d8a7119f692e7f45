"""Every family's logits are those of `transformers`, on tiny random weights.

Prefill, cached decoding and trees, unrolled and scanned, in float32. Each
feature of a family has a negative control: without it logits differ.
"""

import dataclasses
import functools

import hf_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import whole_text

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.core import errors
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2
from specdiff_jax.models import networks
from specdiff_jax.models import views

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

BAR = 1e-4  # of the logits' range
LENGTH, PROMPT, SLOTS = 12, 8, 20
FINGERPRINT = 'fd34821873e17632'  # of LLAMA, before there were other families


LLAMA = config_lib.TransformerConfig(
  vocab_size=67,
  width=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_width=48,
  norm_eps=1e-6,
  tied_head=False,
  max_positions=64,
)
_of = functools.partial(dataclasses.replace, LLAMA)
GEMMA = _of(
  head_dim=12,  # not width / heads
  tied_head=True,
  rope_base=1e6,
  qk_norm=True,
  norm_offset=1.0,
  post_norms=True,
  activation='gelu_tanh',
  embed_scale=32**0.5,
  query_scale=20**-0.5,
  window=4,
  global_every=2,
  local_rope_base=1e4,
)
FAMILIES = {
    'llama2': LLAMA,
    'llama3': _of(
        rope_base=5000.0,
        rope_scaling=config_lib.RopeScaling('llama3', 4.0, 1.0, 4.0, 8),
    ),
    'linear': _of(rope_scaling=config_lib.RopeScaling('linear', 4.0)),
    'smollm2': _of(tied_head=True, kv_heads=1),
    'mistral': _of(window=4),
    'qwen2': _of(qkv_bias=True, rope_base=1e6, tied_head=True),
    'qwen2_local': _of(qkv_bias=True, window=3, global_every=2),
    'qwen3': _of(qk_norm=True, head_dim=12, rope_base=1e6),
    'gemma3': GEMMA,
    'gemma3_linear': dataclasses.replace(
        GEMMA, rope_scaling=config_lib.RopeScaling('linear', 8.0)
    ),
    'gemma3_gguf': dataclasses.replace(GEMMA, norm_offset=0.0),
    'gpt2': gpt2.GPT2Config(
        vocab_size=67, width=32, layers=2, heads=4, mlp_width=80,
        max_positions=64,
    ),
}  # fmt: skip


@functools.cache
def made(name):
  """Returns params of a family and the model of `transformers` with them."""
  config, rng, flat = FAMILIES[name], np.random.default_rng(0), {}
  for ours, shape in networks.shapes(config).items():
    value = rng.standard_normal(shape).astype(np.float32)
    flat[ours] = 0.2 * value
    if ours.endswith('norm'):
      flat[ours] += 1 - getattr(config, 'norm_offset', 0.0)
    if ours.endswith('bias'):
      flat[ours] = 0.5 * value
  params = params_lib.nest(flat)
  return params, hf_reference.to_transformers(config, params)


@functools.partial(jax.jit, static_argnums=0)
def score(config, params, *args):
  """Returns logits and cache."""
  network, params = networks.network(config), {'params': params}
  x, cache, _ = network.apply(params, *args)
  return network.apply(params, x, method='logits'), cache


def stacked(config, params):
  """Returns config and params of the scanned form."""
  rest = {k: v for k, v in params.items() if not k.startswith('layer_')}
  each = [params[f'layer_{i}'] for i in range(config.layers)]
  rest['layers'] = jax.tree.map(lambda *x: np.stack(x), *each)
  return dataclasses.replace(config, scan_layers=True), rest


def text(length, seed=1):
  return np.random.default_rng(seed).integers(0, LLAMA.vocab_size, length)


def far(got, want):
  """Returns the largest difference, as a share of the logits' range."""
  return np.abs(np.asarray(got) - want).max() / np.ptp(want)


def prefilled(config, params, ids):
  """Reads a prompt into a cache: logits and the cache."""
  size = len(ids)
  mask = views.causal_mask(jnp.array([size]), size)
  mask = jnp.pad(mask, ((0, 0), (0, 0), (0, SLOTS - size)))
  logits, cache = score(
      config, params, jnp.asarray(ids)[None], jnp.arange(size)[None], mask,
      cache_lib.empty(config, 1, SLOTS, jnp.float32),
      jnp.zeros(1, jnp.int32),
  )  # fmt: skip
  return logits[0], cache


PARENT = [0, 0, 0, 1, 2, 4, 5, 2]
DEPTH = [0, 1, 1, 2, 2, 3, 4, 2]


def scored_tree(config, params, cache, length, drafted):
  """Scores a tree whose root is token `length` - 1: logits [M, V]."""
  tree = types.DraftTree(
    *(jnp.asarray(x)[None] for x in (drafted, PARENT, DEPTH)),
    jnp.ones((1, len(PARENT)), bool),
  )
  start = jnp.array([length - 1], jnp.int32)
  mask = tree_lib.cache_mask(tree, start + 1, SLOTS)
  return score(
      config, params, tree.token, start[:, None] + tree.depth, mask, cache,
      start,
  )[0][0]  # fmt: skip


def line(slot):
  """Returns the slots from the root to this one."""
  return [0] if slot == 0 else line(PARENT[slot]) + [slot]


@pytest.mark.parametrize(
  ('name', 'scan'),
  [(name, False) for name in FAMILIES]
  + [(name, True) for name in ('llama3', 'qwen2', 'gemma3', 'gpt2')],
)
def test_logits_are_those_of_transformers(name, scan):
  config, (params, model) = FAMILIES[name], made(name)
  if scan:
    config, params = stacked(config, params)
  ids = text(LENGTH)
  want = whole_text.their_logits(model, ids)
  logits, root = prefilled(config, params, ids[:PROMPT])
  worst = {'prefill': far(logits, want[:PROMPT]), 'cached': 0.0, 'tree': 0.0}
  cache = root
  for place in range(PROMPT, LENGTH):
    mask = jnp.arange(SLOTS)[None, None] <= place
    logits, cache = score(
        config, params, ids[None, place : place + 1], jnp.array([[place]]),
        mask, cache, jnp.array([place], jnp.int32),
    )  # fmt: skip
    worst['cached'] = max(worst['cached'], far(logits[0, 0], want[place]))
  drafted = text(len(PARENT), seed=2)
  logits = scored_tree(config, params, root, PROMPT + 1, drafted)
  for slot in range(len(PARENT)):
    branch = np.concatenate([ids[:PROMPT], drafted[line(slot)]])
    off = far(logits[slot], whole_text.their_logits(model, branch)[-1])
    worst['tree'] = max(worst['tree'], off)
  print(name, {k: f'{v:.1e}' for k, v in worst.items()})
  assert max(worst.values()) <= BAR, worst


def test_without_a_cache():
  """Keys are then the tokens themselves, and lie where these do."""
  (params, model), ids = made('gemma3'), text(PROMPT)
  mask = views.causal_mask(jnp.array([PROMPT]), PROMPT)
  positions = jnp.arange(PROMPT)[None]
  logits, _ = score(GEMMA, params, ids[None], positions, mask)
  assert far(logits[0], whole_text.their_logits(model, ids)) <= BAR


@pytest.mark.parametrize('name', ['llama2', 'gpt2'])
def test_features_are_the_outputs_of_layers(name):
  """`transformers` counts hidden states from the embedding on."""
  (params, model), ids = made(name), text(PROMPT)
  mask = views.causal_mask(jnp.array([PROMPT]), PROMPT)
  _, _, got = networks.network(FAMILIES[name]).apply(
      {'params': params}, ids[None], jnp.arange(PROMPT)[None], mask,
      features=(0,),
  )  # fmt: skip
  with torch.no_grad():
    states = model(torch.tensor(ids[None]), output_hidden_states=True)
  before, after, _ = (x.numpy() for x in states.hidden_states)
  assert far(got[0, :, 0], after[0]) <= BAR
  assert far(got[0, :, 0], before[0]) > 10 * BAR  # negative control


@pytest.mark.parametrize(
  ('name', 'changes'),
  [
    ('llama3', {'rope_scaling': None}),
    ('llama3', {'rope_scaling': config_lib.RopeScaling('linear', 4.0)}),
    ('linear', {'rope_scaling': None}),
    ('mistral', {'window': 5}),
    ('mistral', {'window': 3}),
    ('qwen2', {'qkv_bias': False}),
    ('qwen2_local', {'global_every': 0}),
    ('qwen3', {'qk_norm': False}),
    ('gemma3', {'norm_offset': 0.0}),
    ('gemma3', {'qk_norm': False}),
    ('gemma3', {'post_norms': False}),
    ('gemma3', {'activation': 'silu'}),
    ('gemma3', {'embed_scale': 1.0}),
    ('gemma3', {'query_scale': 0.0}),
    ('gemma3', {'window': 5}),
    ('gemma3', {'global_every': 0}),
    ('gemma3', {'local_rope_base': 0.0}),
    ('gemma3_linear', {'rope_scaling': None}),
  ],
)
def test_without_a_feature_logits_differ(name, changes):
  """Negative controls."""
  params, model = made(name)
  other, ids = dataclasses.replace(FAMILIES[name], **changes), text(PROMPT)
  logits, _ = prefilled(other, params, ids)
  assert far(logits, whole_text.their_logits(model, ids)) > 10 * BAR


def read_back(folder, config):
  """Returns our params out of the files of a folder."""
  found = directory.iterate_tensors(str(folder), config)
  return params_lib.nest(
    {
      ours: stored.read(tensor)
      for ours, _, tensor in found
      if not ours.startswith(params_lib.SPARE)
    }
  )


def saved_config(name):
  """Returns what is read of a family: norms less what files leave out."""
  config = FAMILIES[name]
  if name == 'gemma3_gguf':
    return dataclasses.replace(config, norm_offset=1.0)
  return config


@pytest.mark.parametrize('name', FAMILIES)
def test_directories_that_transformers_writes(name, tmp_path):
  params, model = made(name)
  model.save_pretrained(tmp_path)
  config = families.read_config(str(tmp_path))
  assert config == saved_config(name)
  got = read_back(tmp_path, config)
  if name == 'gemma3_gguf':
    params = made('gemma3')[0]
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6), got, params
  )


@pytest.mark.parametrize('name', ['llama3', 'qwen2_local', 'gemma3_linear'])
def test_the_older_spelling_says_the_same(name):
  raw = hf_reference.config_json(FAMILIES[name], current=False)
  assert 'rope_parameters' not in raw
  raw.pop('layer_types', None)
  raw |= {'sliding_window_pattern': 2} if name == 'gemma3_linear' else {}
  raw |= {'max_window_layers': 0} if name == 'qwen2_local' else {}
  config = families.config_of(raw['architectures'][0], 'file', raw)
  every = 0 if name == 'qwen2_local' else FAMILIES[name].global_every
  assert config == dataclasses.replace(FAMILIES[name], global_every=every)


def test_gemma_without_local_layers():
  raw = hf_reference.config_json(GEMMA)
  raw['layer_types'] = ['full_attention'] * 2
  config = families.config_of('Gemma3ForCausalLM', 'file', raw)
  want = dict(window=0, global_every=0, local_rope_base=0.0)
  assert config == dataclasses.replace(GEMMA, **want)
  raw = families.hf_config(config)
  assert families.config_of('Gemma3ForCausalLM', 'file', raw) == config


def test_names_that_files_spell_otherwise():
  def ours(family, name):
    return hf_names.our_name(FAMILIES[family], name)

  assert ours('gpt2', 'h.1.attn.c_attn.weight') == 'layer_1.qkv'
  assert ours('gpt2', 'wpe.weight') == 'position_embed'
  assert ours('gpt2', 'h.1.attn.bias') is None
  assert ours('gpt2', 'transformer.h.1.attn.masked_bias') is None
  for start in ('language_model.model.', 'model.language_model.', 'model.'):
    layer = start + 'layers.1.post_attention_layernorm.weight'
    assert ours('gemma3', layer) == 'layer_1.attention_post_norm'
  assert ours('gemma3', 'language_model.lm_head.weight') is None  # tied
  assert ours('gemma3', 'vision_tower.vision_model.a.weight') is None
  assert ours('llama2', 'lm_head.weight') == 'head'
  assert ours('llama2', 'model.layers.0.self_attn.rotary_emb.inv_freq') is None
  assert ours('llama2', 'model.layers.0.self_attn.q_proj.bias') == ''
  assert ours('llama2', 'model.layers.2.mlp.up_proj.weight') == ''
  assert ours('qwen2', 'model.layers.0.self_attn.q_proj.bias') == (
    'layer_0.query_bias'
  )


def test_the_text_part_of_a_model_that_sees_pictures(tmp_path):
  """As published: what equals the defaults of the family is left out."""
  text = {
    'hidden_size': 2560,
    'intermediate_size': 10240,
    'model_type': 'gemma3_text',
    'num_hidden_layers': 34,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 1024,
  }
  hf_reference.write_json(
    tmp_path,
    'config.json',
    {
      'architectures': ['Gemma3ForConditionalGeneration'],
      'model_type': 'gemma3',
      'text_config': text,
      'vision_config': {},
    },
  )
  config = families.read_config(str(tmp_path))
  want = transformers.Gemma3TextConfig(**text)
  assert config.vocab_size == want.vocab_size
  assert config.heads == want.num_attention_heads
  assert config.kv_heads == want.num_key_value_heads
  assert config.head_dim == want.head_dim
  assert config.tied_head and config.window == 1024
  assert config.rope_scaling == config_lib.RopeScaling('linear', 8.0)
  assert (config.rope_base, config.local_rope_base) == (1e6, 1e4)
  kinds = [kind == 'sliding_attention' for kind in want.layer_types]
  assert list(config.local_layers) == kinds


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('qwen2', {'use_sliding_window': True, 'sliding_window': 4,
                   'max_window_layers': 1}, 'layer_types, or what max_window'),
        ('gemma3', {'layer_types': ['full_attention', 'sliding_attention']},
         'every so many-th of 2 layers'),
        ('gemma3', {'layer_types': ['chunked_attention'] * 2}, 'chunked_att'),
        ('gemma3', {'use_bidirectional_attention': True}, 'bidirectional'),
        ('gemma3', {'final_logit_softcapping': 30.0}, 'final_logit_softcap'),
        ('gemma3', {'hidden_activation': 'gelu'}, "hidden_activation is"),
        ('gemma3', {'sliding_window': 'many'}, "sliding_window is 'many'"),
        ('qwen3', {'attention_bias': True}, 'attention_bias is True'),
        ('llama3', {'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0}},
         "type 'yarn'.*llama3"),
        ('llama3', {'rope_scaling': 4}, 'rope settings 4'),
        ('llama2', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor 0.5'),
        ('linear', {'rope_parameters': {'rope_type': 'linear'}},
         'factor is None'),
        ('gpt2', {'n_head': 5}, 'not a multiple of heads=5'),
        ('gpt2', {'activation_function': 'relu'}, "activation_function is"),
        ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'inverse_layer'),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(name, changes, message):
  raw = hf_reference.config_json(FAMILIES[name])
  with pytest.raises(errors.InputError, match=message) as told:
    families.config_of(raw['architectures'][0], 'a.json', raw | changes)
  assert str(told.value).startswith('a.json: ')


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (_of(qkv_bias=True, qk_norm=True), 'qkv_bias=True .*Qwen3ForCausalLM'),
    (_of(embed_scale=2.0), 'embed_scale=2.0 .*LlamaForCausalLM'),
    (_of(window=4, global_every=2), 'local_layers=.*MistralForCausalLM'),
    (_of(norm_offset=1.0), 'norm_offset=1.0'),
  ],
)
def test_layers_of_no_family_are_not_written(config, message):
  with pytest.raises(errors.InputError, match=message):
    families.hf_config(config)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'activation': 'relu'}, "activation='relu'.*silu, gelu_tanh"),
        ({'window': -1}, 'window=-1.*positive integer, or 0'),
        ({'window': 2.0}, 'window=2.0'),
        ({'global_every': 2}, 'global_every=2 .*without a window'),
        ({'local_rope_base': 1e4}, 'local_rope_base=10000.0 .*without a'),
        ({'qk_norm': 1}, 'qk_norm=1.*True or False'),
        ({'norm_offset': -1.0}, 'norm_offset=-1.0.*or 0'),
        ({'embed_scale': 0.0}, 'embed_scale=0.0.*positive finite number'),
        ({'query_scale': float('inf')}, 'query_scale=inf'),
        ({'rope_scaling': 'linear'}, "rope_scaling='linear'.*RopeScaling"),
        ({'rope_scaling': {'kind': 'yarn', 'factor': 2.0}}, "kind='yarn'"),
        ({'rope_scaling': {'kind': 'linear', 'factor': 0.0}}, 'factor=0.0'),
        ({'rope_scaling': {'kind': 'llama3', 'factor': 8.0, 'low': 4.0}},
         'high=4.0 has to be more than low=4.0'),
    ],
)  # fmt: skip
def test_impossible_sizes(changes, message):
  with pytest.raises(errors.InputError, match=message):
    _of(**changes)


def test_new_fields_count_only_where_they_are_used():
  """Shipped drafters name their verifier by its fingerprint."""
  params = made('llama2')[0]
  known = params_lib.fingerprint(LLAMA, params)
  assert known == FINGERPRINT
  changes = {
    'norm_offset': 1.0,
    'window': 3,
    'activation': 'gelu_tanh',
    'embed_scale': 2.0,
    'query_scale': 0.5,
    'qk_norm': True,
  }
  others = {
    params_lib.fingerprint(_of(**{name: value}), params)
    for name, value in changes.items()
  }
  assert len(others | {known}) == len(changes) + 1
