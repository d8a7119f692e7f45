"""The same gradients on every mesh; eight devices in a process of its own."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

PROGRAM = """
    import json
    import sys
    import grain
    import jax
    import jax.numpy as jnp
    import numpy as np
    from specdiff_jax.core import errors
    from specdiff_jax.parallel import hosts
    from specdiff_jax.parallel import mesh as mesh_lib
    from specdiff_jax.parallel import rules
    from specdiff_jax.training import checkpoint
    from specdiff_jax.training import losses
    from specdiff_jax.training import step

    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    B, G, E, F, V = 8, 4, 6, 16, 24
    args = {'up': draw(F, E), 'down': draw(E, F), 'head': draw(V, E)}
    batch = {
        'x': draw(B, G, E),
        'target': rng.integers(0, V, (B, G)).astype(np.int32),
        'valid': np.arange(G) < rng.integers(1, G + 1, (B, 1)),
    }

    def loss_fn(params, frozen, batch, at):
      hidden = jax.nn.gelu(batch['x'] @ params['up'].T) @ params['down'].T
      log_p = jax.nn.log_softmax(hidden @ frozen['head'].T)
      log_q = jnp.take_along_axis(log_p, batch['target'][..., None], -1)
      return losses.warmed_streak(
          log_q[..., 0], batch['valid'], ce_weight=0.5, beta=0.3, decay=7.0
      )

    def mean_of_shares(params, frozen, batch, at):  # Wrong: uneven shares.
      shares = [jax.tree.map(lambda x: x[i : i + 1], batch) for i in range(B)]
      each = [loss_fn(params, frozen, share, at) for share in shares]
      return sum(loss for loss, _ in each) / B, each[0][1]

    class Plain:  # An optimizer whose update is the gradient.
      init = staticmethod(lambda params: ())
      update = staticmethod(lambda g, s, p: (g, s))

    results = {}
    for name, shape, loss in (
        ('wrong', (1, 1), mean_of_shares),
        ('(1, 1)', (1, 1), loss_fn),
        ('(8, 1)', (8, 1), loss_fn),
        ('(4, 2)', (4, 2), loss_fn),
    ):
      mesh = mesh_lib.make_mesh(shape)
      state, shardings = step.init_state(
          lambda a: a, [args], Plain, rules.TRANSFORMER, mesh
      )
      before = jax.device_get(state.params)
      frozen = jax.device_put(
          {'head': args['head']}, rules.replicated(mesh)
      )
      step_fn = step.make_train_step(loss, Plain, mesh, shardings)
      state, metrics = step_fn(state, hosts.global_batch(mesh, batch), frozen)
      # Each device's own share, to see that the work was divided at all.
      local = state.params['up'].addressable_shards[0].data.shape
      state2, _ = step_fn(state, hosts.global_batch(mesh, batch), frozen)
      results[name] = {
          'loss': float(metrics['loss']),
          'windows': int(metrics['windows']),
          'up': list(local),
          'pinned': state2.params['up'].sharding == shardings.params['up'],
          'compiled': step_fn._cache_size(),
      }
      after = jax.device_get(state2.params)
      results[name]['moved'] = {
          k: (after[k] - before[k]).tolist() for k in before
      }
      if name == '(8, 1)':
        elsewhere = state2  # To be filled from a checkpoint of (4, 2).
    data = grain.MapDataset.range(8).to_iter_dataset()
    saved = checkpoint.Checkpointer(sys.argv[1])
    saved.save(state2, iter(data))
    restored = saved.restore(elsewhere, iter(data))
    across = {
        'same': checkpoint.digest(restored) == checkpoint.digest(state2),
        'sharding': restored.params['up'].sharding
        == elsewhere.params['up'].sharding,
        'other': state2.params['up'].sharding
        == elsewhere.params['up'].sharding,
    }
    refused = []
    for attempt in (
        lambda: mesh_lib.make_mesh((3, -1)),
        lambda: mesh_lib.make_mesh((4, 4)),
        lambda: hosts.global_batch(
            mesh_lib.make_mesh((8, 1)), {'x': draw(6, 2)}
        ),
    ):
      try:
        attempt()
      except errors.InputError as error:
        refused.append(str(error))
    print(json.dumps({'results': results, 'refused': refused,
                      'across': across}))
"""


@pytest.fixture(scope='module')
def outcome(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('checkpoints')
  environment = os.environ | {
      'JAX_NUM_CPU_DEVICES': '8',
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': os.getcwd(),
  }
  done = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(PROGRAM), str(workdir)],
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def moved(results, shape):
  leaves = results[shape]['moved']
  return np.concatenate([np.ravel(leaves[name]) for name in sorted(leaves)])


@pytest.mark.parametrize('shape', ['(8, 1)', '(4, 2)'])
def test_gradients_agree_over_meshes(outcome, shape):
  results = outcome['results']
  one, many = moved(results, '(1, 1)'), moved(results, shape)
  scale = np.abs(one).max()
  assert np.abs(one - many).max() <= 2e-5 * scale
  assert results[shape]['loss'] == pytest.approx(
      results['(1, 1)']['loss'], rel=2e-5
  )
  assert results[shape]['windows'] == 8  # The whole batch, not one share.
  # Negative control: the mean of each share's own mean is another loss.
  wrong = moved(results, 'wrong')
  assert np.abs(one - wrong).max() > 2e-5 * scale


def test_parameters_are_split_and_stay_so(outcome):
  results = outcome['results']
  assert results['(1, 1)']['up'] == [16, 6]
  assert results['(8, 1)']['up'] == [16, 6]
  assert results['(4, 2)']['up'] == [8, 6]
  assert all(result['pinned'] for result in results.values())
  assert all(result['compiled'] == 1 for result in results.values())


def test_what_eight_devices_refuse(outcome):
  divisor, many, rows = outcome['refused']
  assert 'data=3' in divisor and 'divisor of 8' in divisor
  assert 'data=4, model=4' in many and 'at most 8' in many
  assert '6 rows' in rows


def test_a_checkpoint_of_one_mesh_restores_on_another(outcome):
  assert outcome['across'] == {'same': True, 'sharding': True, 'other': False}
