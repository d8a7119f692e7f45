"""The tau that training reports is the tau that serving has."""

import contract_systems as systems
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.data import trajectories
from specdiff_jax.data import windows
from specdiff_jax.decoding import generate
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import processes
from specdiff_jax.training import every_anchor
from specdiff_jax.training import objective
from specdiff_jax.training import scores

GREEDY = generate.Settings(max_new_tokens=systems.NEW)


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


def simulated():
  """Returns the figures of the evaluation that distillation does."""
  config, params = systems.causal_params()
  verifier = jax.tree.map(jnp.asarray, systems.verifier()[1])
  view = objective.view(verifier, params.vocab)
  mesh = mesh_lib.make_mesh((1, 1))
  evaluate = every_anchor.evaluator(
      objective.make_matches(scores.causal_score(config), systems.GAMMA),
      view,
      lambda batch: processes.global_batch(mesh, batch),
      source(),
      windows.WindowConfig(
          tokens=systems.BUCKET + systems.NEW, windows=10,
          gamma=systems.GAMMA, batch=4,
      ),
      mesh,
  )  # fmt: skip
  return evaluate(params.network)


def test_sps():
  served = systems.run(systems.Row('sps_argmax'), GREEDY)
  figures = simulated()
  tau = sum(c.emitted for c in served) / sum(c.cycles for c in served)
  assert 1.2 < tau < systems.GAMMA  # neither always wrong nor always right
  assert figures['tau'] == tau
  # Negative control: the mean over all anchors is another number.
  assert figures['tau'] != 1 + figures['accepted']
