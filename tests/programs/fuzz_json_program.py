"""Reads damaged JSON in little time and memory; prints what came of it.

  python fuzz_json_program.py KINDS FOLDER CASES

KINDS are some of MAKERS, as a,b; 'trusting' is a reader that believes what it
reads, to show that this program would notice. FOLDER is an empty one. Each case
changes the JSON with seed 0, 1, ...: other types, depths, sizes and names, or
other bytes; the reader has to succeed or raise InputError of few words, within
2 seconds of the processor and 1 GiB.
"""

import json
import os
import pathlib
import random
import resource
import signal
import sys

_TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS.parent), str(_TESTS / 'support')]

import hf_reference
import lora_writing
import numpy as np
import published_models
import tiny_model

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints import weights
from specdiff_jax.checkpoints.hf import architectures
from specdiff_jax.core import errors
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import published
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.tools.inspect import describe

SECONDS, ROOM, WORDS = 2, 1 << 30, 4000
SIZES = dict(
    vocab_size=264, width=16, layers=2, heads=2, kv_heads=1, head_dim=8,
    mlp_width=24, max_positions=64,
)  # fmt: skip
FAMILIES = {
    'LlamaForCausalLM': config_lib.TransformerConfig(
        **SIZES, rope_scaling=config_lib.RopeScaling('llama3', 4.0)
    ),
    'MistralForCausalLM': config_lib.TransformerConfig(**SIZES, window=8),
    'Qwen2ForCausalLM': config_lib.TransformerConfig(
        **SIZES, qkv_bias=True, window=8, global_every=2
    ),
    'Qwen3ForCausalLM': config_lib.TransformerConfig(**SIZES, qk_norm=True),
    'Gemma3ForCausalLM': config_lib.TransformerConfig(
        **SIZES, qk_norm=True, norm_offset=1.0, post_norms=True, window=8,
        activation='gelu_tanh', embed_scale=4.0, global_every=2,
        local_rope_base=1e4,
    ),
    'GPT2LMHeadModel': gpt2.GPT2Config(
        vocab_size=264, width=16, layers=2, heads=2, mlp_width=24,
        max_positions=64,
    ),
}  # fmt: skip


def values(chance):
  """Returns something that no reader expects."""
  return chance.choice((
      None, True, False, 0, 1, -1, 2, 3, 7, 1e300, -0.5, 0.5, float('nan'),
      float('inf'), 10**9, 10**18, 10**400, -(10**30), 2**31, 2**63, '', 'x',
      '\x1b[2J', 'a' * 10**6, [], {}, [[]], [None], {'a': {}}, [1] * 10**5,
      ['full_attention'] * 10**5, {'type': 'yarn'}, {'rope_type': ['linear']},
      {'full_attention': 3}, {'full_attention': {'rope_theta': 'x'}}, [{}],
      {str(i): i for i in range(10**4)}, ['LlamaForCausalLM', 3], 'LORA',
      '../x', '(a+)+$', {'(a|a)*b': 3}, [10**9], [-1], [0, 'x'], 1.5,
  ))  # fmt: skip


def places(value, at=()):
  """Yields the path of every value in a JSON value."""
  yield at
  inner = (
    value.items()
    if isinstance(value, dict)
    else (enumerate(value) if isinstance(value, list) else ())
  )
  for key, one in list(inner)[:40]:
    yield from places(one, (*at, key))


def changed(text, seed):
  """Returns other bytes than those of a JSON text."""
  chance = random.Random(seed)
  if seed % 8 == 0:  # bytes
    data = bytearray(text.encode())
    for _ in range(chance.choice((1, 2, 8))):
      data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    cut = chance.choice((len(data), chance.randrange(len(data))))
    return bytes(data[:cut])
  if seed % 8 == 1:  # depth
    deep = chance.choice((100, 10**5))
    inner = chance.choice(('[' * deep + ']' * deep, '{"a":' * deep))
    return f'{text.rstrip()[:-1]}, "more": {inner}}}'.encode()
  value = json.loads(text)
  for _ in range(chance.choice((1, 1, 1, 2, 4))):
    where = chance.choice(list(places(value)))
    if not where:
      if chance.random() < 0.2:
        value = values(chance)
      continue
    *parents, last = where
    holder = value
    for key in parents:
      holder = holder[key]
    if isinstance(holder, dict) and chance.random() < 0.2:
      moved = holder.pop(last)
      if chance.random() < 0.5:
        holder[str(last)[: chance.randrange(1, 9)]] = moved
    else:
      holder[last] = values(chance)
  return json.dumps(value).encode()


def read_model(path, adapter=''):
  """Reads all that a model's files say, and its tensors."""
  if not adapter:
    describe.describe(path)
  source = published.open_drafter(path) if not adapter else None
  source = source or sources.open_model(path, adapter)
  found = params_lib.checked(source.config, source.tensors(), path)
  for _, _, tensor in found:
    stored.read(tensor)


def make_config(folder, architecture):
  config = FAMILIES[architecture]
  params = tiny_model.random_params(config)
  tokenizer = tokenizer_lib.Tokenizer.bytes(264)
  hf_reference.write_directory(folder, config, params, tokenizer)
  return os.path.join(folder, 'config.json'), lambda: read_model(folder)


def make_published(folder, family):
  published_models.write(folder, *published_models.make(family))
  return os.path.join(folder, 'config.json'), lambda: read_model(folder)


def make_index(folder, _):
  config = FAMILIES['LlamaForCausalLM']
  params = tiny_model.random_params(config)
  tokenizer = tokenizer_lib.Tokenizer.bytes(264)
  hf_reference.write_directory(folder, config, params, tokenizer, shards=3)
  file = os.path.join(folder, 'model.safetensors.index.json')
  return file, lambda: read_model(folder)


def make_adapter(folder, _):
  make_config(folder, 'LlamaForCausalLM')
  adapter = os.path.join(folder, 'adapter')
  lora_writing.write(
      adapter, FAMILIES['LlamaForCausalLM'], use_rslora=False,
      rank_pattern={'x_proj': 2}, alpha_pattern={r'layers\.\d+\.x': 3},
  )  # fmt: skip
  file = os.path.join(adapter, 'adapter_config.json')
  return file, lambda: read_model(folder, adapter)


def make_native(folder, _):
  from specdiff_jax.checkpoints import export

  make_config(f'{folder}.hf', 'Gemma3ForCausalLM')
  export.convert(sources.open_model(f'{folder}.hf'), folder, 'native')
  return os.path.join(folder, 'specdiff.json'), lambda: read_model(folder)


def make_drafter(folder, _):
  """One of our drafters, whose sizes are JSON in a text of its metadata."""
  config = FAMILIES['Qwen3ForCausalLM']
  params = tiny_model.random_params(config)
  model = weights.Checkpoint(config, params, None, '0' * 16, 'test')
  sizes = drafter_network.DrafterConfig(
      gamma=4, layers=1, features=(0, 1), trunk=8, vocab=20, ngram=2,
      verifier=config,
  )  # fmt: skip
  os.makedirs(folder)
  path = os.path.join(folder, 'a.safetensors')
  network = tiny_model.drafter_params(sizes)
  drafter_file.save(path, sizes, network, np.arange(20), model, {})
  tensors, metadata = safetensors_io.load(path)
  file = os.path.join(folder, 'sizes.json')
  with open(file, 'w', encoding='utf-8') as out:
    out.write(metadata['config'])

  def read():
    with open(file, 'rb') as text:
      raw = text.read().decode('utf-8', 'replace')
    safetensors_io.save(path, tensors, metadata | {'config': raw})
    describe.describe(path)
    drafter_file.load(path, model, drafter_network.DrafterConfig)

  return file, read


def make_trusting(folder, _):
  file, _ = make_config(folder, 'LlamaForCausalLM')

  def read():
    with open(file, 'rb') as text:
      raw = json.loads(text.read())
    [[0] * raw['num_key_value_heads'] for _ in range(raw['num_hidden_layers'])]

  return file, read


MAKERS = {
  **dict.fromkeys(FAMILIES, make_config),
  **dict.fromkeys(published_models.FAMILIES, make_published),
  'index': make_index,
  'adapter': make_adapter,
  'native': make_native,
  'drafter': make_drafter,
  'trusting': make_trusting,
}
# Those whose config.json does not say that they are drafters.
del MAKERS['diffullama'], MAKERS['diffugpt']


def main(kinds, folder, cases):
  made = {
    kind: MAKERS[kind](os.path.join(folder, kind), kind)
    for kind in kinds.split(',')
  }
  for _, read in made.values():
    read()  # whole; and everything is imported
  with open('/proc/self/statm', encoding='utf-8') as text:
    used = int(text.read().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))

  def late(*_):
    raise TimeoutError

  signal.signal(signal.SIGPROF, late)
  told = {kind: cases_of(*made[kind], int(cases)) for kind in made}
  print(json.dumps(told))


def cases_of(file, read, cases):
  """Returns how many were read or refused, and what went wrong."""
  with open(file, encoding='utf-8') as text:
    whole = text.read()
  outcomes = {'read': 0, 'refused': 0, 'wrong': []}
  for seed in range(cases):
    with open(file, 'wb') as out:
      out.write(changed(whole, seed))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
      read()
      outcomes['read'] += 1
    except errors.InputError as e:
      outcomes['refused'] += 1
      if len(str(e)) > WORDS:
        outcomes['wrong'].append(f'{seed}: {len(str(e))} letters')
    except BaseException as e:  # whatever it is, it is wrong
      outcomes['wrong'].append(f'{seed}: {type(e).__name__}: {e}'[:200])
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
  with open(file, 'w', encoding='utf-8') as out:
    out.write(whole)
  return outcomes


assert architectures.FAMILIES.keys() - FAMILIES.keys() == {
  'Gemma3ForConditionalGeneration'
}

if __name__ == '__main__':
  main(*sys.argv[1:])
