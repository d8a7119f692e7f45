"""Meshes, sharding rules and batches on the one device that there is."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.drafters import tables
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import int8
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules


def fake_mesh(*sizes):
  """A mesh of shapes only: rules ask for no device."""
  axes = mesh_lib.SLICED[-len(sizes) :]
  return jax.sharding.AbstractMesh(sizes, axes)


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
    ((1, 1, 1, 1), 'one size for each axis'),
    ((4096, 1, 1), 'replica=4096, data=1, model=1 does not fit'),
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


def test_biases_and_the_parts_of_a_drafter_are_split():
  shapes = {
    'layers/query_bias': (30, 16),
    'layer_0/value_bias': (16,),
    'trunk': (64, 32),
    'expand': (16, 64),
    'slot_shift': (7, 64),
    'hint': (16, 16),
    'stream': (16,),
  }
  assert specs(shapes, tables.sharding(), fake_mesh(2, 4)) == {
    'layers/query_bias': P(None, 'model'),
    'layer_0/value_bias': P('model'),
    'trunk': P('model', None),
    'expand': P(None, 'model'),
    'slot_shift': P(None, 'model'),
    'hint': P('model', None),
    'stream': P(),
  }


def test_caches_are_split_by_rows_and_heads():
  shapes = {
    'layers/0': (3, 4, 8, 32, 16),
    'drafter/context/layers/1/0': (4, 8, 32, 16),
    'drafter/last': (4, 2, 16),
    'layers/0/1': (3, 8, 32, 16),  # three rows do not go over two devices
  }
  assert specs(shapes, cache_lib.SPLIT, fake_mesh(2, 4)) == {
    'layers/0': P(None, 'data', 'model'),
    'drafter/context/layers/1/0': P('data', 'model'),
    'drafter/last': P(),
    'layers/0/1': P(None, 'model'),
  }


def test_three_axes():
  mesh = mesh_lib.make_mesh((1, 1, 1))
  assert mesh.axis_names == ('replica', 'data', 'model')
  assert rules.by_row(mesh).spec == P(('replica', 'data'))
  assert rules.row_ways(fake_mesh(2, 4, 8)) == 8
  shapes = {'layer_0/query': (8, 8), 'bias': (8,)}
  assert specs(shapes, rules.TRANSFORMER, fake_mesh(2, 4, 2)) == {
    'layer_0/query': P('model', None),
    'bias': P(),  # whole in every replica, as all params
  }
  by_row = (('', (rules.ROWS,)),)
  assert specs({'length': (8,)}, by_row, fake_mesh(2, 4, 2)) == {
    'length': P(('replica', 'data')),
  }


def test_fully_sharded_params():
  shapes = {
    'layers/query': (30, 16, 8),
    'layers/output': (30, 8, 16),
    'layer_0/down': (8, 16),
    'layer_0/query_bias': (16,),
    'trunk': (64, 32),
    'embed': (30, 8),
    'final_norm': (8,),
  }
  assert specs(shapes, tables.sharding(over_data=True), fake_mesh(2, 4)) == {
    'layers/query': P(None, 'model', 'data'),
    'layers/output': P(None, 'data', 'model'),
    'layer_0/down': P('data', 'model'),
    'layer_0/query_bias': P('model'),
    'trunk': P('model', 'data'),
    'embed': P(None, 'data'),  # 30 rows do not go over four devices
    'final_norm': P(),
  }


def test_a_rounded_matrix_is_split_as_it_was():
  """Its values like the matrix, its scales like their outputs."""
  shapes = {'layer_0/query': (8, 6), 'layer_0/output': (6, 8)}
  whole = {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in shapes.items()
  }
  mesh, table = fake_mesh(1, 2), tables.sharding()
  wanted = rules.shardings(whole, table, mesh)
  tree = {
    name: int8.Int8(
      jax.ShapeDtypeStruct(shape, np.int8),
      jax.ShapeDtypeStruct(shape[:1], np.float32),
    )
    for name, shape in shapes.items()
  }
  got = rules.shardings(tree, table, mesh)
  for name, one in got.items():
    assert one.values.spec == wanted[name].spec != P()
  assert got['layer_0/query'].scale.spec == P('model')
  assert got['layer_0/output'].scale.spec in (P(), P(None))


def test_what_is_not_split_is_told():
  tree = {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in {'embed': (30, 8), 'head': (32, 8), 'n': ()}.items()
  }
  assert rules.not_split(tree, rules.TRANSFORMER, fake_mesh(2, 4)) == [
    'embed: dimension 0 of (30, 8) does not divide over model=4'
  ]
  assert not rules.not_split(tree, rules.TRANSFORMER, fake_mesh(8, 2))


class Device:
  """One that can only be placed."""

  platform = device_kind = 'fake'
  process_index = 0

  def __init__(self, number, slice_index):
    self.id, self.slice_index = number, slice_index

  def __repr__(self):
    return f'{self.slice_index}/{self.id}'


def test_the_first_axis_goes_over_slices():
  devices = [Device(i, i // 4) for i in range(8)]
  placed = mesh_lib._placed((4, 2), mesh_lib.AXES, devices)
  assert [[d.slice_index for d in row] for row in placed] == [
      [0, 0], [0, 0], [1, 1], [1, 1],
  ]  # fmt: skip
  with pytest.raises(errors.InputError, match="data=1.*2 slices.*'data'"):
    mesh_lib._placed((1, 8), mesh_lib.AXES, devices)


def test_given_devices_are_all_taken():
  devices = [*jax.devices(), *jax.devices()]
  with pytest.raises(errors.InputError, match='uses 1 of 2'):
    mesh_lib.make_mesh((1, 1), devices=devices)


def test_rule_errors():
  mesh = fake_mesh(2, 4)
  with pytest.raises(errors.InputError, match="'tensor'.*'data', 'model'"):
    specs({'w': (8,)}, [('w', ('tensor',))], mesh)
  with pytest.raises(errors.InputError, match=r"'w'.*2 dimensions.*\(8,\)"):
    specs({'w': (8,)}, [('w', ('data', 'model'))], mesh)


def test_batches():
  mesh = mesh_lib.make_mesh((1, 1))
  local = {'x': np.arange(6).reshape(3, 2), 'n': np.arange(3)}
  got = processes.global_batch(mesh, local)
  assert got['x'].sharding.spec == P('data')
  np.testing.assert_array_equal(got['x'], local['x'])
  with pytest.raises(errors.InputError, match='3 rows.*data axis of 2'):
    processes.check_rows(3, 2)


def test_one_process():
  assert processes.row_share(mesh_lib.make_mesh((1, 1))) == (0, 1)
  with pytest.raises(errors.InputError, match='no room'):
    processes.on_first(_full)
  processes.initialize(False)
  assert (processes.process_index(), processes.process_count()) == (0, 1)
  assert processes.is_first()


def _full():
  raise errors.InputError('no room')


@pytest.mark.parametrize('address', ['localhost:1', 'localhost', 'a:b'])
def test_a_coordinator_that_is_not_there_is_an_error(monkeypatch, address):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', address)
  monkeypatch.setenv('JAX_PROCESS_ID', '1')
  with pytest.raises(errors.InputError, match='did not join within 0.1 sec'):
    processes.initialize(True, 0.1)


def test_processes_that_do_not_join_are_an_error(monkeypatch):
  def fail(**settings):
    assert settings['initialization_timeout'] > 7  # jax ends the process
    assert settings['num_processes'] == 4 and settings['process_id'] == 0
    raise ValueError('coordinator_address should be defined')

  monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  with pytest.raises(errors.InputError, match='7 seconds.*JAX_COORDINATOR'):
    processes.initialize(True, 7)
