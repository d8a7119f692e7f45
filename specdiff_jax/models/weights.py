"""Pretrained weights: one `load` for GGUF files, directories and hub names.

Nothing here runs code out of a file: pickles are refused.
"""

import dataclasses
import os
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import fetch
from specdiff_jax.models import gguf_io
from specdiff_jax.models import gguf_llama
from specdiff_jax.models import huggingface
from specdiff_jax.models import params as params_lib
from specdiff_jax.models import safetensors_io
from specdiff_jax.models import tokenizer as tokenizer_lib

fingerprint = params_lib.fingerprint
save_safetensors = safetensors_io.save
load_safetensors = safetensors_io.load
quickstart_file = fetch.quickstart_file


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A pretrained model: sizes, weights [out, in], tokenizer, identity."""

  config: config_lib.TransformerConfig
  params: dict[str, Any]  # nested dict of numpy arrays; see `params.shapes`
  tokenizer: tokenizer_lib.Tokenizer
  fingerprint: str  # 16 hex digits, taken before any cast
  source: str


def load(path: str, dtype: Any) -> Checkpoint:
  """Loads a .gguf file, a Hugging Face directory or a hub name ('org/name').

  dtype is 'float32' or 'bfloat16'. Whatever is wrong with the files raises
  InputError, which names the file and what in it.

  Example: load('runs/verifier/SmolLM2-135M-Instruct.Q4_1.gguf', 'float32')
  """
  if os.path.isdir(path):
    return _load_directory(path, dtype, path)
  if os.path.isfile(path):
    return _load_file(path, dtype)
  if huggingface.is_hub_name(path) and not path.endswith('.gguf'):
    return _load_directory(huggingface.download(path), dtype, path)
  raise errors.InputError(
      f'{path}: there is no such file or directory; give a .gguf file, a '
      "Hugging Face directory, or a name on its hub ('org/name')."
  )


def _load_file(path: str, dtype: Any) -> Checkpoint:
  if path.endswith(huggingface.PICKLES):
    raise errors.InputError(
        f'{path}: a pickle can run any code and is never read; take or write '
        'the model as safetensors, and give its directory.'
    )
  if path.endswith('.safetensors'):
    raise errors.InputError(
        f'{path}: a file of tensors alone does not say what model it is; give '
        'its directory, with config.json and tokenizer.json.'
    )
  header = gguf_io.read_header(path)
  config = gguf_llama.read_config(header)
  tokenizer = tokenizer_lib.Tokenizer.from_gguf(header.fields, path)
  tensors = gguf_llama.iterate_tensors(header, config)
  return _checkpoint(config, tensors, tokenizer, dtype, path)


def _load_directory(folder: str, dtype: Any, source: str) -> Checkpoint:
  if not os.path.exists(os.path.join(folder, 'config.json')):
    files = [n for n in sorted(os.listdir(folder)) if n.endswith('.gguf')]
    raise errors.InputError(
        f'{folder}: there is no config.json in this directory; give '
        + (f'the file {files[0]} in it.' if files else
           'the directory of a model in the form of Hugging Face.')
    )
  config = huggingface.read_config(folder)
  tokenizer = tokenizer_lib.Tokenizer.from_directory(folder)
  tensors = huggingface.iterate_tensors(folder, config)
  return _checkpoint(config, tensors, tokenizer, dtype, source)


def _checkpoint(config, tensors, tokenizer, dtype, source) -> Checkpoint:
  if tokenizer.vocab_size > config.vocab_size:
    raise errors.InputError(
        f'{source}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, '
        f'but the weights know {config.vocab_size} tokens; they belong to '
        'different models.'
    )
  params, digest = params_lib.gather(config, tensors, dtype, source)
  return Checkpoint(config, params, tokenizer, digest, source)
