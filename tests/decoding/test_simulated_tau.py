"""The tau that training reports is the tau that serving has."""

import contract_systems as systems
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.data import trajectories
from specdiff_jax.data import windows
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.drafters import family
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import registry
from specdiff_jax.drafters.autoregressive import training as causal_training
from specdiff_jax.drafters.eagle import network as eagle
from specdiff_jax.drafters.eagle import training as eagle_training
from specdiff_jax.models import networks
from specdiff_jax.models import views
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import processes
from specdiff_jax.testing import contract
from specdiff_jax.testing import models
from specdiff_jax.training import every_anchor
from specdiff_jax.training import objective

VOCAB = systems.causal_params()[1].vocab
GREEDY = request_lib.Settings(max_new_tokens=systems.NEW)


def source():
  """Returns the greedy completions of the contract's requests."""
  texts = zip(systems.REQUESTS, systems.plain(GREEDY))
  return [
    trajectories.Trajectory(
      id=str(request.number),
      prompt_hash=f'{request.number:016x}',
      prompt=np.array(request.prompt, np.int32),
      completion=np.array(completion, np.int32),
      temperature=0.0,
      top_k=0,
      top_p=1.0,
      seed=0,
    )
    for request, completion in texts
  ]


def simulated(score, params, read=lambda batch: batch):
  """Returns the figures of the evaluation that distillation does.

  `read` adds what a drafter reads of the verifier to a batch.
  """
  verifier = jax.tree.map(jnp.asarray, systems.verifier()[1])
  view = objective.view(verifier, VOCAB)
  mesh = mesh_lib.make_mesh((1, 1))
  evaluate = every_anchor.evaluator(
      objective.make_matches(score, systems.GAMMA),
      view,
      lambda batch: processes.global_batch(mesh, read(batch)),
      source(),
      windows.WindowConfig(
          tokens=systems.BUCKET + systems.NEW, windows=10,
          gamma=systems.GAMMA, batch=4,
      ),
      mesh,
  )  # fmt: skip
  return evaluate(params)


def test_sps():
  config, params = systems.causal_params()
  check(
    systems.run(systems.Row('sps_argmax'), GREEDY),
    simulated(causal_training.score_of(config), params.network),
  )


def test_eagle():
  """A chain of its own outputs, behind the verifier's states."""
  verifier = models.tiny_verifier()
  config = eagle.TrainedConfig((0, 1), len(VOCAB), verifier.config)
  params = jax.jit(eagle.initial_from_verifier, static_argnums=0)(
    config, jax.random.key(0), verifier.params
  )
  one, made = registry.family('eagle').drafter(
    {'drafter': family.Trained(config, params, VOCAB, '')},
    verifier,
    family.Serving(systems.GAMMA, lattice.Lattice(systems.GAMMA + 1, 1, 1)),
  )
  network = networks.network(verifier.config)
  weights = jax.tree.map(jnp.asarray, verifier.params)

  @jax.jit
  def states(tokens, length):
    index = jnp.arange(tokens.shape[1])
    mask = views.causal_mask(length, tokens.shape[1])
    return network.apply(
        {'params': weights}, tokens,
        jnp.broadcast_to(index, tokens.shape), mask, features=config.features,
    )[2]  # fmt: skip

  def read(batch):
    found = states(batch.tokens, batch.length)
    return batch.replace(features=np.asarray(found))

  check(
    contract.Contract(one, made, verifier)
    .session(GREEDY)
    .decode(systems.REQUESTS),
    simulated(eagle_training.score_of(config), params, read),
  )


def check(served, figures):
  tau = sum(c.emitted for c in served) / sum(c.cycles for c in served)
  assert 1.2 < tau < systems.GAMMA  # neither always wrong nor always right
  assert figures['tau'] == tau
  # Negative control: the mean over all anchors is another number.
  assert figures['tau'] != 1 + figures['accepted']
