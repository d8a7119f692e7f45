"""vocab.json and merges.txt, of repositories older than tokenizer.json."""

import os
from typing import Any

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.text import tokenizer_bpe
from specdiff_jax.text import tokenizer_json
from specdiff_jax.text import tokenizer_settings


def backend(
  path: str, kind: str, settings: dict[str, Any]
) -> tokenizers.Tokenizer:
  """Returns byte-level BPE, with the words of the class `kind`."""
  if kind not in ('GPT2Tokenizer', 'Qwen2Tokenizer'):
    raise errors.InputError(
      f'{path}: there is no tokenizer.json, and vocab.json and merges.txt do '
      f'not say how {printing.short(kind)} splits a text (known '
      'are GPT2Tokenizer and Qwen2Tokenizer); make a tokenizer.json with '
      "transformers: AutoTokenizer.from_pretrained('.').save_pretrained('.') "
      'in this directory.'
    )
  file, merges = (
    os.path.join(path, name) for name in ('vocab.json', 'merges.txt')
  )
  vocabulary = files.read_json(file)
  if len(vocabulary) > tokenizer_bpe.MOST_TOKENS:
    raise errors.InputError(
      f'{file}: holds {len(vocabulary)} tokens, where at most '
      f'{tokenizer_bpe.MOST_TOKENS} may be; download the file again.'
    )
  tokenizer_settings.check_ids(file, vocabulary)
  pairs: list[Any] = []
  lines = tokenizer_json.text(merges).split('\n')
  lines = lines[:-1] if lines[-1] == '' else lines
  for number, line in enumerate(lines, 1):
    line = line.removesuffix('\r')
    if line.startswith('#version'):
      continue
    pair = tuple(line.split(' ', 2))
    if len(pair) != 2:
      raise errors.InputError(
        f'{merges}: line {number} is not two tokens with a space between '
        'them; download the file again.'
      )
    pairs.append(pair)
  prefix = tokenizer_settings.flag(path, settings, 'add_prefix_space')
  with tokenizer_json.calls(
    f'{path}: vocab.json and merges.txt do not make a vocabulary',
    'download both again',
  ):
    result = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
  if kind == 'GPT2Tokenizer':
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    result.decoder = decoders.ByteLevel()
  else:
    split_as_qwen2(result, prefix)
  return result


def split_as_qwen2(backend: tokenizers.Tokenizer, prefix: bool) -> None:
  """Sets Qwen2's normalizer, pre-tokenizer and decoder.

  `prefix` puts a space before a text.
  """
  backend.normalizer = normalizers.NFC()
  split = tokenizers.Regex(tokenizer_bpe.SPLIT.replace('DIGITS', ''))
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(split, behavior='isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
