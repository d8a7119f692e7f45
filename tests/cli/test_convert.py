"""`convert` and `inspect`: models in other forms, and what they are."""

import json
import os
import shutil

import gguf_writing
import hf_reference
import jax
import lora_writing
import numpy as np
import published_models
import pytest

from specdiff_jax.checkpoints import presets
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints import weights
from specdiff_jax.cli import command
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import registry
from specdiff_jax.drafters.dflash import options as dflash_options
from specdiff_jax.models import networks
from specdiff_jax.recipes import recipe_file
from specdiff_jax.text import tokenizer as tokenizer_lib

CONFIG = presets.SIZES['tiny']
SHIPPED = 'smollm2_135m_instruct.safetensors'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Returns a folder with one model as hf/ and as tiny.gguf."""
  folder = tmp_path_factory.mktemp('made')
  checkpoint = presets.random('tiny', 'float32')
  tokenizer = tokenizer_lib.Tokenizer.bytes(CONFIG.vocab_size)
  hf_reference.write_directory(
    str(folder / 'hf'), CONFIG, checkpoint.params, tokenizer, shards=2
  )
  gguf_writing.write(
    folder / 'tiny.gguf',
    gguf_writing.metadata(CONFIG, tokenizer, template='{{ messages }}'),
    gguf_writing.tensors(CONFIG, checkpoint.params),
  )
  published_models.write(
    str(folder / 'dflash'), *published_models.make('dflash')
  )
  published_models.write(str(folder / 'llada'), *published_models.make('llada'))
  return folder


def refused(run, *words):
  assert run.code == 2 and run.out == '', run
  assert len(run.err.strip().splitlines()) == 1, run.err
  for word in words:
    assert str(word) in run.err, (word, run.err)


def test_convert_from_form_to_form(specdiff, made, tmp_path):
  steps = [
      (made / 'tiny.gguf', 'native'), ('native', 'hf'), ('hf', 'native'),
  ]  # fmt: skip
  digests = {weights.load(str(made / 'hf'), 'float32').fingerprint}
  for number, (origin, form) in enumerate(steps):
    origin = origin if number == 0 else tmp_path / str(number - 1)
    target = tmp_path / str(number)
    run = specdiff(
      'convert', '--from', origin, '--to', target, f'--format={form}'
    )
    assert run.code == 0, run.err
    count = len(networks.shapes(CONFIG))
    size = 4 * presets.parameters(CONFIG)
    assert run.json == {
        'to': str(target), 'format': form, 'tensors': count, 'bytes': size,
        'files': 1,
    }  # fmt: skip
    digests.add(weights.load(str(target), 'float32').fingerprint)
  assert len(digests) == 1


def test_a_converted_model_decodes_alike(specdiff, tiny, made, tmp_path):
  target = tmp_path / 'native'
  assert (
    specdiff(
      'convert', '--from', made / 'hf', '--to', target, '--format=native'
    ).code
    == 0
  )
  texts = [
      specdiff(
          'decode', tiny, '--prompt=a', '--config.system=ar',
          '--config.chat=False', f'--config.verifier={path}',
      )
      for path in (made / 'hf', target)
  ]  # fmt: skip
  assert texts[0].code == texts[1].code == 0, texts
  assert texts[0].out == texts[1].out


def test_the_verifier_takes_an_adapter(specdiff, tiny, made, tmp_path, root):
  lora_writing.write(str(tmp_path), CONFIG)
  hf, adapter = str(made / 'hf'), str(tmp_path)
  config = recipe_file.load_recipe(f'{root}/configs/tiny.py:smoke', verifier=hf)
  plain = command.verifier(config)
  merged = command.verifier(config.change(adapter=adapter))
  assert merged.fingerprint != plain.fingerprint
  expected = weights.load(hf, config.model.dtype, adapter=adapter)
  assert merged.fingerprint == expected.fingerprint
  np.testing.assert_array_equal(
    merged.params['layer_2']['down'], expected.params['layer_2']['down']
  )
  run = specdiff('decode', tiny, '--prompt=a', f'--config.adapter={tmp_path}')
  refused(run, 'config.adapter', tmp_path, 'random')


def test_convert_dflash(specdiff, made, tmp_path):
  run = specdiff(
      'convert', '--from', made / 'dflash', '--to', tmp_path / 'd',
      '--format=dflash', '--dtype=bfloat16',
  )  # fmt: skip
  assert run.code == 0, run.err
  raw = json.loads((tmp_path / 'd' / 'config.json').read_text())
  assert raw['dflash_config'] == {
    'mask_token_id': published_models.MASK,
    'target_layer_ids': [1, 0],
    'block_size': 5,
  }
  assert raw['block_size'] == 5 and raw['dtype'] == 'bfloat16'
  before, after = (
    safetensors_io.tensors(str(folder / 'model.safetensors'))
    for folder in (made / 'dflash', tmp_path / 'd')
  )
  assert set(before) == set(after)
  for name, tensor in after.items():
    expected = stored.read(before[name]).astype(tensor.dtype)
    np.testing.assert_array_equal(stored.read(tensor), expected, err_msg=name)


def test_convert_refuses(specdiff, made, tmp_path, root):
  def convert(*argv):
    return specdiff('convert', *argv)

  to = ('--to', tmp_path / 'x')
  refused(convert(*to), '--from')
  refused(convert('--from', made / 'hf'), '--to')
  onnx = convert('--from', made / 'hf', *to, '--format=onnx')
  refused(onnx, 'format', 'onnx')
  refused(convert('--from', made / 'hf', *to, '--dtype=int4'), 'dtype', 'int4')
  refused(convert('--from', 'nowhere', *to), 'nowhere')
  refused(convert('--from', made / 'hf', '--to', made), made, 'already')
  refused(convert('--from', made / 'hf', *to, 'more'), 'positional', 'more')
  refused(convert('--from', made / 'hf', *to, '--form=hf'), 'form', 'format')
  dflash = ('--format=dflash',)
  refused(convert('--from', made / 'hf', *to, *dflash), 'not a DFlash drafter')
  refused(convert('--from', made / 'llada', *to, *dflash), 'not a DFlash')
  refused(convert('--from', made / 'llada', *to, '--format=native'), 'drafter')
  refused(
    convert('--from', made / 'hf', *to, f'--adapter={tmp_path}'),
    'adapter_config.json',
  )
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('form', ['hf', 'native', *registry.forms()])
def test_a_trained_drafter_says_what_serves_it(specdiff, root, tmp_path, form):
  """In any form, by its path and by its name in the zoo."""
  path = root / 'specdiff_jax' / 'zoo' / SHIPPED
  to = '--to', tmp_path / 'x', f'--format={form}'
  told = ("'diffusion'", 'config.system=specdiff', 'config.drafter', 'Python')
  refused(specdiff('convert', '--from', path, *to), path, *told)
  refused(specdiff('convert', '--from', path.name, *to), *told)
  tensors, facts = safetensors_io.load(str(path))
  other = tmp_path / 'd.safetensors'
  for kind, words in (
      ('autoregressive', ['config.system=sps']), ('x', ["'x'", 'masked_lm']),
  ):  # fmt: skip
    safetensors_io.save(str(other), tensors, facts | {'kind': kind})
    refused(specdiff('convert', '--from', other, *to), other, *words)
  safetensors_io.save(str(other), {'a': np.ones(2)}, {})
  refused(specdiff('convert', '--from', other, *to), 'a file of tensors alone')
  assert os.listdir(tmp_path) == ['d.safetensors']


def test_convert_a_trained_dflash(specdiff, tmp_path):
  checkpoint = presets.random('tiny', 'float32')
  options = dflash_options.Options(layers=1, vocab=40, mask_id=9)
  network = registry.network('dflash')
  sizes = network.sizes(options, 4, checkpoint.config)
  params = network.initial(sizes, jax.random.key(0))
  path = str(tmp_path / 'drafter.safetensors')
  drafter_file.save(path, sizes, params, np.arange(40), checkpoint, {})
  run = specdiff('convert', '--from', path, '--to', tmp_path / 'x')
  refused(run, "kind 'dflash'", 'dflash or speculators')
  for form in ('dflash', 'speculators'):
    to = tmp_path / form
    run = specdiff('convert', '--from', path, '--to', to, f'--format={form}')
    assert run.code == 0, run.err
    told = specdiff('inspect', to).json
    assert told['drafter'] == {'kind': 'DFlash', 'mask_id': 9}
    assert told['network'] == 'DFlash' and not told['fault']


@pytest.mark.parametrize('form', ['hf', 'gguf', 'native'])
def test_inspect(specdiff, made, tmp_path, form):
  path = {
      'hf': made / 'hf', 'gguf': made / 'tiny.gguf', 'native': tmp_path / 'n',
  }[form]  # fmt: skip
  if form == 'native':
    assert (
      specdiff(
        'convert', '--from', made / 'hf', '--to', path, '--format=native'
      ).code
      == 0
    )
  run = specdiff('inspect', path, '--mesh', 'data=2,model=4', '--dtype=float32')
  assert run.code == 0, run.err
  told = run.json
  family = 'llama' if form == 'gguf' else 'LlamaForCausalLM'
  assert told['form'] == form and told['family'] == family
  assert told['network'] == 'Transformer' and told['fault'] == ''
  assert told['config']['width'] == CONFIG.width
  assert told['parameters'] == presets.parameters(CONFIG)
  assert told['dtypes'] == {'F32': 4 * told['parameters']}
  assert told['tokenizer']['vocab_size'] == 320
  assert told['tokenizer']['end_ids'] == ([256] if form == 'gguf' else [])
  assert told['tokenizer']['chat_template'] == (form == 'gguf')
  # Vectors are whole on every chip, matrices in four parts.
  vectors = 64 * (2 * CONFIG.layers + 1)
  matrices = told['parameters'] - vectors
  assert told['mesh']['weights'] == 4 * (vectors + matrices // 4)
  assert f'{told["parameters"]:,}' in run.out


def test_inspect_presets_and_chips(specdiff):
  run = specdiff(
    'inspect', 'preset:llama2_70b', '--mesh=data=2,model=4', '--chip-gib=16'
  )
  assert run.code == 0, run.err
  told = run.json
  assert told['parameters'] == 68_976_648_192
  assert told['mesh']['fits'] is False and 'does not fit' in run.out
  assert told['mesh']['weights_whole'] == 2 * told['parameters']
  assert told['mesh']['cache_per_token'] == 2 * 2 * 80 * 8 * 128
  alone = specdiff('inspect', 'preset:smollm2_135m', '--chip-gib=16').json
  assert alone['mesh']['fits'] is True
  assert alone['mesh']['weights'] == 2 * 134_515_008
  assert specdiff('inspect', 'preset:gpt2').json['family'] == 'GPT2LMHeadModel'


def test_inspect_names_what_a_mesh_does_not_divide(specdiff):
  run = specdiff('inspect', 'preset:smollm2_135m', '--mesh=data=2,model=5')
  whole = run.json['mesh']['not_split']
  assert len(whole) == 7 * 30 + 1  # every matrix
  line = 'down: dimension 1 of (576, 1536) does not divide over model=5'
  assert f'layer_7/{line}' in whole
  table, _, _ = run.out.rpartition('{')
  assert table.count('does not divide') == 8  # the layers are alike
  fits = specdiff('inspect', 'preset:smollm2_135m', '--mesh=data=2,model=4')
  assert fits.json['mesh']['not_split'] == []
  assert 'does not divide' not in fits.out


def test_inspect_drafters(specdiff, made, root):
  dflash = specdiff('inspect', made / 'dflash').json
  assert dflash['drafter']['kind'] == 'DFlash'
  assert dflash['network'] == 'DFlash' and not dflash['fault']
  llada = specdiff('inspect', made / 'llada').json
  assert llada['drafter'] == {
      'kind': 'masked language model', 'mask_id': published_models.MASK,
      'shifted': False,
  }  # fmt: skip
  zoo = root / 'specdiff_jax' / 'zoo'
  for path in zoo.glob('*.safetensors'):
    ours = specdiff('inspect', path.name).json
    assert len(ours['verifier']) == 16
    kept = sum(ours['dtypes'].values())
    # bfloat16, or int8 with a scale for each row and the draft vocabulary.
    each = 1 if 'I8' in ours['dtypes'] else 2
    assert each <= kept / ours['parameters'] < each + 0.1


def test_inspect_reads_no_weights(specdiff, made, monkeypatch):
  def never(*_):
    raise AssertionError('a weight was read')

  monkeypatch.setattr(stored.InFile, '_read', never)
  for path in ('hf', 'tiny.gguf', 'dflash'):
    assert specdiff('inspect', made / path).code == 0
  with pytest.raises(AssertionError):
    weights.load(str(made / 'hf'), 'float32')


def test_inspect_tells_faults(specdiff, made, tmp_path):
  path = tmp_path / 'model'
  checkpoint = presets.random('tiny', 'float32')
  tokenizer = tokenizer_lib.Tokenizer.bytes(320)
  hf_reference.write_directory(str(path), CONFIG, checkpoint.params, tokenizer)
  raw = json.loads((path / 'config.json').read_text())
  hf_reference.write_json(path, 'config.json', raw | {'num_hidden_layers': 4})
  os.remove(path / 'tokenizer.json')
  run = specdiff('inspect', path)
  assert run.code == 1
  assert 'missing: layer_3.attention_norm' in run.json['fault']
  assert 'no tokenizer.json' in run.json['tokenizer']['error']


def test_inspect_shows_names_as_they_are(specdiff, made, tmp_path):
  path = tmp_path / 'dir[' / 'x]\x1b[2J'
  shutil.copytree(made / 'hf', path)
  run = specdiff('inspect', path)
  assert run.code == 0 and run.json['path'] == str(path)
  table, _, _ = run.out.rpartition('{"path"')
  assert 'dir[/x]' in table and '\x1b' not in run.out


def test_inspect_a_drafter_that_asks_for_too_much(specdiff, root, tmp_path):
  file = root / 'specdiff_jax' / 'zoo' / SHIPPED
  tensors, facts = safetensors_io.load(str(file))
  sizes = json.loads(facts['config'])
  path = tmp_path / 'x.safetensors'
  for changes in (
      {'layers': 10**9}, {'features': [10**9]}, {'gamma': -1}, {'ngram': 'x'},
      {'verifier': sizes['verifier'] | {'layers': 10**9}}, {'verifier': 3},
  ):  # fmt: skip
    facts['config'] = json.dumps(sizes | changes)
    safetensors_io.save(str(path), tensors, facts)
    refused(specdiff('inspect', path), 'x.safetensors', *changes)


def test_inspect_tells_what_a_drafter_lacks(specdiff, root, tmp_path):
  file = root / 'specdiff_jax' / 'zoo' / SHIPPED
  tensors, facts = safetensors_io.load(str(file))
  del tensors['network']['trunk']
  path = tmp_path / 'x.safetensors'
  safetensors_io.save(str(path), tensors, facts)
  run = specdiff('inspect', path)
  assert run.code == 1 and "'network.trunk'" in run.json['fault'], run


def test_inspect_refuses(specdiff, made, tmp_path):
  refused(specdiff('inspect'), 'one PATH')
  refused(specdiff('inspect', 'a', 'b'), 'one PATH', 'a b')
  refused(specdiff('inspect', 'nowhere'), 'nowhere')
  refused(specdiff('inspect', 'preset:nothing'), 'nothing', 'llama2_7b')
  for mesh in ('data', 'data=0', 'rows=2', 'model=x'):
    refused(specdiff('inspect', made / 'hf', f'--mesh={mesh}'), '--mesh', mesh)
  file = tmp_path / 'x.safetensors'
  safetensors_io.save(str(file), {'a': np.ones(2)}, {})
  refused(specdiff('inspect', file), 'x.safetensors', 'config.json')
  file.write_bytes(b'\xff' * 100)
  refused(specdiff('inspect', file), 'x.safetensors', 'damaged')
  (tmp_path / 'model.bin').write_bytes(b'\x80\x04')
  refused(specdiff('inspect', tmp_path / 'model.bin'), 'pickle')
