"""Distillation on meshes of eight devices, and what each came to.

  JAX_NUM_CPU_DEVICES=8 python tests/programs/meshes_program.py WORKDIR [all]

Five steps of plain SGD of a tiny drafter, by `distill`'s own parts, on the same
batches. The last line is a JSON object: the distance of losses, gradients and
params from those of one device (norms of differences over norms), and of two
controls that are not to agree. `all` takes every mesh in every mode.
"""

import dataclasses
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from specdiff_jax.core import errors
from specdiff_jax.data import prompts
from specdiff_jax.data import trajectories
from specdiff_jax.data import windows
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import processes
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe_file
from specdiff_jax.recipes import training as build_training
from specdiff_jax.training import features
from specdiff_jax.training import optimizer
from specdiff_jax.training.checkpoint import saving

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STEPS, RATE = 5, 0.5
MODES = {'cached': {}, 'online': {'feature_cache': 0}}
MODES['fsdp'] = MODES['online'] | {'fsdp': True}
MESHES = ((1, 1), (8, 1), (4, 2), (2, 2, 2))
FEW = (
    ((1, 1), 'cached'), ((8, 1), 'cached'), ((4, 2), 'online'),
    ((2, 2, 2), 'fsdp'),
)  # fmt: skip


def configured(mesh, mode):
  sizes = {'batch': 8, 'tokens': 32, 'windows': 3, 'gamma': 3}
  more = {'steps': STEPS, 'ce_fraction': 0.4, 'beta_end': 0.5}
  more |= {'network': {'vocab': 256}}  # so that two devices can share it
  config = recipe_file.load_recipe(f'{ROOT}/configs/tiny.py:smoke')
  return config.change(**sizes, **more, mesh=mesh, **MODES[mode])


def write_trajectories(folder, checkpoint):
  """Random texts of many lengths; the verifier's own would not differ."""
  rng = np.random.default_rng(0)
  with trajectories.Journal(
    folder, {'verifier': checkpoint.fingerprint}
  ) as journal:
    journal.append([
        trajectories.Trajectory(
            id=f'text {i}',
            prompt_hash=prompts.text_hash(f'text {i}'),
            prompt=rng.integers(0, 256, 4).astype(np.int32),
            completion=rng.integers(0, 200, 3 + i % 30).astype(np.int32),
            temperature=0.0, top_k=0, top_p=1.0, seed=0,
        )
        for i in range(60)
    ])  # fmt: skip


def flat(params):
  return np.concatenate(
    [np.ravel(jax.device_get(leaf)) for leaf in jax.tree.leaves(params)]
  )


class Case:
  """One mesh and mode: a state, and steps from it."""

  def __init__(self, mesh, mode, checkpoint, workdir):
    config = configured(mesh, mode)
    split = build_training.placement(config)
    if split:
      params = jax.device_put(checkpoint.params, split(checkpoint.params))
      checkpoint = dataclasses.replace(checkpoint, params=params)
    run = build_training.run(config, checkpoint, [f'{workdir}/data'], workdir)
    sgd = optimizer.skip_explosions(optax.sgd(RATE))
    self.run = dataclasses.replace(run, optimizer=sgd)
    self.state, self.view, self.step = self.run.start()
    self.prepare = self.run.prepare()
    self.first = jax.tree.map(jnp.copy, self.state)

  def iterator(self):
    return iter(windows.batches(self.run.data.train, self.run.data.sizes))

  def __call__(self, state, batch):
    """Returns (state, loss); the state given is donated."""
    state, metrics = self.step(state, self.prepare(batch), self.view)
    return state, float(metrics['loss'])

  def gradient(self, batch):
    """That of the first state, out of one step."""
    before = flat(self.first.params)
    state, _ = self(jax.tree.map(jnp.copy, self.first), batch)
    return (before - flat(state.params)) / RATE


def train(case, steps, state, iterator):
  losses = []
  for _ in range(steps):
    state, loss = case(state, next(iterator))
    losses.append(loss)
  return state, losses


def shard(x):
  return list(x.addressable_shards[0].data.shape)


def distance(found, wanted):
  found, wanted = np.asarray(found), np.asarray(wanted)
  return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def controls(case, batch):
  """Gradients of a wrong row, and of rows summed without their weights."""
  wrong = jax.tree.map(np.copy, batch)
  for value in jax.tree.leaves(wrong):
    value[3] = value[2]
  alone = []
  for row in range(len(batch.record)):
    valid = np.zeros_like(batch.anchor_valid)
    valid[row] = batch.anchor_valid[row]
    alone.append(case.gradient(batch.replace(anchor_valid=valid)))
  return {'wrong row': case.gradient(wrong), 'no weights': np.mean(alone, 0)}


def restored(saved, elsewhere, workdir):
  """Three steps on one mesh, a checkpoint, two on each of both."""
  iterator = saved.iterator()
  state, _ = train(saved, 3, jax.tree.map(jnp.copy, saved.first), iterator)
  checkpointer = saving.Checkpointer(f'{workdir}/checkpoints')
  checkpointer.save(state, iterator)
  checkpointer.wait()
  state, wanted = train(saved, 2, state, iterator)
  wanted_params = flat(state.params)
  iterator = elsewhere.iterator()
  state = checkpointer.restore(elsewhere.first, iterator)
  placed = all(
    x.sharding.is_equivalent_to(y.sharding, x.ndim)
    for x, y in zip(
      *map(jax.tree.leaves, (state, elsewhere.first)), strict=True
    )
  )
  state, found = train(elsewhere, 2, state, iterator)
  return {
      'losses': distance(found, wanted),
      'params': distance(flat(state.params), wanted_params),
      'placed': placed,
      'control': distance(  # the same steps from the first state
          train(elsewhere, 2, jax.tree.map(jnp.copy, elsewhere.first),
                elsewhere.iterator())[1], wanted,
      ),
  }  # fmt: skip


def refused():
  """What eight devices refuse, in words."""
  said = []
  rows = {'x': np.zeros((6, 2))}
  for attempt in (
    lambda: mesh_lib.make_mesh((3, -1)),
    lambda: mesh_lib.make_mesh((3, 2)),
    lambda: mesh_lib.make_mesh((4, 4)),
    lambda: mesh_lib.make_mesh((2, 2, 4)),
    lambda: processes.global_batch(mesh_lib.make_mesh((8, 1)), rows),
    lambda: processes.global_batch(mesh_lib.make_mesh((2, 2, 2)), rows),
  ):
    try:
      attempt()
    except errors.InputError as error:
      said.append(str(error))
  return said


def main(workdir, everything):
  # Rounded to bfloat16, the last bits of a verifier that is split would turn
  # some features by 0.4 %, and gradients by more than is allowed here.
  features.KEPT = jnp.float32
  config = configured((1, 1), 'cached')
  checkpoint = decoding.verifier(config)
  write_trajectories(f'{workdir}/data', checkpoint)
  chosen = FEW
  if everything:
    chosen = [(mesh, mode) for mesh in MESHES for mode in MODES]
  cases, found, one = {}, {}, None
  for mesh, mode in chosen:
    name = f'{mesh} {mode}'
    case = cases[name] = Case(mesh, mode, checkpoint, workdir)
    iterator = case.iterator()
    batch = next(case.iterator())
    gradient = case.gradient(batch)
    state, losses = train(
      case, STEPS, jax.tree.map(jnp.copy, case.first), iterator
    )
    if one is None:
      one = gradient, losses, flat(state.params)
      wrong = controls(case, batch)
    query = state.params['layer_0']['query']
    verifier = case.view.verifier
    found[name] = {
      'gradient': distance(gradient, one[0]),
      'loss': max(abs(np.divide(losses, one[1]) - 1)),
      'params': distance(flat(state.params), one[2]),
      'query': shard(query),
      'verifier': verifier and shard(verifier['layer_0']['output']),
      'compiled': case.step._cache_size(),
    }
  print(json.dumps({
      'cases': found,
      'controls': {name: distance(g, one[0]) for name, g in wrong.items()},
      'restored': restored(
          cases['(4, 2) online'], cases['(8, 1) cached'], workdir
      ),
      'refused': refused(),
  }))  # fmt: skip


if __name__ == '__main__':
  os.makedirs(sys.argv[1], exist_ok=True)
  main(sys.argv[1], 'all' in sys.argv[2:])
