"""Caches that are read otherwise, prompts in chunks: the same contract."""

import dataclasses
import functools

import contract_systems as systems
import jax
import pytest

from specdiff_jax.decoding import prefill
from specdiff_jax.models import cache
from specdiff_jax.testing import contract
from specdiff_jax.testing import models

SETTINGS = contract.SETTINGS


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  """The config's `attention` is what tells these programs from others."""
  monkeypatch.setattr(cache, 'CHUNK', 16)
  monkeypatch.setattr(prefill, 'CHUNK', 5)


def reading(form, scan_layers):
  checkpoint = models.tiny_verifier(scan_layers)
  config = dataclasses.replace(checkpoint.config, attention=form)
  return dataclasses.replace(checkpoint, config=config)


ROWS = (
  systems.Row('best_first'),
  systems.Row('tree', scan_layers=True),
  systems.Row('block_shared_noise'),
  systems.Row('sps_argmax'),
  systems.Row('causal_argmax'),
)


def pair(row, form='chunked'):
  """Returns the contract with this form, and the one without."""
  params = row.drafter_params(contract.SAMPLED)
  for checkpoint in (
    reading(form, row.scan_layers),
    models.tiny_verifier(row.scan_layers),
  ):
    yield contract.Contract(row.drafter(), params, checkpoint, row.rule)


@pytest.mark.parametrize(
  'row, form',
  [
    *((row, 'chunked') for row in ROWS),
    (systems.Row('tree'), 'kernel'),
    (systems.Row('tree', scan_layers=True), 'kernel'),
  ],
  ids=lambda one: getattr(one, 'kind', one),
)
def test_tokens_are_those_of_plain_decoding(row, form):
  one, _ = pair(row, form)
  for settings in SETTINGS:
    found = one.decode(settings)
    if row in (ROWS[0], systems.Row('tree')):  # plain decoding of each form
      one.compare(found, one.plain(settings), str(settings))
    assert found == systems.plain(settings)


@functools.partial(jax.jit, static_argnums=0)
def first_tree(engine, params, drafter_params, state):
  tree, _ = engine.drafter.draft(
    drafter_params,
    state.drafter,
    engine.context(params, state),
    state.sampling,
    state.noise,
    engine.drafter.buckets[-1],
  )
  return tree


@pytest.mark.parametrize('row', (ROWS[0], *ROWS[2:4]), ids=lambda row: row.kind)
def test_first_drafts_are_the_same(row, monkeypatch):
  """So what drafters make of a prompt is: a wrong state costs only speed."""
  trees, others = [], []
  for one in pair(row):
    session = one.session(contract.GREEDY)
    rows = session.rows()
    for place in range(contract.BATCH):
      asked = one.requests[place : place + 1]
      rows.fill([place], session.start(asked, rows.group))
    state = rows.state
    given = session.engine, session.params, session.drafter_params
    trees.append(first_tree(*given, state))
    # The control: a state that belongs to the prompts in another order.
    turned = jax.tree.map(lambda x: x[::-1], state.drafter)
    state = state.replace(drafter=turned)
    others.append(first_tree(*given, state))
    monkeypatch.setattr(prefill, 'CHUNK', 1024)
  assert (trees[0].token == trees[1].token).all()
  assert (others[0].token != trees[1].token).any()
