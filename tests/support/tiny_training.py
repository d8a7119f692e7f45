"""A drafter of one matrix and its data, for the tests of training."""

import functools
import os

import grain
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.losses import windows
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import rules
from specdiff_jax.training import loop
from specdiff_jax.training import metrics
from specdiff_jax.training import optimizer as optimizer_lib
from specdiff_jax.training import step
from specdiff_jax.training.checkpoint import saving

WIDTH, VOCAB, GAMMA, BATCH = 6, 8, 4, 8


def record(index, rng):
  """Features whose targets a matrix can learn; noise makes rng matter."""
  x = np.random.default_rng(index).standard_normal((GAMMA, WIDTH))
  noise = 0.1 * rng.standard_normal(x.shape)
  return {
    'x': (x + noise).astype(np.float32),
    'target': x.argmax(-1).astype(np.int32),
    'valid': np.arange(GAMMA) < 1 + index % GAMMA,
  }


def batches(epochs=None):
  data = grain.MapDataset.range(40).seed(7).shuffle().repeat(epochs)
  data = data.random_map(record).batch(BATCH, drop_remainder=True)
  return iter(data.to_iter_dataset(grain.ReadOptions(1, 2)))


def loss_fn(params, frozen, batch, at):
  logits = jnp.einsum('ve,bge->bgv', params['head'], batch['x'])
  log_p = jax.nn.log_softmax(logits + params['bias'])
  log_q = jnp.take_along_axis(log_p, batch['target'][..., None], -1)[..., 0]
  beta = windows.anneal(at, 2, 6)
  return windows.warmed(
    windows.streak_loss(log_q, batch['valid'], beta),
    log_q,
    batch['valid'],
    ce_weight=1.0 - windows.anneal(at, 2, 4),
    decay=7.0,
  )


def start(shape=(1, 1), steps=6, loss=loss_fn, explosion=0.0):
  """Returns (state, step_fn), the state a copy that may be donated."""
  state, step_fn = build(shape, steps, loss, explosion)
  return jax.tree.map(jnp.copy, state), step_fn


@functools.cache
def build(shape, steps, loss, explosion):
  mesh = mesh_lib.make_mesh(shape)
  optimizer = optimizer_lib.make_optimizer(
    0.05, steps, warmup=2, explosion=explosion
  )

  def init(key):
    head = 0.1 * jax.random.normal(key, (VOCAB, WIDTH))
    return {'head': head, 'bias': jnp.zeros(VOCAB)}

  state, shardings = step.init_state(
    init, [jax.random.key(0)], optimizer, rules.TRANSFORMER, mesh
  )
  return state, step.make_train_step(loss, optimizer, mesh, shardings)


def train(
    workdir, steps, *, until=6, save_every=100, log_every=1,
    skip_limit=0, survive_full_disk=False, **kwargs,
):  # fmt: skip
  """Trains to `steps` of a run of `until` steps."""
  state, step_fn = start(steps=until)
  checkpointer = saving.Checkpointer(
    os.path.join(workdir, 'checkpoints'), keep=3
  )
  return loop.train(
    state,
    kwargs.pop('step_fn', None) or step_fn,
    kwargs.pop('iterator', None) or batches(),
    checkpointer,
    metrics.MetricsWriter(os.path.join(workdir, 'metrics.jsonl')),
    loop.Schedule(
      steps,
      save_every,
      eval_every=3,
      log_every=log_every,
      skip_limit=skip_limit,
      survive_full_disk=survive_full_disk,
    ),  # fmt: skip
    **kwargs,
  )
