"""LoRA adapters, against a merge written here in numpy."""

import dataclasses
import json
import time

import gguf_writing
import hf_reference
import lora_writing
import numpy as np
import pytest
import tiny_model

from specdiff_jax.checkpoints import lora_modules
from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints import weights
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.core import errors
from specdiff_jax.models import gpt2
from specdiff_jax.text import tokenizer as tokenizer_lib

_OF = lora_writing.PREFIX  # followed by the layer


def merge(config, params, flat, scale):
  """Returns W + scale * B A for each adapted W, by our names."""
  theirs = hf_names.names(config)
  merged = {}
  for ours, weight in params_lib.flatten(params):
    name = 'base_model.model.' + theirs[ours].removesuffix('weight')
    merged[ours] = weight
    if name + 'lora_A.weight' in flat:
      down, up = flat[name + 'lora_A.weight'], flat[name + 'lora_B.weight']
      merged[ours] = weight + scale(name) * np.einsum('or,ri->oi', up, down)
  return merged


def compare(loaded, merged):
  got = dict(params_lib.flatten(loaded.params))
  for name, array in merged.items():
    np.testing.assert_allclose(got[name], array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ('settings', 'ranks', 'scale'),
    [
        ({}, None, lambda name: 2.0),
        ({'use_rslora': True}, None, lambda name: 4.0),
        (
            {'rank_pattern': {'down_proj': 2}, 'alpha_pattern': {
                r'layers\.\d+\.mlp\.down_proj': 6}},
            {'mlp.down_proj': 2},
            lambda name: 3.0 if 'down' in name else 2.0,
        ),
    ],
)  # fmt: skip
def test_merged(tiny, directory, tmp_path, settings, ranks, scale):
  config, params, _ = tiny
  adapter = str(tmp_path / 'adapter')
  flat = lora_writing.write(adapter, config, ranks, **settings)
  loaded = weights.load(directory, 'float32', adapter=adapter)
  compare(loaded, merge(config, params, flat, scale))
  plain = weights.load(directory, 'float32')
  assert loaded.fingerprint != plain.fingerprint
  assert adapter in loaded.source
  with pytest.raises(AssertionError):  # the comparison sees a missing adapter
    compare(plain, merge(config, params, flat, scale))


def test_merged_into_a_gguf_file(tiny, tmp_path):
  config, params, tokenizer = tiny
  path = gguf_writing.write(
    tmp_path / 'tiny.gguf',
    gguf_writing.metadata(config, tokenizer),
    gguf_writing.tensors(config, params),
  )
  flat = lora_writing.write(str(tmp_path / 'adapter'), config)
  loaded = weights.load(path, 'float32', adapter=str(tmp_path / 'adapter'))
  compare(loaded, merge(config, params, flat, lambda name: 2.0))


def tuned(base, **settings):
  """Returns peft's model of random updates."""
  peft = pytest.importorskip('peft')
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  config = peft.LoraConfig(r=4, init_lora_weights=False, **settings)
  return peft.get_peft_model(base, config)


def same_as_merged(model, directory, adapter):
  """Asserts that peft's own merge has our weights."""
  model.save_pretrained(adapter)
  state = model.merge_and_unload().state_dict()
  loaded = weights.load(directory, 'float32', adapter=adapter)
  turned = hf_names.transposed(loaded.config)
  usual = {
    name.replace('model.language_model.', 'model.'): value.numpy()
    for name, value in state.items()
  }
  for ours, array in params_lib.flatten(loaded.params):
    expected = usual[hf_names.names(loaded.config)[ours]]
    expected = expected.T if ours in turned else expected
    np.testing.assert_allclose(array, expected, atol=1e-5, err_msg=ours)
  plain = weights.load(directory, 'float32')
  assert plain.fingerprint != loaded.fingerprint


def test_head_and_embedding_against_peft(directory, tmp_path):
  """peft stores a copy of both beside what it adds to them."""
  transformers = pytest.importorskip('transformers')
  base = transformers.AutoModelForCausalLM.from_pretrained(directory)
  names = ['q_proj', 'lm_head', 'embed_tokens']
  model = tuned(base, target_modules=names, use_rslora=True)
  adapter = str(tmp_path / 'adapter')
  same_as_merged(model, directory, adapter)
  file = f'{adapter}/adapter_model.safetensors'
  flat = safetensors_io.tensors(file)
  copy = 'base_model.model.lm_head.base_layer.weight'
  assert copy in flat
  flat = {name: stored.read(tensor) for name, tensor in flat.items()}
  flat[copy] = flat[copy] + 1
  hf_reference.save(file, flat)
  with pytest.raises(errors.InputError, match='of its own.*merge_and_unload'):
    weights.load(directory, 'float32', adapter=adapter)


def test_gpt2_against_peft(tmp_path):
  transformers = pytest.importorskip('transformers')
  config = gpt2.GPT2Config(
      vocab_size=288, width=16, layers=2, heads=2, mlp_width=24,
      max_positions=64,
  )  # fmt: skip
  directory = str(tmp_path / 'model')
  hf_reference.write_directory(
      directory, config, tiny_model.random_params(config),
      tokenizer_lib.Tokenizer.bytes(288),
  )  # fmt: skip
  base = transformers.AutoModelForCausalLM.from_pretrained(directory)
  model = tuned(base, target_modules=['c_attn', 'c_fc'], fan_in_fan_out=True)
  same_as_merged(model, directory, str(tmp_path / 'adapter'))


def wrapped(flat, start):
  """Renames an adapter's tensors as of a model that sees pictures."""
  for name in list(flat):
    rest = name.removeprefix('base_model.model.model.')
    flat[start + rest] = flat.pop(name)


@pytest.mark.parametrize(
  'start',
  [
    'base_model.model.model.language_model.',  # transformers 5
    'base_model.model.language_model.model.',  # 4
    'base_model.model.language_model.',
    'base_model.model.',  # of the model without a head
    'model.',  # saved by transformers
  ],
)
def test_names_of_adapters(tiny, directory, tmp_path, start):
  config, params, _ = tiny
  adapter = str(tmp_path / 'adapter')
  flat = lora_writing.write(adapter, config)
  vision = 'base_model.model.vision_tower.vision_model.encoder.layers.0.x'

  def edit(flat):
    wrapped(flat, start)
    flat |= {
      f'{vision}.lora_A.weight': np.ones((4, 9), 'f4'),
      f'{vision}.lora_B.weight': np.ones((9, 4), 'f4'),
    }

  lora_writing.write(adapter, config, edit=edit)
  loaded = weights.load(directory, 'float32', adapter=adapter)
  compare(loaded, merge(config, params, flat, lambda name: 2.0))


def test_a_tied_head_is_not_adapted_alone(tiny, tmp_path):
  config = dataclasses.replace(tiny[0], tied_head=True)
  directory, adapter = str(tmp_path / 'model'), str(tmp_path / 'adapter')
  params = {k: v for k, v in tiny[1].items() if k != 'head'}
  hf_reference.write_directory(directory, config, params, tiny[2])
  for module, parts in (('lm_head', 'AB'), ('model.embed_tokens', 'AB')):
    kind = 'lora_embedding_' if 'embed' in module else 'lora_'

    def edit(flat):
      for part in parts:
        shape = (4, 32) if part == 'A' else (288, 4)
        flat[f'base_model.model.{module}.{kind}{part}'] = np.ones(shape, 'f4')

    lora_writing.write(adapter, config, edit=edit)
    with pytest.raises(errors.InputError, match='both are one.*merge_and'):
      weights.load(directory, 'float32', adapter=adapter)


@pytest.mark.parametrize(
  'pattern, is_down',
  [
    ('down_proj', True),
    ('mlp.down_proj', True),
    ('own_proj', False),
    ('(up|down)_proj', True),
    (r'.*\.layers\.(0|1)\..*', True),
    (r'layers\.\d+\.mlp\..+', True),
    ('^model.*', True),
    ('^layers', False),
    ('model.layers.0.mlp.down_proj', True),
    ('q_proj|down_proj', True),
  ],
)
def test_patterns_mean_what_they_do_in_peft(pattern, is_down):
  other = pytest.importorskip('peft.utils.other')
  module = 'model.layers.0.mlp.down_proj'
  theirs = other.get_pattern_key([pattern], module) != module or (
    pattern == module
  )
  first = lora_modules._Patterns('a', 'rank_pattern', ['x', pattern]).first(
    module
  )
  assert first == (pattern if is_down else None)
  assert theirs == is_down


@pytest.mark.parametrize(
  'pattern',
  [
    '(a+)+$',
    '(.*.*)*x',
    '(.|.)(.|.)(.|.)x',
    '.?' * 90 + 'x',
    '.*.*.*.*x',
    '[a-z]+' * 9,
    'x{1,1000}',
    'a(?=b)',
    r'(\w|\w\w)' * 9,
    'a' * 501 + '|b',
    '(' * 400,
    '*',
  ],
)
def test_patterns_that_could_take_long_are_not_tried(
  tiny, directory, tmp_path, pattern
):
  adapter = str(tmp_path / 'adapter')
  lora_writing.write(adapter, tiny[0], alpha_pattern={pattern: 2})
  started = time.process_time()
  with pytest.raises(errors.InputError, match='not a regular .*merge_and_un'):
    weights.load(directory, 'float32', adapter=adapter)
  assert time.process_time() - started < 2


def test_the_first_pattern_counts():
  module = 'model.layers.0.mlp.down_proj'
  both = ['down_proj', '.*down.*', 'mlp.down_proj']
  for turned in (both, both[::-1], both[1:] + both[:1]):
    assert lora_modules._Patterns('a', 'key', turned).first(module) == turned[0]


def test_many_names_with_numbers_of_their_own(tiny, directory, tmp_path):
  name = 'model.layers.{}.mlp.down_proj'
  many = {name.format(i + 2): 8 for i in range(4000)}
  modules = [name.format(i) for i in range(300)]
  started = time.process_time()
  numbers = lora_modules.Numbers('a', {'r': 4, 'p': many}, 'r', 'p')
  assert [numbers.of(m) for m in modules] == [4, 4] + [8] * 298
  assert time.process_time() - started < 2
  adapter = str(tmp_path / 'adapter')
  more = {f'x{i}': 8 for i in range(5000)}
  lora_writing.write(adapter, tiny[0], rank_pattern=more)
  with pytest.raises(errors.InputError, match='5000 patterns.*4096'):
    weights.load(directory, 'float32', adapter=adapter)


ALL = frozenset(
    f'model.layers.{i}.{module}'
    for i in range(2) for module in ('self_attn.q_proj', 'mlp.down_proj')
)  # fmt: skip
Q = {name for name in ALL if 'q_proj' in name}
FIRST = {name for name in ALL if '.0.' in name}


@pytest.mark.parametrize(
  'settings, left',
  [
    ({}, ALL),
    ({'target_modules': ['q_proj']}, Q),
    ({'target_modules': ['proj']}, set()),
    (
      {'target_modules': ['self_attn.q_proj', 'layers.0.mlp.down_proj']},
      Q | FIRST,
    ),
    ({'target_modules': 'q_proj'}, set()),  # a regular expression, all of it
    ({'target_modules': r'.*\.(q|v)_proj'}, Q),
    ({'target_modules': 'all-linear'}, ALL),
    ({'target_modules': []}, set()),
    ({'exclude_modules': ['down_proj']}, Q),
    ({'exclude_modules': '.*down_proj'}, Q),
    ({'layers_to_transform': [0]}, FIRST),
    ({'layers_to_transform': 0, 'layers_pattern': 'layers'}, FIRST),
    ({'layers_to_transform': [0], 'layers_pattern': ['h']}, set()),
    ({'layers_to_transform': [0, 1], 'layers_pattern': ['h', 'layers']}, ALL),
  ],
)
def test_modules_that_the_config_leaves_out(
  tiny, directory, tmp_path, settings, left
):
  """Merged are all tensors, or none where peft would take only some."""
  targets = lora_modules.Targets('a', lora_writing.SETTINGS | settings)
  taken = set()
  for module in ALL:
    try:
      targets.check('a', f'{module}.lora_A.weight', module)
      taken.add(module)
    except errors.InputError as e:
      assert 'peft would leave it out' in str(e)
  assert taken == left
  adapter = str(tmp_path / 'adapter')
  lora_writing.write(adapter, tiny[0], **settings)
  if left == ALL:
    weights.load(directory, 'float32', adapter=adapter)
  else:
    with pytest.raises(errors.InputError, match='peft would leave it out'):
      weights.load(directory, 'float32', adapter=adapter)
  if settings.get('target_modules') != 'all-linear':  # it needs the model
    peft = pytest.importorskip('peft')
    utils = pytest.importorskip('peft.tuners.tuners_utils')
    config = peft.LoraConfig(**{
        k: v for k, v in (lora_writing.SETTINGS | settings).items()
        if k in ('target_modules', 'exclude_modules') or k.startswith('layers')
    })  # fmt: skip
    found = {k: utils.check_target_module_exists(config, k) for k in ALL}
    skipped = utils._ExcludedModule
    assert left == {
      k for k, v in found.items() if v and not isinstance(v, skipped)
    }


@pytest.mark.parametrize(
  'settings',
  [
    {'target_modules': None},
    {'target_modules': r'(?:.*(?:q|down)_proj)'},
  ],
)
def test_an_adapter_that_does_not_tell_its_modules(
  tiny, directory, tmp_path, settings
):
  adapter = str(tmp_path / 'adapter')
  flat = lora_writing.write(adapter, tiny[0], **settings)
  loaded = weights.load(directory, 'float32', adapter=adapter)
  compare(loaded, merge(*tiny[:2], flat, lambda name: 2.0))


def test_against_peft(tiny, directory, tmp_path):
  peft = pytest.importorskip('peft')
  transformers = pytest.importorskip('transformers')
  config, _, _ = tiny
  adapter = str(tmp_path / 'adapter')
  lora_writing.write(adapter, config)
  base = transformers.AutoModelForCausalLM.from_pretrained(directory)
  merged = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
  state = merged.state_dict()
  theirs = hf_names.names(config)
  loaded = weights.load(directory, 'float32', adapter=adapter)
  for ours, array in params_lib.flatten(loaded.params):
    expected = state[theirs[ours]].numpy()
    np.testing.assert_allclose(array, expected, atol=1e-5, err_msg=ours)


def rename(old, new):
  def edit(flat):
    for name in [n for n in flat if old in n]:
      flat[name.replace(old, new)] = flat.pop(name)

  return edit


@pytest.mark.parametrize(
    ('settings', 'edit', 'message'),
    [
        ({'peft_type': 'IA3'}, None, "peft_type is 'IA3'"),
        ({'use_dora': True}, None, 'use_dora is True'),
        ({'bias': 'all'}, None, "bias is 'all'"),
        ({'modules_to_save': ['lm_head']}, None, 'modules_to_save'),
        ({'init_lora_weights': 'pissa'}, None, 'init_lora_weights'),
        ({'trainable_token_indices': [1]}, None, 'trainable_token_indices'),
        ({'target_parameters': ['x']}, None, 'target_parameters'),
        ({'use_qalora': True}, None, 'use_qalora is True.*merge_and_unload'),
        ({'not_yet_known': 3}, None, 'not_yet_known is 3.*merge_and_unload'),
        ({'rank_pattern': [1]}, None, r'rank_pattern is \[1\]'),
        ({'target_modules': 3}, None, 'target_modules is 3'),
        ({'exclude_modules': [3]}, None, r'exclude_modules is \[3\]'),
        ({'exclude_modules': '(?i).*DOWN_PROJ'}, None,
         'exclude_modules is a regular expression that is not read'),
        ({'use_rslora': 'false'}, None, "use_rslora is 'false'"),
        ({'layers_to_transform': ['a']}, None, 'layers_to_transform is '),
        ({'layers_pattern': '(a+)+'}, None, r'layers_pattern is '),
        ({}, lambda f: f.update(
            {'model.' * 200 + 'layers.0.mlp.up_proj.lora_A.weight':
             np.ones((4, 32), 'f4')}), 'adapts no matrix'),
        ({'alpha_pattern': {f'a{i}|b': 1 for i in range(9)}}, None,
         '9 are more than names'),
        ({}, lambda f: f.update(
            {_OF + '0.mlp.up_proj.lora_magnitude_vector': np.ones(3, 'f4')}),
         'lora_magnitude_vector.*adapts no matrix'),
        ({}, lambda f: f.update(
            {'base_model.model.lm_head.weight': np.ones((9, 32), 'f4')}),
         r'lm_head.weight. of its own.*\(9, 32\).*merge_and_unload'),
        ({'lora_alpha': '8'}, None, "lora_alpha is '8'"),
        ({'r': 5}, lambda f: f.update(
            {n: x[:4] if '_A' in n else x[:, :4] for n, x in f.items()}),
         'rank 5'),
        ({'rank_pattern': {'(': 2}}, None, 'not a regular expression'),
        ({}, rename('layers.1.', 'layers.9.'), 'layers.9.*adapts no matrix'),
        ({}, rename('q_proj', 'qkv_proj'), 'qkv_proj.*adapts no matrix'),
        ({}, rename('lora_A', 'lora_embedding_A'), 'adapts no matrix'),
        ({}, lambda f: f.pop(_OF + '0.mlp.down_proj.lora_A.weight'),
         'only lora_B'),
        ({}, lambda f: f.clear() or f.update(
            {_OF + '0.mlp.down_proj.lora_A.weight': np.ones((4, 9), 'f4'),
             _OF + '0.mlp.down_proj.lora_B.weight': np.ones((32, 4), 'f4')}),
         r"down_proj.weight' as a matrix of shape \(32, 9\)"),
        ({}, lambda f: f.clear(), 'no tensors'),
    ],
)  # fmt: skip
def test_refused(tiny, directory, tmp_path, settings, edit, message):
  adapter = str(tmp_path / 'adapter')
  lora_writing.write(adapter, tiny[0], edit=edit, **settings)
  with pytest.raises(errors.InputError, match=message):
    weights.load(directory, 'float32', adapter=adapter)


def test_a_pickle_is_refused(tiny, directory, tmp_path):
  adapter = tmp_path / 'adapter'
  lora_writing.write(str(adapter), tiny[0])
  file = adapter / 'adapter_model.safetensors'
  file.rename(adapter / 'adapter_model.bin')
  with pytest.raises(errors.InputError, match='pickle'):
    weights.load(directory, 'float32', adapter=str(adapter))
  (adapter / 'adapter_config.json').write_text(json.dumps([]))
  with pytest.raises(errors.InputError, match='JSON list'):
    weights.load(directory, 'float32', adapter=str(adapter))
