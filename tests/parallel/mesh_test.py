"""Meshes, sharding rules and batches on the one device that there is."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.parallel import hosts
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import rules


def fake_mesh(data, model):
  """A mesh of shapes only: rules ask for no device."""
  return jax.sharding.AbstractMesh((data, model), ('data', 'model'))


def specs(shapes, table, mesh):
  tree = {
      name: jax.ShapeDtypeStruct(shape, np.float32)
      for name, shape in shapes.items()
  }
  got = rules.shardings(tree, table, mesh)
  return {name: sharding.spec for name, sharding in got.items()}


def test_minus_one_takes_what_is_left():
  assert dict(mesh_lib.make_mesh((-1, 1)).shape) == {
      'data': jax.device_count(),
      'model': 1,
  }
  mesh = mesh_lib.make_mesh({'model': 1, 'data': 1})
  assert mesh.axis_names == ('model', 'data')
  auto = jax.sharding.AxisType.Auto
  assert all(kind == auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((4096, 1), 'does not fit'),
        ((-1, 4096), 'does not fit'),
        ((0, 1), 'not a shape'),
        ((-1, -1), 'not a shape'),
        ((-2, 1), 'not a shape'),
        ((1,), 'one size for each axis'),
        ((1, 1, 1), 'one size for each axis'),
    ],
)
def test_mesh_errors(shape, message):
  with pytest.raises(errors.InputError, match=message):
    mesh_lib.make_mesh(shape)


def test_first_match_wins():
  table = [
      ('layer_0/query', ('model', None)),
      ('query', (None, 'model')),
      ('.*', ('data',)),
  ]
  shapes = {'layer_0/query': (8, 8), 'layer_1/query': (8, 8), 'norm': (8,)}
  got = specs(shapes, table, fake_mesh(2, 4))
  assert got == {
      'layer_0/query': P('model', None),
      'layer_1/query': P(None, 'model'),
      'norm': P('data'),
  }
  # Negative control: in another order another rule wins.
  got = specs(shapes, table[1:] + table[:1], fake_mesh(2, 4))
  assert got['layer_0/query'] == P(None, 'model')


def test_no_match_and_scalars_are_replicated():
  table = [('count', ('data',))]
  got = specs({'norm': (8,), 'count': ()}, table, fake_mesh(2, 4))
  assert got == {'norm': P(), 'count': P()}


def test_indivisible_dimensions_are_replicated():
  table = [('w', ('model', 'data')), ('both', (('data', 'model'),))]
  shapes = {'w_a': (6, 6), 'w_b': (8, 7), 'both_a': (16,), 'both_b': (12,)}
  got = specs(shapes, table, fake_mesh(2, 4))
  assert got == {
      'w_a': P(None, 'data'),
      'w_b': P('model', None),
      'both_a': P(('data', 'model')),
      'both_b': P(None),
  }


def test_names_are_joined_by_slashes():
  tree = {'params': {'layer_0': [1, 2]}}
  paths = jax.tree_util.tree_flatten_with_path(tree)[0]
  names = [rules.name(path) for path, _ in paths]
  assert names == ['params/layer_0/0', 'params/layer_0/1']


def test_stacked_layers_keep_their_first_dimension():
  shapes = {
      'layers/attention/query': (30, 16, 8),
      'layers/output': (30, 8, 16),
      'layer_0/output': (8, 16),
      'layer_0/mlp_norm': (8,),
      'embed': (32, 8),
  }
  assert specs(shapes, rules.TRANSFORMER, fake_mesh(2, 4)) == {
      'layers/attention/query': P(None, 'model', None),
      'layers/output': P(None, None, 'model'),
      'layer_0/output': P(None, 'model'),
      'layer_0/mlp_norm': P(),
      'embed': P('model', None),
  }


def test_rule_errors():
  mesh = fake_mesh(2, 4)
  with pytest.raises(errors.InputError, match="'tensor'.*'data', 'model'"):
    specs({'w': (8,)}, [('w', ('tensor',))], mesh)
  with pytest.raises(errors.InputError, match=r"'w'.*2 dimensions.*\(8,\)"):
    specs({'w': (8,)}, [('w', ('data', 'model'))], mesh)


def test_batches():
  mesh = mesh_lib.make_mesh((1, 1))
  local = {'x': np.arange(6).reshape(3, 2), 'n': np.arange(3)}
  got = hosts.global_batch(mesh, local)
  assert got['x'].sharding.spec == P('data')
  np.testing.assert_array_equal(got['x'], local['x'])
  with pytest.raises(errors.InputError, match='3 rows.*data axis of 2'):
    hosts.check_rows(3, 2)


def test_one_process():
  hosts.initialize(False)
  assert (hosts.process_index(), hosts.process_count()) == (0, 1)
  assert hosts.is_first()


def test_processes_that_do_not_join_are_an_error(monkeypatch):
  def fail():
    raise ValueError('coordinator_address should be defined')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  with pytest.raises(errors.InputError, match='JAX_COORDINATOR_ADDRESS'):
    hosts.initialize(True)
