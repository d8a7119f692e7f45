"""`aot`: compiling for chips that are not here, and what it says of them."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from specdiff_jax.checkpoints import presets
from specdiff_jax.core import errors
from specdiff_jax.data import windows
from specdiff_jax.models import networks
from specdiff_jax.parallel import topology
from specdiff_jax.recipes import recipe_file
from specdiff_jax.recipes import training as build_training
from specdiff_jax.tools.aot import hlo_costs
from specdiff_jax.tools.aot import lowering as build_aot
from specdiff_jax.tools.aot import memory

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="the compiler for TPUs is not here (pip install 'jax[tpu]')",
)
GIB = 2**30


# --- with the TPU's compiler --------------------------------------------------


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize('program', ['train', 'decode', 'prefill'])
def test_tiny_fits_on_a_tpu(program, root):
  """In a process of its own: the compiler stays in the one that loads it."""
  run = subprocess.run(
      [
          sys.executable, '-m', 'specdiff_jax', 'aot',
          f'--config={root}/configs/tiny.py:smoke', '--topology=v5e:2x2',
          f'--program={program}', '--config.mesh=(2,-1)',
          '--config.dtype=bfloat16', '--config.system=lookup',
      ],
      capture_output=True, text=True, timeout=500, cwd=root,
  )  # fmt: skip
  assert run.returncode == 0, run.stderr[-2000:]
  told = json.loads(run.stdout.splitlines()[-1])
  assert told['fits'] and told['mesh'] == {'data': 2, 'model': 2}
  assert 0 < told['peak_bytes'] < told['limit_bytes']
  assert told['flops_per_chip'] > 0 and told['largest']
  assert told['collectives']['all-reduce']['count'] >= 2 * 3  # of each layer
  assert told['predicted_ms'] > 0 < told['kernels']
  assert 0 < told['floor_bytes'] and 'other' in told['causes']


@needs_libtpu
@pytest.mark.parametrize('name', ['v5p:3x7', 'v5e:1x1x1x1'])
def test_what_the_compiler_does_not_know_is_refused(specdiff, tiny, name):
  run = specdiff('aot', tiny, f'--topology={name}')
  assert run.code == 2 and name in run.err


# --- on fake devices of this CPU ----------------------------------------------

PROGRAM = """
    import json, sys
    import jax
    import numpy as np
    from specdiff_jax.tools.aot import hlo_costs
    from specdiff_jax.recipes import decoding
    from specdiff_jax.decoding import engine as engine_lib
    from specdiff_jax.decoding import request as request_lib
    from specdiff_jax.parallel import mesh as mesh_lib
    from specdiff_jax.parallel import rules
    from specdiff_jax.recipes import recipe_file

    config = recipe_file.load_recipe(sys.argv[1])
    checkpoint = decoding.verifier(config)
    system = decoding.system(config, checkpoint, 'lookup')
    requests = [request_lib.named(str(i), [5 + i, 6, 7, 6]) for i in range(4)]
    mesh = mesh_lib.make_mesh((2, 4))

    def split(tree, table):
      return jax.device_put(tree, rules.shardings(tree, table, mesh))

    params = split(system.params, rules.TRANSFORMER)
    spoil = lambda s: s.replace(cache=jax.tree.map(lambda x: 2 * x, s.cache))
    states = [
        jax.device_put(s, system.engine.shardings(s, mesh))
        for s in (system.start(requests), spoil(system.start(requests)))
    ]
    program = engine_lib.Engine.decode.lower(
        system.engine, params, (), states[0], np.int32(100), np.int32(4)
    ).compile()
    costs = hlo_costs.read(program.as_text())
    right, spoilt = [program(params, (), s, 100, 4) for s in states]
    whole = system.engine.decode(
        system.params, (), system.start(requests), np.int32(100), np.int32(4)
    )
    cache = jax.tree.leaves(right.cache)[0]
    print(json.dumps({
        'split': np.asarray(right.tokens).tolist(),
        'spoilt': np.asarray(spoilt.tokens).tolist(),
        'whole': np.asarray(whole.tokens).tolist(),
        'shape': cache.shape,
        'shard': cache.sharding.shard_shape(cache.shape),
        'reduced': costs.collectives()['all-reduce']['count'],
        'gathered': [t.shape for t in costs.traffic if t.kind == 'all-gather'],
    }))
"""


@pytest.fixture(scope='module')
def told(root):
  environment = os.environ | {
      'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': str(root),
  }  # fmt: skip
  run = subprocess.run(
      [
          sys.executable, '-c', textwrap.dedent(PROGRAM),
          f'{root}/configs/tiny.py:smoke',
      ],
      env=environment, capture_output=True, text=True, timeout=500,
  )  # fmt: skip
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout.splitlines()[-1])


def test_a_split_loop_decodes_the_same(told):
  assert told['split'] == told['whole']
  assert told['spoilt'] != told['whole']  # the control
  rows, *rest = told['shape']
  assert told['shard'] == [rows // 2, *rest]  # 2 heads are not for 4 devices


def test_each_layer_is_reduced_and_no_weight_gathered(told):
  assert told['reduced'] >= 2 * 3  # attention and MLP of three layers
  shapes = networks.shapes(presets.SIZES['tiny']).values()
  weights = {f'f32[{",".join(map(str, shape))}]' for shape in shapes}
  assert 'f32[128,64]' in weights
  assert told['gathered'] and not weights & set(told['gathered'])


# --- without any compiling ----------------------------------------------------


@pytest.mark.parametrize(
  'name', ['banana', 'v5e', 'v9:2x2', 'v5e:4x4; rm', 'h100:9', 'h100:2x2']
)
def test_what_is_no_topology_is_refused(specdiff, tiny, name):
  run = specdiff('aot', tiny, f'--topology={name}')
  assert run.code == 2 and repr(name) in run.err
  assert 'v5e, v5p, v6e, tpu7x' in run.err and 'h100' in run.err


@pytest.mark.parametrize(
  'name, extra', [('v5e:2x2', '.[tpu]'), ('h100', '.[cuda12]')]
)
def test_a_compiler_that_is_not_installed_is_named(
  specdiff, tiny, monkeypatch, name, extra
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  run = specdiff('aot', tiny, f'--topology={name}')
  assert run.code == 2 and f"pip install '{extra}'" in run.err


def test_only_a_cycle_has_a_tau(specdiff, tiny):
  run = specdiff('aot', tiny, '--topology=v5e:2x2', '--tau=4')
  assert run.code == 2 and 'tau' in run.err and 'decode' in run.err


@pytest.fixture
def config(root):
  return recipe_file.load_recipe(f'{root}/configs/tiny.py:smoke')


def test_the_batch_is_that_of_training(config, root):
  """Names, shapes and dtypes are those of the pipeline's own batches."""

  class Item:
    prompt = np.arange(4, dtype=np.int32)
    completion = np.arange(9, dtype=np.int32)

  options = config.training
  sizes = windows.WindowConfig(
    options.tokens, options.windows, options.gamma, options.batch, options.seed
  )
  real = next(iter(windows.batches([Item()] * 8, sizes)))
  mesh = build_training.mesh(config, jax.devices()[:1])
  config = config.change(feature_cache=0)
  run = build_training.abstract_run(config, build_aot.verifier(config), mesh)
  batch = run.program().batch
  assert jax.tree.structure(batch) == jax.tree.structure(real)
  assert [(x.shape, x.dtype) for x in jax.tree.leaves(batch)] == [
    (x.shape, x.dtype) for x in jax.tree.leaves(real)
  ]


@pytest.mark.parametrize('name', ['train', 'decode', 'prefill'])
def test_programs_are_made_and_what_they_hold_told(config, name):
  # A drafter of which nothing is held; devices of serving that are not here.
  given = config.change(decode_mesh=(1, 8))
  given = given if name == 'train' else given.change(system='lookup')
  program = build_aot.program(given, name, jax.devices())
  held, floor = program.held, program.floor
  assert program.mesh == {'data': 1, 'model': 1}
  shapes = networks.shapes(presets.SIZES['tiny'])
  weights = sum(np.prod(shape) for shape in shapes.values())
  embedding = 4 * 320 * 64
  if name != 'train':
    assert held['verifier'] == 4 * weights
    # Slots: 256 of the prompt, 8 of new tokens, a tree of 5; four rows.
    assert held['cache'] >= floor['cache'] == 4 * 269 * (2 * 3 * 2 * 16 * 4)
    # All but the table, of which rows are looked up; norms may count.
    least = 4 * weights - embedding - 4 * 64 * 7
    assert least <= floor['weights'] <= 1.02 * 4 * weights
  else:
    # With the head's rows of the draft vocabulary, and where each token is.
    assert held['verifier'] == 4 * (weights + 257 * 64 + 320)
    # AdamW's two moments, and counters.
    assert 0 <= held['optimizer'] - 2 * held['drafter'] < 64


def test_presets_are_shapes(config):
  config = config.change(verifier='preset:qwen2.5_72b')
  checkpoint = build_aot.verifier(config, scan=True)
  assert checkpoint.params['layers']['down'].shape == (80, 8192, 29568)
  config = config.change(verifier='quickstart')
  assert build_aot.verifier(config).config.width == 576


def test_a_drafter_of_dflashs_shape_is_traced(config):
  given = config.change(drafter='preset:dflash')
  program = build_aot.program(given, 'decode', jax.devices())
  layer = sum(
    np.prod(shape)
    for name, shape in networks.shapes(presets.SIZES['tiny']).items()
    if name.startswith('layer_0.')
  )
  # One layer, norms of its heads, and what fuses one layer of the verifier's.
  more = 2 * 16 + 64 * 64 + 2 * 64
  assert program.held['drafter'] == 4 * (layer + more)
  # Keys and values are made of the block, and of what was verified; the head
  # scores drafts and verified tokens; five embeddings of four rows are read.
  plain = build_aot.program(
    config.change(system='lookup'), 'decode', jax.devices()
  )
  drafted = program.floor['weights'] - plain.floor['weights']
  twice = 2 * (2 * 16 * 64) + 320 * 64 + 4 * 5 * 64
  assert drafted == pytest.approx(4 * (layer + more + twice), rel=0.01)


def test_a_shape_needs_a_transformer(config):
  given = config.change(verifier='preset:gpt2', drafter='preset:dflash')
  with pytest.raises(errors.InputError, match='preset:gpt2'):
    build_aot.program(given, 'decode', jax.devices())


def test_a_drafter_without_weights_does_not_decode(specdiff, tiny):
  decode = ('decode', tiny, '--prompt=a')
  run = specdiff(*decode, '--config.drafter=preset:llada_8b')
  assert run.code == 2 and 'only `aot`' in run.err
  run = specdiff(*decode, '--config.drafter=preset:other')
  assert run.code == 2 and 'llada_8b' in run.err


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'verifier': 'preset:none'}, 'qwen2.5_72b'),
    ({'verifier': 'random:none'}, 'tiny'),
    ({'mesh': (3, -1)}, 'divisor'),
    ({'loss': 'none'}, 'streak'),
  ],
)
def test_what_does_not_go_together_is_refused(config, changes, words):
  config = config.change(**changes)
  with pytest.raises(errors.InputError, match=words):
    build_aot.program(config, 'train', jax.devices())


def test_a_topology_is_needed(specdiff, tiny):
  run = specdiff('aot', tiny)
  assert run.code == 2 and '--topology' in run.err


EXHAUSTED = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of \
memory in memory space hbm. Used 120.50G of 95.74G hbm. Exceeded hbm capacity \
by 24.76G.

  Largest program allocations in hbm:

  1. Size: 40.00G
     Operator: op_name="jit(step)/logits/dot_general" source_file="a.py"
     Shape: f32[8,2048,152064]{2,1,0:T(8,128)}
     Unpadded size: 40.00G
     ==========================

  2. Size: 4.00G
     Shape: bf16[80,8,2048]{2,1,0}
"""


class Failing:
  def __init__(self, text):
    self.text = text

  def compile(self):
    raise jax.errors.JaxRuntimeError(self.text)


def test_what_exceeds_the_memory_does_not_fit():
  outcome = memory.compiled(Failing(EXHAUSTED), 95 * GIB)
  assert not outcome.fits and outcome.costs is None
  assert outcome.peak == int(120.5 * GIB)
  assert outcome.limit == int(95.74 * GIB)
  assert '40.00G' in outcome.allocations
  assert 'jit(step)/logits/dot_general' in outcome.allocations
  held = {'verifier': 18 * GIB, 'optimizer': GIB, 'batch': 1}
  first, second = memory.advice(held, outcome)
  assert first.startswith('temporaries (101.5 GiB)') and 'vocab_block' in first
  assert second.startswith('verifier')


def test_the_other_form_of_that_message_is_read():
  text = (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
    'for HLO temporaries (18.00G) exceeds available HBM (15.75G).'
  )
  outcome = memory.compiled(Failing(text), 0)
  assert (outcome.peak, outcome.limit) == (18 * GIB, int(15.75 * GIB))
  assert not outcome.fits and not outcome.allocations


def test_other_errors_of_the_compiler_are_errors():
  with pytest.raises(jax.errors.JaxRuntimeError):
    memory.compiled(Failing('INTERNAL: something broke'), GIB)


def test_a_program_that_cannot_be_read_still_fits(specdiff, tiny, monkeypatch):
  """The compiler wrote what this jaxlib does not know."""
  program = jax.jit(lambda x: x + 1).lower(np.ones(3)).compile()

  class Unreadable:
    def compile(self):
      return self

    def memory_analysis(self):
      return program.memory_analysis()

    def as_text(self):
      raise jax.errors.JaxRuntimeError('INTERNAL: async-update of 3\nmore')

  outcome = memory.compiled(Unreadable(), GIB)
  assert outcome.fits and outcome.costs is None and 0 < outcome.peak < GIB
  monkeypatch.setattr(topology, 'devices', lambda name, slices: jax.devices())
  chip = topology.Chip(8 * GIB, bandwidth=1e3, flops=1e9, links=1e3)
  monkeypatch.setattr(topology, 'chip', lambda devices: chip)
  monkeypatch.setattr(memory, 'compiled', lambda *args: outcome)
  run = specdiff('aot', tiny, '--topology=v5e:2x2', '--program=decode')
  assert run.code == 0 and run.json['fits'], run.err
  assert 'hbm_bytes' not in run.json and run.json['flops_per_chip'] is None
  assert 'cannot be read' in run.out and 'async-update of 3)' in run.out


def test_outcomes_are_told(specdiff, tiny, monkeypatch):
  """The exit codes and the JSON line, of a program that was not compiled."""
  costs = hlo_costs.Costs(
    12,
    (hlo_costs.Traffic('all-reduce', 'a/b', 'f32[2]', 3, 24, looped=True),),
    (),
    (hlo_costs.Work('a/layer_3/dot', 2, True, 6, {'weights': 50}),),
  )
  parts = {'arguments': 4, 'results': 0, 'temporaries': 2, 'code': 1}
  fits = memory.Outcome(True, 7, 8, parts, costs, '', 0.5)
  not_so = memory.Outcome(
    False, 9 * GIB, 8 * GIB, {}, None, '40.00G  f32[2]', 0.5
  )
  monkeypatch.setattr(topology, 'devices', lambda name, slices: jax.devices())
  chip = topology.Chip(8 * GIB, bandwidth=1e3, flops=1e9, links=1e3)
  monkeypatch.setattr(topology, 'chip', lambda devices: chip)
  for outcome, code in ((fits, 0), (not_so, 3)):
    monkeypatch.setattr(memory, 'compiled', lambda *args: outcome)
    run = specdiff(
      'aot', tiny, '--topology=v5e:2x2', '--program=decode', '--tau=3'
    )
    assert run.code == code, run.err
    told = run.json
    assert told['topology'] == 'v5e:2x2' and told['fits'] == outcome.fits
    assert told['peak_bytes'] == outcome.peak
    assert told['limit_bytes'] == outcome.limit
    if outcome.fits:
      assert told['hbm_bytes'] == 100 and told['kernels'] == 2
      # 100 bytes at 1000 a second, and 24 of all-reduces that nothing hides.
      assert told['predicted_ms'] == told['plain_ms'] == 148
      assert told['exposed_ms'] == 48 and told['speedup'] == 3
      assert 'a/layer/dot' in run.out and 'tau > 1.00 pays' in run.out
  assert told['flops_per_chip'] is None and told['advice']
  assert '40.00G' in run.out
