"""GGUF files: what is written comes back, and damage is told as damage."""

import dataclasses
import math
import struct

import gguf
from gguf import quants
import gguf_writing
import numpy as np
import pytest
import tiny_model
import whole_text

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints import weights
from specdiff_jax.checkpoints.gguf import header as gguf_io
from specdiff_jax.checkpoints.gguf import models
from specdiff_jax.checkpoints.gguf import tensors
from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib

_KINDS = gguf.GGMLQuantizationType


@pytest.fixture(scope='module')
def parts(tiny):
  """Returns (fields, arrays) of a sound file."""
  config, params, tokenizer = tiny
  fields = gguf_writing.metadata(config, tokenizer)
  return fields, gguf_writing.tensors(config, params)


@pytest.fixture
def written(parts, tmp_path):
  """Returns the path of a sound file."""
  return gguf_writing.write(tmp_path / 'tiny.gguf', *parts)


def test_params_and_config_come_back(tiny, written):
  config, params, _ = tiny
  loaded = weights.load(written, 'float32')
  assert loaded.config == config
  got = dict(params_lib.flatten(loaded.params))
  for name, expected in params_lib.flatten(params):
    np.testing.assert_array_equal(got[name], expected, err_msg=name)
  assert loaded.fingerprint == params_lib.fingerprint(config, params)
  assert loaded.tokenizer.end_ids == (256,)


def test_rows_would_be_in_another_order_without_undoing_it(tiny, parts):
  """The negative control of the permutation of Q and K."""
  config, params, _ = tiny
  stored = parts[1]['blk.0.attn_q.weight']
  expected = params['layer_0']['query']
  assert not np.array_equal(stored, expected)
  undone = tensors.unpermute(stored, config.heads)
  np.testing.assert_array_equal(undone, expected)
  wrong_heads = tensors.unpermute(stored, config.kv_heads)
  assert not np.array_equal(wrong_heads, expected)


def test_order_of_one_small_head():
  file_rows = np.array([[0], [2], [1], [3]], np.float32)
  ours = tensors.unpermute(file_rows, heads=1)
  np.testing.assert_array_equal(ours[:, 0], [0, 1, 2, 3])


@pytest.mark.parametrize(
  'kind', [_KINDS.F16, _KINDS.BF16, _KINDS.Q8_0, _KINDS.Q4_0, _KINDS.Q4_1]
)
def test_block_formats(parts, tmp_path, kind):
  fields, arrays = parts
  path = gguf_writing.write(tmp_path / 'q.gguf', fields, arrays, kind)
  loaded = weights.load(path, 'float32')
  blocks = quants.quantize(arrays['blk.1.ffn_up.weight'], kind)
  expected = quants.dequantize(blocks, kind)
  np.testing.assert_array_equal(loaded.params['layer_1']['up'], expected)
  assert (
    loaded.fingerprint
    != weights.load(
      gguf_writing.write(tmp_path / 'f.gguf', fields, arrays), 'float32'
    ).fingerprint
  )


def _can_be_read(kind):
  block, size = gguf.GGML_QUANT_SIZES[kind]
  try:
    quants.dequantize(np.zeros((1, size), np.uint8), kind)
  except NotImplementedError:
    return False
  return block > 0


@pytest.mark.parametrize('kind', list(gguf.GGML_QUANT_SIZES))
def test_all_that_the_package_dequantises(tmp_path, kind):
  """In blocks of rows, as a sample, and as a whole, from random bytes."""
  block, size = gguf.GGML_QUANT_SIZES[kind]
  raw = np.random.default_rng(int(kind)).integers(0, 256, (5, 3 * size))
  path = tmp_path / 'raw'
  path.write_bytes(b'xyz' + raw.astype(np.uint8).tobytes())
  info = gguf_io.TensorInfo((5, 3 * block), kind, 3, raw.size)
  tensor = tensors.Quantised(str(path), 'a', info)
  if kind != gguf_writing.F32 and not _can_be_read(kind):
    with pytest.raises(errors.InputError, match=f'{kind.name}.*Q8_0 or F16'):
      stored.read(tensor)
    return
  expected = raw.astype(np.uint8)
  if kind == gguf_writing.F32:
    expected = expected.view(np.float32)
  else:
    expected = quants.dequantize(expected, kind)
  np.testing.assert_array_equal(stored.read(tensor), expected)
  np.testing.assert_array_equal(tensor.sample(7), expected.reshape(-1)[::7])
  [(first, rows)] = tensor.blocks(1, 4)
  assert first == 1
  np.testing.assert_array_equal(rows, expected[1:4])


def test_the_usual_formats_are_among_them():
  usual = 'F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K'.split()
  usual += 'IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL'.split()
  assert all(_can_be_read(_KINDS[name]) for name in usual)


def test_large_tensors_come_in_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr(tensors, '_BLOCK', 64)
  values = np.arange(7 * 32, dtype=np.float32).reshape(7, 32)
  path = tmp_path / 'raw'
  path.write_bytes(values.tobytes())
  info = gguf_io.TensorInfo(values.shape, _KINDS.F32, 0, values.nbytes)
  tensor = tensors.Quantised(str(path), 'a', info)
  assert [row for row, _ in tensor.blocks()] == [0, 2, 4, 6]
  np.testing.assert_array_equal(stored.read(tensor), values)


# Sizes that transformers assumes whatever a GGUF file says: the head_dim of
# Qwen and Gemma, and Gemma's rotary bases.
_FAMILIES = {
  'llama': {},
  'qwen2': {'qkv_bias': True, 'head_dim': 8},
  'qwen3': {'qk_norm': True, 'head_dim': 128},
  'gemma3': {
    'head_dim': 256,
    'rope_base': 1e6,
    'qk_norm': True,
    'post_norms': True,
    'activation': 'gelu_tanh',
    'embed_scale': 32**0.5,
    'window': 6,
    'global_every': 6,
    'local_rope_base': 10000.0,
    'layers': 7,
    'tied_head': True,
  },
}


def family(name, tiny):
  """Returns (config, params, fields) of a small model of an architecture."""
  config = dataclasses.replace(tiny[0], **_FAMILIES[name])
  params = tiny_model.random_params(config)
  fields = gguf_writing.metadata(config, tiny[2], architecture=name)
  return config, params, fields


@pytest.mark.parametrize('name', _FAMILIES)
def test_families(tiny, tmp_path, name):
  config, params, fields = family(name, tiny)
  path = gguf_writing.write(
    tmp_path / 'a.gguf',
    fields,
    gguf_writing.tensors(config, params, name),
    architecture=name,
  )
  loaded = weights.load(path, 'float32')
  assert loaded.config == config
  got = dict(params_lib.flatten(loaded.params))
  assert got.keys() == dict(params_lib.flatten(params)).keys()
  for key, expected in params_lib.flatten(params):
    np.testing.assert_array_equal(got[key], expected, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize('name', _FAMILIES)
def test_families_against_transformers(tiny, tmp_path, name):
  """Its own reading of the same file: order of rows, norms, windows, bases."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('accelerate')  # without it, it reads no GGUF
  config, params, fields = family(name, tiny)
  arrays = gguf_writing.tensors(config, params, name)
  gguf_writing.write(tmp_path / 'a.gguf', fields, arrays, architecture=name)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    str(tmp_path), gguf_file='a.gguf', dtype=torch.float32
  )
  ids = np.random.default_rng(1).integers(0, config.vocab_size, 20)
  expected = whole_text.their_logits(model, ids)
  loaded = weights.load(str(tmp_path / 'a.gguf'), 'float32')
  scale = 1e-4 * np.ptp(expected)
  got = whole_text.logits(loaded.config, loaded.params, ids)
  assert np.abs(got - expected).max() <= scale
  # The negative control: rows of Q in the order of another architecture.
  query = loaded.params['layer_0']['query']
  other = gguf_writing.permute(query, config.heads)
  loaded.params['layer_0'] |= {'query': other}
  got = whole_text.logits(loaded.config, loaded.params, ids)
  assert np.abs(got - expected).max() > 10 * scale


def test_gemma3_defaults_and_the_27b(tiny):
  """What llama.cpp assumes where the metadata say nothing."""
  _, _, fields = family('gemma3', tiny)
  fields |= {'general.architecture': 'gemma3'}

  def read(changes):
    merged = {k: v for k, v in (fields | changes).items() if v is not None}
    return models.read_config(gguf_io.Header('a.gguf', merged, {}))

  everywhere = read({'gemma3.attention.sliding_window': None})
  assert (everywhere.window, everywhere.global_every) == (0, 0)
  given = read(
    {
      'gemma3.attention.sliding_window_pattern': 4,
      'gemma3.rope.freq_base_swa': 77.0,
      'gemma3.rope.scaling.type': 'linear',
      'gemma3.rope.scaling.factor': 8.0,
    }
  )
  assert (given.global_every, given.local_rope_base) == (4, 77.0)
  assert given.rope_scaling == config_lib.RopeScaling('linear', 8.0)
  large = read(
    {
      'gemma3.block_count': 62,
      'gemma3.embedding_length': 5376,
      'gemma3.attention.head_count': 32,
      'gemma3.attention.head_count_kv': 16,
    }
  )
  assert large.query_scale == pytest.approx(168**-0.5)  # not head_dim's


LINEAR = config_lib.RopeScaling('linear', 4.0)


@pytest.mark.parametrize(
  ('keys', 'expected'),
  [
    ({}, None),
    ({'scale_linear': 4.0}, LINEAR),  # as older converters wrote it
    ({'scaling.factor': 4.0}, LINEAR),  # linear is llama.cpp's default
    ({'scaling.type': 'linear', 'scaling.factor': 4.0}, LINEAR),
    ({'scaling.type': 'linear', 'scale_linear': 4.0}, LINEAR),
    ({'scaling.factor': 4.0, 'scale_linear': 4.0}, LINEAR),
    ({'scaling.type': 'none', 'scaling.factor': 4.0}, None),
    ({'scaling.type': 'none', 'scale_linear': 4.0}, None),
    ({'scaling.factor': 0.0, 'scale_linear': 4.0}, LINEAR),
    ({'scaling.factor': 0.0}, None),
    ({'scale_linear': 1.0}, None),
    ({'freq_base': None}, None),  # then it is 10000
  ],
)
def test_spellings_of_rotary_scaling(parts, keys, expected):
  """What llama.cpp makes of these keys."""
  changes = {f'llama.rope.{key}': value for key, value in keys.items()}
  fields = {'general.architecture': 'llama'} | parts[0] | changes
  fields = {k: v for k, v in fields.items() if v is not None}
  config = models.read_config(gguf_io.Header('a.gguf', fields, {}))
  assert config.rope_scaling == expected
  assert config.rope_base == (10000.0 if 'freq_base' in keys else 5000.0)


def test_factors_of_llama3(tiny, tmp_path):
  """The converter's own formula for the tensor that it writes."""
  config = dataclasses.replace(
    tiny[0],
    rope_base=500000.0,
    rope_scaling=config_lib.RopeScaling('llama3', 32.0),
  )
  factors = []
  for i in range(0, config.head_dim, 2):
    wavelength = 2 * math.pi * config.rope_base ** (i / config.head_dim)
    if wavelength < 8192 / 4:
      factors.append(1.0)
    elif wavelength > 8192 / 1:
      factors.append(32.0)
    else:
      smooth = (8192 / wavelength - 1) / (4 - 1)
      factors.append(1 / ((1 - smooth) / 32 + smooth))
  arrays = gguf_writing.tensors(config, tiny[1])
  arrays['rope_freqs.weight'] = np.asarray(factors, np.float32)
  fields = gguf_writing.metadata(config, tiny[2])
  path = gguf_writing.write(tmp_path / 'a.gguf', fields, arrays)
  assert weights.load(path, 'float32').config == config
  arrays['rope_freqs.weight'] *= np.float32(1.001)
  path = gguf_writing.write(tmp_path / 'b.gguf', fields, arrays)
  with pytest.raises(errors.InputError, match='factors of rope_freqs'):
    weights.load(path, 'float32')


def test_every_kind_of_metadata(parts, tmp_path):
  """The header that we parse is the one that the gguf package parses."""
  writer = gguf.GGUFWriter(str(tmp_path / 'all.gguf'), 'llama')
  for size in (8, 16, 32, 64):
    getattr(writer, f'add_uint{size}')(f'u{size}', 7)
    getattr(writer, f'add_int{size}')(f'i{size}', -7)
  writer.add_float64('f64', 0.1)
  writer.add_float32('f32', 1e-5)
  writer.add_bool('bool', True)
  writer.add_string('text', 'é\u2581')
  writer.add_array('numbers', [1, -2, 3])
  writer.add_array('texts', ['a', '', 'ccc'])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  path = str(tmp_path / 'all.gguf')
  ours = gguf_io.read_header(path).fields
  assert ours.pop('f32') == 1e-5  # as written, not as float32 widens it
  theirs = gguf.GGUFReader(path).fields
  for key, value in ours.items():
    assert value == theirs[key].contents(), key
  assert len(ours) == 14


def test_every_truncation_is_told(written, tmp_path):
  with open(written, 'rb') as file:
    whole = file.read()
  end = gguf_io.read_header(written).tensors['token_embd.weight'].offset
  cuts = [*range(0, 64), *range(64, end, 97), *range(end, len(whole), 4999)]
  for cut in [*cuts, len(whole) - 1]:
    path = tmp_path / 'cut.gguf'
    path.write_bytes(whole[:cut])
    with pytest.raises(errors.InputError, match='cut.gguf'):
      weights.load(str(path), 'float32')


def test_a_flipped_byte_never_escapes_as_another_error(written, tmp_path):
  """Damage in the header loads, or is an InputError; nothing else."""
  with open(written, 'rb') as file:
    whole = file.read()
  start = gguf_io.read_header(written).tensors['token_embd.weight'].offset
  generator = np.random.default_rng(0)
  told = 0
  for _ in range(300):
    damaged = bytearray(whole)
    for at in generator.integers(0, start, 2):
      damaged[at] = generator.integers(0, 256)
    path = tmp_path / 'flip.gguf'
    path.write_bytes(damaged)
    try:
      weights.load(str(path), 'float32')
    except errors.InputError:
      told += 1
  assert told > 30


def test_lying_counts_allocate_nothing(tmp_path):
  huge = 1 << 60
  text = struct.pack('<Q', 1) + b'k'
  magic = b'GGUF' + struct.pack('<I', 3)
  lies = {
    'tensors': magic + struct.pack('<QQ', huge, 0),
    'fields': magic + struct.pack('<QQ', 0, huge),
    'text': magic + struct.pack('<QQQ', 0, 1, huge),
    'array': magic
    + struct.pack('<QQ', 0, 1)
    + text
    + struct.pack('<IIQ', 9, 4, huge),
    'texts': magic
    + struct.pack('<QQ', 0, 1)
    + text
    + struct.pack('<IIQ', 9, 8, huge),
    'shape': magic
    + struct.pack('<QQ', 1, 0)
    + text
    + struct.pack('<IQQIQ', 2, huge, huge, 0, 0),
  }
  for name, lie in lies.items():
    path = tmp_path / f'{name}.gguf'
    path.write_bytes(lie + bytes(64))
    with pytest.raises(errors.InputError, match='not a complete GGUF'):
      gguf_io.read_header(str(path))


def test_factors_and_a_factor_are_refused(parts, tmp_path):
  fields = parts[0] | {'llama.rope.scaling.factor': 4.0}
  arrays = parts[1] | {'rope_freqs.weight': np.ones(8, np.float32)}
  path = gguf_writing.write(tmp_path / 'a.gguf', fields, arrays)
  with pytest.raises(errors.InputError, match='scaled by 4.0 and by rope_freq'):
    weights.load(path, 'float32')


def test_metadata_that_nobody_needs_may_be_any_bytes(parts, tmp_path):
  fields = parts[0] | {'general.author': 'NAME', 'quantize.file': ['NAME']}
  path = tmp_path / 'a.gguf'
  gguf_writing.write(path, fields, parts[1])
  whole = path.read_bytes()
  path.write_bytes(whole.replace(b'NAME', b'\xff\xfeAB'))
  weights.load(str(path), 'float32')
  token = parts[0]['tokenizer.ggml.tokens'][-1].encode()
  path.write_bytes(whole.replace(token, b'\xff' * len(token)))
  with pytest.raises(errors.InputError, match='not UTF-8'):
    weights.load(str(path), 'float32')


def header(fields, kind=4):
  """Returns a header of keys that hold one number each."""
  data = b'GGUF' + struct.pack('<IQQ', 3, 0, len(fields))
  for key in fields:
    data += struct.pack('<Q', len(key)) + key + struct.pack('<II', kind, 0)
  return data


def test_headers_beyond_any_model(tmp_path):
  path = tmp_path / 'a.gguf'

  def refused(data, message):
    path.write_bytes(data + bytes(64))
    with pytest.raises(errors.InputError, match=message):
      gguf_io.read_header(str(path))

  refused(header([b'k', b'k']), "'k' is there twice")
  many = b'GGUF' + struct.pack('<IQQ', 3, 1 << 20, 0)
  refused(many + bytes(24 << 20), 'promises 0 keys and 1048576 tensors')
  one = b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + struct.pack('<Q', 1) + b'k'
  array = struct.pack('<IIQ', 9, 8, 3 << 20)
  refused(one + array + bytes(24 << 20), 'an array of 3145728 items')
  nested = struct.pack('<IIQ', 9, 9, 1) + struct.pack('<IQ', 4, 0)
  refused(one + nested, 'an array of unknown type 9')
  with open(path, 'wb') as file:  # a sparse file of a terabyte
    file.write(one + struct.pack('<IQ', 8, 1 << 39))
    file.truncate(1 << 40)
  with pytest.raises(errors.InputError, match='more than 134217728 bytes'):
    gguf_io.read_header(str(path))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'llama.block_count': 3}, '9 of 30 tensors are missing'),
    ({'llama.block_count': 1}, "tensor 'blk.1.* has no place"),
    ({'llama.block_count': 'two'}, "block_count is 'two'"),
    ({'llama.feed_forward_length': 65}, 'shape .* asks for'),
    ({'llama.attention.head_count': 3}, 'not a multiple'),
    ({'llama.embedding_length': None}, 'embedding_length is None'),
    ({'llama.rope.scaling.type': 'yarn'}, 'scales its rotary .*yarn'),
    ({'llama.rope.dimension_count': 8}, 'rope.dimension_count=8'),
    (
      {'llama.rope.scaling.factor': 4.0, 'llama.rope.scale_linear': 2.0},
      'scaling.factor is 4.0, but .*scale_linear',
    ),
    ({'llama.attention.scale': 0.5}, 'attention.scale is 0.5'),
    ({'llama.attention.causal': False}, 'attention.causal is False'),
    ({'llama.rope.scaling.attn_factor': 2.0}, 'attn_factor is 2.0'),
    ({'llama.logit_scale': 2.0}, "'llama.logit_scale' is 2.0"),
    ({'llama.use_parallel_residual': True}, 'use_parallel_residual'),
    ({'llama.attention.head_count_kv': [2, 1]}, r'count_kv is \[2, 1\]'),
    ({'llama.block_count': 10**9}, 'block_count=1000000000 is more than'),
    ({'llama.attention.head_count': 2.5}, 'head_count is 2.5'),
    ({'llama.expert_count': 8}, 'mixture of experts'),
    ({'split.count': 2}, 'one of 2 parts'),
    ({'llama.vocab_size': 280}, 'ids up to 287'),
    ({'tokenizer.ggml.tokens': None}, 'vocab_size is None'),
    (
      {'llama.vocab_size': 288, 'tokenizer.ggml.tokens': None},
      'lack tokenizer.ggml.tokens',
    ),
    ({'tokenizer.ggml.token_type': [1]}, 'has 1 entries for 288'),
    ({'tokenizer.ggml.pre': 'tekken'}, "pre is 'tekken'.*known"),
    ({'llama.final_logit_softcapping': 30.0}, 'cap on logits'),
    ({'llama.rope.scaling.type': 'linear'}, 'scaling.factor is None'),
    ({'tokenizer.ggml.model': 'bert'}, "model is 'bert'"),
    ({'tokenizer.ggml.merges': ['a', 'b c d']}, 'merges do not make'),
    ({'tokenizer.ggml.eos_token_id': 999}, 'eos token is 999'),
  ],
)
def test_wrong_metadata(parts, tmp_path, change, message):
  fields = {k: v for k, v in (parts[0] | change).items() if v is not None}
  path = gguf_writing.write(tmp_path / 'bad.gguf', fields, parts[1])
  with pytest.raises(errors.InputError, match=f'(?s)bad.gguf.*{message}'):
    weights.load(path, 'float32')


def test_another_architecture(parts, tmp_path):
  path = gguf_writing.write(
    tmp_path / 'bad.gguf', *parts, architecture='falcon'
  )
  with pytest.raises(errors.InputError, match="'falcon'.* known: llama, qwen2"):
    weights.load(path, 'float32')


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('blk.0.attn_q.bias', 'has no place'),
    ('rope_freqs.weight', 'factors of rope_freqs.weight are not those'),
    ('blk.00.attn_q.weight', 'has no place'),
  ],
)
def test_left_over_tensors(parts, tmp_path, name, message):
  fields, arrays = parts
  extra = arrays | {name: arrays['blk.0.attn_q.weight']}
  path = gguf_writing.write(tmp_path / 'bad.gguf', fields, extra)
  with pytest.raises(errors.InputError, match=message):
    weights.load(path, 'float32')


@pytest.mark.parametrize('shape', [(), (0,), (8, 0)])
def test_factors_of_no_form(parts, tmp_path, shape):
  extra = parts[1] | {'rope_freqs.weight': np.ones(shape, np.float32)}
  path = gguf_writing.write(tmp_path / 'bad.gguf', parts[0], extra)
  with pytest.raises(errors.InputError, match='rope_freqs.weight'):
    weights.load(path, 'float32')


def test_an_unknown_block_format(written, tmp_path):
  with open(written, 'rb') as file:
    whole = bytearray(file.read())
  at = whole.index(b'blk.0.ffn_up.weight') + len('blk.0.ffn_up.weight')
  struct.pack_into('<I', whole, at + 4 + 16, 250)
  path = tmp_path / 'bad.gguf'
  path.write_bytes(whole)
  with pytest.raises(errors.InputError, match='ffn_up.* format 250'):
    weights.load(str(path), 'float32')


@pytest.mark.needs_quickstart
def test_smollm2(smollm2):
  c = smollm2.config
  assert (c.layers, c.width, c.heads, c.kv_heads) == (30, 576, 9, 3)
  assert (c.vocab_size, c.rope_base, c.norm_eps) == (49152, 1e5, 1e-5)
  assert c.tied_head and 'head' not in smollm2.params
  assert smollm2.tokenizer.end_ids == (2,)
  assert smollm2.fingerprint == '62b6d394a1bc4f3f'
