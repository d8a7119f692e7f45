"""Counts the kernels that a decode cycle launches on a GPU that is not here.

  python benchmarks/gpu_kernels.py [SYSTEM ...]

Compiles the decode loop of systems (ar, specdiff, specdiff2) for an H100, at
batch 1 and in SmolLM2's sizes, and counts what stands in the loop's body: each
fusion, library call or copy is a kernel. Of a conditional the branch counts
that rows of temperature 0 take, the smallest one; a loop counts as often as it
turns. At batch 1 launches, not bytes, are what a cycle costs on a GPU. Needs
`pip install 'jax[cuda12]'` and no GPU. The last line is one JSON object.
"""

import collections
import importlib.util
import json
import os
import sys

SYSTEMS = ('ar', 'specdiff', 'specdiff2')

# What the compiler has to know of an H100 SXM.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Opcodes that launch nothing.
_VIEWS = frozenset((
    'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant',
    'after-all', 'optimization-barrier', 'partition-id', 'replica-id',
))  # fmt: skip


def installed() -> bool:
  """Whether the compiler for NVIDIA's GPUs is here."""
  return importlib.util.find_spec('jax_cuda12_plugin') is not None


def device():
  """Returns an H100 that programs can be compiled for."""
  flags = os.environ.get('XLA_FLAGS', '')
  if '--xla_gpu_autotune_level' not in flags:  # there is nothing to time on
    os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_autotune_level=0'
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from jax.experimental import topologies

  return topologies.get_topology_desc(
    platform='cuda', topology_name='h100', topology='1x1x1', target_config=H100
  ).devices[0]


def compiled(name: str, one, **changes) -> str:
  """Returns the text of the decode loop of a system, compiled for a device."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from specdiff_jax.checkpoints import presets
  from specdiff_jax.checkpoints import weights
  from specdiff_jax.cli import command
  from specdiff_jax.decoding import engine as engine_lib
  from specdiff_jax.decoding import request as request_lib
  from specdiff_jax.models import networks
  from specdiff_jax.models import transformer_layer
  from specdiff_jax.recipes import decoding
  from specdiff_jax.text import tokenizer as tokenizer_lib

  values = dict(exact=False, cache_step=0) | changes
  config = command.load('configs/quickstart.py').change(**values)
  sizes = presets.published('smollm2_135m')
  tokenizer = tokenizer_lib.Tokenizer.bytes(sizes.vocab_size)
  params = networks.abstract(sizes, jnp.bfloat16)
  made = []

  def make(params):
    # The fingerprint is that of the shipped drafter's verifier.
    merged = transformer_layer.merged(params)
    checkpoint = weights.Checkpoint(
      sizes, merged, tokenizer, '62b6d394a1bc4f3f', 'shapes'
    )
    made.append(decoding.system(config, checkpoint, name, platform='gpu'))
    return made[0].params, made[0].drafter_params

  params, drafter = jax.eval_shape(make, params)
  requests = [request_lib.Request(0, [0] * 128)]
  state = jax.eval_shape(
    made[0].engine.prefill, params, drafter, *made[0].inputs(requests)
  )
  mesh = jax.sharding.Mesh(np.array([one]), ('data',))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  count = jax.ShapeDtypeStruct((), jnp.int32)
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
    (params, drafter, state, count, count),
  )
  decode = engine_lib.Engine.decode
  return decode.lower(made[0].engine, *arguments).compile().as_text() or ''


def launches(text: str) -> collections.Counter:
  """Returns the kernels of one turn of the decode loop, by what they are."""
  from specdiff_jax.tools.aot import hlo

  computations, entry = hlo.parse(text)

  def of(name: str) -> collections.Counter:
    found = collections.Counter()
    for one in computations[name].values():
      if one.opcode in _VIEWS or one.opcode.endswith('-done'):
        continue
      if one.opcode == 'while':
        turns = hlo.trip_count(one, computations[name], computations)
        body = of(one.attribute('body')) + of(one.attribute('condition'))
        for kind, count in body.items():
          found[kind] += turns * count
      elif one.opcode == 'conditional':
        branches = [of(branch) for branch in one.calls()]
        found += min(branches, key=lambda x: x.total())
        found['conditional'] += 1
      elif one.opcode == 'call':
        found += sum(map(of, one.calls()), collections.Counter())
      else:
        found[one.label.partition('while/body/')[2] or one.opcode] += 1
    return found

  loops = [x for x in computations[entry].values() if x.opcode == 'while']
  bodies = [of(one.attribute('body')) for one in loops]
  return max(bodies, key=lambda x: x.total())


def main(names: tuple[str, ...]) -> None:
  """Compiles, counts and prints."""
  if not installed():
    sys.exit(
      "The compiler for NVIDIA's GPUs is not here; pip install 'jax[cuda12]' "
      '(5.5 GB) brings it, and no GPU is needed.'
    )
  one, table = device(), {}
  for name in names:
    found = launches(compiled(name, one))
    table[name] = found.total()
    print(f'{name}: {found.total()} kernels a cycle', flush=True)
    if os.environ.get('VERBOSE'):
      for kind, count in sorted(found.items()):
        print(f'  {count:4} {kind}')
  print(json.dumps(table))


if __name__ == '__main__':
  main(tuple(sys.argv[1:]) or SYSTEMS)
