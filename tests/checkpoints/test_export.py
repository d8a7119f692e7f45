"""What is written: bytes that come back, and models that others load."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import gguf
import gguf_writing
import hf_reference
import lora_writing
import ml_dtypes
import numpy as np
import pytest
import tiny_model
import whole_text

from specdiff_jax.checkpoints import export
from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints import weights
from specdiff_jax.checkpoints.hf import directory as hf_directory
from specdiff_jax.core import errors
from specdiff_jax.drafters import published
from specdiff_jax.drafters import registry
from specdiff_jax.models import gpt2
from specdiff_jax.models import networks
from specdiff_jax.text import tokenizer as tokenizer_lib

BFLOAT16 = ml_dtypes.bfloat16


def raw(folder):
  """Returns name -> (dtype, shape, bytes) of every tensor in a directory."""
  found = {}
  for name, tensor in hf_directory.tensors(str(folder)).items():
    with open(tensor.path, 'rb') as file:
      file.seek(tensor.offset)
      found[name] = (tensor.kind, tensor.shape, file.read(tensor.nbytes))
  return found


def convert(origin, target, form, dtype='', adapter=''):
  source = published.open_drafter(str(origin)) if not adapter else None
  source = source or sources.open_model(str(origin), adapter)
  return export.convert(
    source, str(target), form, dtype, writers=registry.writers()
  )


def rewrite(folder, edit):
  """Rewrites a directory's one file after edit(name -> array)."""
  file = os.path.join(folder, 'model.safetensors')
  flat = {n: stored.read(t) for n, t in safetensors_io.tensors(file).items()}
  edit(flat)
  hf_reference.save(file, flat)


def mixed(flat):
  """Gives tensors dtypes in turn, NaN among them, and buffers."""
  for i, name in enumerate(sorted(flat)):
    kind = (BFLOAT16, np.float16, np.float32)[i % 3]
    flat[name] = flat[name].astype(kind)
    flat[name].reshape(-1)[0] = np.nan  # as bits, nothing may touch it
  frequencies = np.ones(8, np.float32)
  flat['model.layers.0.self_attn.rotary_emb.inv_freq'] = frequencies


def tied(directory):
  file = os.path.join(directory, 'config.json')
  with open(file, encoding='utf-8') as text:
    config = json.load(text) | {'tie_word_embeddings': True}
  hf_reference.write_json(directory, 'config.json', config)


@pytest.mark.parametrize('head', ['untied', 'tied', 'tied with a copy'])
def test_there_and_back_again_to_the_byte(
  directory, tmp_path, head, monkeypatch
):
  rewrite(directory, mixed)
  if head != 'untied':
    tied(directory)
  if head == 'tied':
    rewrite(directory, lambda flat: flat.pop('lm_head.weight'))
  elif head == 'tied with a copy':
    rewrite(
      directory,
      lambda flat: flat.update(
        {'lm_head.weight': flat['model.embed_tokens.weight']}
      ),
    )
  with open(f'{directory}/LICENSE', 'w', encoding='utf-8') as file:
    file.write('free')
  with open(f'{directory}/model.bin', 'wb') as file:
    file.write(b'a pickle')
  native, back = tmp_path / 'native', tmp_path / 'back'
  monkeypatch.setattr(export, 'LARGEST', 30000)  # several files
  convert(directory, native, 'native')
  assert len([n for n in os.listdir(native) if 'params-' in n]) > 1
  done = convert(native, back, 'hf')
  assert raw(back) == raw(directory)
  assert done['tensors'] == len(raw(back)) and done['files'] > 1
  for name in ('config.json', 'tokenizer.json', 'LICENSE'):
    for other in (native, back):
      kept = (other / name).read_bytes()
      with open(os.path.join(directory, name), 'rb') as file:
        assert kept == file.read(), name
  assert not (back / 'model.bin').exists()
  assert not (back / 'specdiff.json').exists()
  first = weights.load(directory, 'bfloat16')
  for path in (native, back):
    again = weights.load(str(path), 'bfloat16')
    assert again.fingerprint == first.fingerprint
    assert again.config == first.config
  changed = raw(back)  # the comparison sees a single bit
  name = sorted(changed)[0]
  kind, shape, data = changed[name]
  changed[name] = kind, shape, bytes([data[0] ^ 1]) + data[1:]
  assert changed != raw(directory)


def test_gpt2_there_and_back_again(tmp_path):
  """Its matrices lie transposed, and its names have two spellings."""
  config = gpt2.GPT2Config(
      vocab_size=260, width=16, layers=2, heads=2, mlp_width=32,
      max_positions=32,
  )  # fmt: skip
  generator = np.random.default_rng(0)
  params = params_lib.nest(
    {
      name: generator.standard_normal(shape).astype(np.float32)
      for name, shape in networks.shapes(config).items()
    }
  )
  origin = str(tmp_path / 'a')
  tokenizer = tokenizer_lib.Tokenizer.bytes(260)
  hf_reference.write_directory(origin, config, params, tokenizer)

  def old(flat):
    for name in list(flat):
      flat[name.removeprefix('transformer.')] = flat.pop(name)
    flat['h.0.attn.bias'] = np.tril(np.ones((1, 1, 32, 32), np.float32))

  for edit in (lambda flat: None, old):
    rewrite(origin, edit)
    suffix = edit.__name__[0]
    convert(origin, tmp_path / f'n{suffix}', 'native')
    convert(tmp_path / f'n{suffix}', tmp_path / f'b{suffix}', 'hf')
    assert raw(tmp_path / f'b{suffix}') == raw(origin)
    loaded = weights.load(str(tmp_path / f'n{suffix}'), 'float32')
    assert loaded.config == config
    np.testing.assert_array_equal(
      loaded.params['layer_1']['up'], params['layer_1']['up']
    )


def theirs(path):
  """Returns the logits of a directory that `transformers` loads."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = transformers.AutoModelForCausalLM.from_pretrained(
    str(path), dtype=torch.float32
  )
  return whole_text.their_logits(model.eval(), IDS)


def ours(path):
  loaded = weights.load(str(path), 'float32')
  return np.asarray(whole_text.logits(loaded.config, loaded.params, IDS))


IDS = [3, 141, 59, 26, 5, 35, 89, 79]


def near(got, expected):
  return np.abs(got - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.slow
def test_transformers_loads_what_is_written_from_native(directory, tmp_path):
  convert(directory, tmp_path / 'n', 'native')
  convert(tmp_path / 'n', tmp_path / 'b', 'hf')
  expected = ours(directory)
  assert near(theirs(tmp_path / 'b'), expected)
  convert(tmp_path / 'n', tmp_path / 'half', 'hf', 'bfloat16')
  half = theirs(tmp_path / 'half')
  assert not near(half, expected)  # rounded weights are seen
  assert near(half, ours(tmp_path / 'half'))
  kinds = {kind for kind, _, _ in raw(tmp_path / 'half').values()}
  assert kinds == {'BF16'}


@pytest.mark.parametrize('kind', ['F32', 'Q8_0'])
def test_transformers_loads_what_is_written_from_gguf(tiny, tmp_path, kind):
  config, params, tokenizer = tiny
  fields = gguf_writing.metadata(config, tokenizer, template='{{ messages }}')
  path = gguf_writing.write(
      tmp_path / 'tiny.gguf', fields, gguf_writing.tensors(config, params),
      kind=gguf.GGMLQuantizationType[kind],
  )  # fmt: skip
  target = tmp_path / 'b'
  convert(path, target, 'hf')
  assert near(theirs(target), ours(path))
  first, again = (weights.load(str(p), 'float32') for p in (path, target))
  assert again.fingerprint == first.fingerprint
  text = 'It is ab, {}!\n'
  for part in (first, again):
    assert part.tokenizer.decode(part.tokenizer.encode(text)) == text
  ids = first.tokenizer.encode(text)
  assert again.tokenizer.encode(text) == ids
  transformers = pytest.importorskip('transformers')
  other = transformers.AutoTokenizer.from_pretrained(str(target))
  assert other(text)['input_ids'] == ids
  assert other.chat_template == '{{ messages }}'
  assert again.tokenizer.end_ids == first.tokenizer.end_ids
  assert again.tokenizer.chat_template == '{{ messages }}'
  convert(path, tmp_path / 'n', 'native')
  native = weights.load(str(tmp_path / 'n'), 'float32')
  assert native.fingerprint == first.fingerprint
  convert(tmp_path / 'n', tmp_path / 'c', 'hf')
  assert raw(tmp_path / 'c') == raw(target)


def test_norms_of_a_gemma_file_are_written_without_their_one(tiny, tmp_path):
  """llama.cpp stores 1 + w, and Hugging Face w."""
  plain, _, tokenizer = tiny
  config = dataclasses.replace(
      plain, layers=6, tied_head=True, qk_norm=True, post_norms=True, window=4,
      activation='gelu_tanh', embed_scale=32**0.5, global_every=6,
      local_rope_base=1e4,
  )  # fmt: skip
  params = tiny_model.random_params(config)
  path = gguf_writing.write(
    tmp_path / 'gemma.gguf',
    gguf_writing.metadata(config, tokenizer, architecture='gemma3'),
    gguf_writing.tensors(config, params, 'gemma3'),
    architecture='gemma3',
  )
  assert weights.load(path, 'float32').config == config
  for form in ('hf', 'native'):
    convert(path, tmp_path / form, form)
  convert(tmp_path / 'native', tmp_path / 'again', 'hf')
  assert raw(tmp_path / 'again') == raw(tmp_path / 'hf')
  written = weights.load(str(tmp_path / 'hf'), 'float32')
  assert written.config == dataclasses.replace(config, norm_offset=1.0)
  np.testing.assert_allclose(
    written.params['final_norm'], params['final_norm'] - 1, atol=1e-6
  )
  expected = ours(path)
  assert near(ours(tmp_path / 'native'), expected)
  assert near(ours(tmp_path / 'hf'), expected)
  assert near(theirs(tmp_path / 'hf'), expected)


def test_a_merged_adapter_is_written_in_the_models_dtype(
  tiny, directory, tmp_path
):
  rewrite(
    directory, lambda f: f.update({n: x.astype(BFLOAT16) for n, x in f.items()})
  )
  adapter = str(tmp_path / 'adapter')
  lora_writing.write(adapter, tiny[0])
  convert(directory, tmp_path / 'b', 'hf', adapter=adapter)
  before, after = raw(directory), raw(tmp_path / 'b')
  changed = {n for n in before if before[n] != after[n]}
  assert len(changed) == 4 and all(after[n][0] == 'BF16' for n in changed)
  merged = weights.load(directory, 'bfloat16', adapter=adapter).params
  written = weights.load(str(tmp_path / 'b'), 'bfloat16').params
  np.testing.assert_array_equal(
    written['layer_1']['down'], merged['layer_1']['down']
  )


def test_targets(directory, tmp_path, monkeypatch):
  (tmp_path / 'used').mkdir()
  (tmp_path / 'used' / 'file').touch()
  for used in ('used', 'used/file'):
    with pytest.raises(errors.InputError, match='is there already'):
      convert(directory, tmp_path / used, 'hf')
  (tmp_path / 'empty').mkdir()
  convert(directory, tmp_path / 'empty', 'hf')
  convert(directory, tmp_path / 'new' / 'deep', 'hf')
  assert raw(tmp_path / 'empty') == raw(tmp_path / 'new' / 'deep')
  before = sorted(os.listdir(tmp_path))

  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(safetensors_io, 'write', full)
  with pytest.raises(errors.InputError, match='t: .*No space left'):
    convert(directory, tmp_path / 't', 'hf')
  assert sorted(os.listdir(tmp_path)) == before


def test_an_incomplete_model_is_not_written(directory, tmp_path):
  rewrite(directory, lambda flat: flat.pop('model.norm.weight'))
  for form in ('hf', 'native'):
    with pytest.raises(errors.InputError, match='missing: final_norm'):
      convert(directory, tmp_path / 't', form)
  with pytest.raises(errors.InputError, match='not a DFlash drafter'):
    convert(directory, tmp_path / 't', 'dflash')
  assert sorted(os.listdir(tmp_path)) == ['model']


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda raw: raw.update(format='specdiff_jax model 9'), 'model 9'),
    (lambda raw: raw.update(network='Mamba'), 'Mamba'),
    (lambda raw: raw['config'].update(width=-1), 'width=-1'),
    (lambda raw: raw['config'].update(depth=1), 'depth'),
    (lambda raw: raw.pop('config'), 'config'),
    (lambda raw: raw.update(names=[1]), 'names'),
    (lambda raw: raw['config'].update(scan_layers=True), 'scan_layers'),
    (lambda raw: raw['config'].update(attention='kernel'), 'attention'),
    (lambda raw: raw['config'].update(layers=1), 'layers.1.*no place'),
  ],
)
def test_a_wrong_native_directory(directory, tmp_path, edit, message):
  convert(directory, tmp_path / 'n', 'native')
  file = tmp_path / 'n' / 'specdiff.json'
  described = json.loads(file.read_text())
  edit(described)
  file.write_text(json.dumps(described))
  with pytest.raises(errors.InputError, match=message):
    weights.load(str(tmp_path / 'n'), 'float32')


def test_only_what_belongs_to_a_model_is_copied(directory, tmp_path):
  secret = tmp_path / 'secret'
  secret.write_text('secret')
  templates = os.path.join(directory, 'additional_chat_templates')
  os.mkdir(templates)
  kept = {
      'chat_template.jinja': directory, 'modeling_x.py': directory,
      'tool_use.jinja': templates,
  }  # fmt: skip
  for name, folder in kept.items():
    with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
      file.write(name)
  for name in ('notes.txt', '.netrc', 'training_args.bin', 'data.json'):
    os.symlink(secret, os.path.join(directory, name))
  os.symlink('chat_template.jinja', os.path.join(directory, 'LICENSE'))
  target = tmp_path / 'out'
  convert(directory, target, 'native')
  assert set(os.listdir(target)) == {
      'additional_chat_templates', 'chat_template.jinja', 'config.json',
      'modeling_x.py', 'params.safetensors', 'specdiff.json', 'tokenizer.json',
      'tokenizer_config.json', 'LICENSE',
  }  # fmt: skip
  assert os.listdir(target / 'additional_chat_templates') == ['tool_use.jinja']
  assert not (target / 'LICENSE').is_symlink()  # what it said, not where
  assert (target / 'LICENSE').read_text() == 'chat_template.jinja'


@pytest.mark.parametrize('name', ['README.md', 'x.py', 'NOTICE'])
def test_a_link_out_of_the_model_is_not_followed(directory, tmp_path, name):
  (tmp_path / 'secret').write_text('secret')
  os.symlink(tmp_path / 'secret', os.path.join(directory, name))
  with pytest.raises(errors.InputError, match=f'{name}: this is a link to'):
    convert(directory, tmp_path / 'out', 'hf')
  assert not (tmp_path / 'out').exists()
  assert not [n for n in os.listdir(tmp_path) if n.startswith('.convert')]


def test_links_within_a_hub_cache_are_followed(directory, tmp_path):
  root = tmp_path / 'models--org--name'
  snapshot, blobs = root / 'snapshots' / 'abc', root / 'blobs'
  blobs.mkdir(parents=True)
  snapshot.parent.mkdir()
  os.rename(directory, snapshot)
  for name in os.listdir(snapshot):
    os.rename(snapshot / name, blobs / name)
    os.symlink(f'../../blobs/{name}', snapshot / name)
  convert(snapshot, tmp_path / 'out', 'hf')
  assert raw(tmp_path / 'out') == raw(snapshot)
  assert not (tmp_path / 'out' / 'config.json').is_symlink()


def test_a_pipe_beside_the_model_is_not_waited_for(directory, tmp_path):
  os.mkfifo(os.path.join(directory, 'README.md'))
  with pytest.raises(errors.InputError, match='README.md: not a regular file'):
    convert(directory, tmp_path / 'out', 'hf')


KILLED = """
import os, signal, sys
from specdiff_jax.checkpoints import export
from specdiff_jax.models import networks
with export.new_folder(sys.argv[1]) as folder:
  open(folder + '/half', 'w').write('x')
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_removed_by_the_next(directory, tmp_path):
  argv = [sys.executable, '-c', KILLED, str(tmp_path / 'out')]
  root = pathlib.Path(export.__file__).parents[2]
  environment = os.environ | {'PYTHONPATH': str(root)}
  assert subprocess.run(argv, env=environment).returncode == -9
  [left] = [n for n in os.listdir(tmp_path) if n.startswith('.convert-')]
  mine = tmp_path / '.convert-mine'  # of somebody else
  mine.mkdir()
  (mine / 'kept').write_text('x')
  os.symlink(tmp_path / left, tmp_path / '.convert-link')
  with export.new_folder(str(tmp_path / 'running')) as other:
    convert(directory, tmp_path / 'out', 'hf')
    assert os.path.isdir(other)  # its owner lives
  assert not (tmp_path / left).exists()
  assert (mine / 'kept').exists() and (tmp_path / 'out').exists()
  assert {n for n in os.listdir(tmp_path) if n.startswith('.')} == {
    '.convert-mine',
    '.convert-link',
  }


def test_a_full_disk_before_the_weights(tiny, tmp_path, monkeypatch):
  path = gguf_writing.write(
      tmp_path / 'a.gguf', gguf_writing.metadata(tiny[0], tiny[2]),
      gguf_writing.tensors(tiny[0], tiny[1]),
  )  # fmt: skip
  real = open

  def full(name, *args, **options):
    if str(name).endswith('tokenizer.json'):
      return real('/dev/full', 'wb')
    return real(name, *args, **options)

  monkeypatch.setattr(export, 'open', full, raising=False)
  with pytest.raises(errors.InputError, match='No space left.*make room'):
    convert(path, tmp_path / 'out', 'hf')
  assert sorted(os.listdir(tmp_path)) == ['a.gguf']


def test_where_nothing_is_written(directory, tmp_path):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'empty')
  for name in ('file', 'link', 'model'):
    with pytest.raises(errors.InputError, match='there already'):
      convert(directory, tmp_path / name, 'hf')
  with pytest.raises(errors.InputError, match='cannot be written'):
    convert(directory, tmp_path / 'file' / 'x', 'hf')
  convert(directory, tmp_path / 'empty', 'hf')


def test_values_that_float16_lacks_are_refused():
  """They would be infinite."""
  block = np.array([1.0, 1e5], ml_dtypes.bfloat16)
  with pytest.raises(errors.InputError, match='^a has values beyond 65504'):
    safetensors_io._cast('a', block, np.float16)
  kept = safetensors_io._cast('a', np.array([1, np.inf]), np.float16)
  assert kept.tolist() == [1, np.inf]
  assert safetensors_io._cast('a', block, np.float32)[1] == block[1]
