"""GGUF files: what is written comes back, and damage is told as damage."""

import struct

import gguf
from gguf import quants
import gguf_writing
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.models import gguf_io
from specdiff_jax.models import gguf_llama
from specdiff_jax.models import params as params_lib
from specdiff_jax.models import weights

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
  assert loaded.fingerprint == weights.fingerprint(config, params)
  assert loaded.tokenizer.end_ids == (256,)


def test_rows_would_be_in_another_order_without_undoing_it(tiny, parts):
  """The negative control of the permutation of Q and K."""
  config, params, _ = tiny
  stored = parts[1]['blk.0.attn_q.weight']
  expected = params['layer_0']['query']
  assert not np.array_equal(stored, expected)
  undone = gguf_llama.unpermute(stored, config.heads)
  np.testing.assert_array_equal(undone, expected)
  wrong_heads = gguf_llama.unpermute(stored, config.kv_heads)
  assert not np.array_equal(wrong_heads, expected)


def test_order_of_one_small_head():
  file_rows = np.array([[0], [2], [1], [3]], np.float32)
  ours = gguf_llama.unpermute(file_rows, heads=1)
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
  assert loaded.fingerprint != weights.load(
      gguf_writing.write(tmp_path / 'f.gguf', fields, arrays), 'float32'
  ).fingerprint


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
        ({'llama.expert_count': 8}, 'mixture of experts'),
        ({'llama.vocab_size': 280}, 'ids up to 287'),
        ({'tokenizer.ggml.tokens': None}, 'vocab_size is None'),
        (
            {'llama.vocab_size': 288, 'tokenizer.ggml.tokens': None},
            'lack tokenizer.ggml.tokens',
        ),
        ({'tokenizer.ggml.token_type': [1]}, 'has 1 entries for 288'),
        ({'tokenizer.ggml.pre': 'qwen2'}, "pre is 'qwen2'.*known"),
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
  with pytest.raises(errors.InputError, match="'falcon'.* known: 'llama'"):
    weights.load(path, 'float32')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('blk.0.attn_q.bias', 'has no place'),
        ('rope_freqs.weight', 'scales its rotary'),
        ('blk.00.attn_q.weight', 'has no place'),
    ],
)
def test_left_over_tensors(parts, tmp_path, name, message):
  fields, arrays = parts
  extra = arrays | {name: arrays['blk.0.attn_q.weight']}
  path = gguf_writing.write(tmp_path / 'bad.gguf', fields, extra)
  with pytest.raises(errors.InputError, match=message):
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
  assert smollm2.tokenizer.spare_ids == tuple(range(3, 17))
  assert smollm2.fingerprint == '62b6d394a1bc4f3f'
