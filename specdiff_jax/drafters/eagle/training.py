"""The training forward of EAGLE-3 drafters: they learn on their own outputs.

What the paper calls training-time test: the drafter reads the text once with
the verifier's states, and then goes on from each anchor as in serving. Token k
of a window sees the text up to the anchor, and the window's tokens before it,
whose states are the drafter's own:

  text      t1 t2 t3 t4 t5        with fused states
  anchor t3           + t4 t5     with o_3, and with what became of t4
"""

import jax.numpy as jnp

from specdiff_jax.data import windows
from specdiff_jax.drafters import scores
from specdiff_jax.drafters.eagle import network as eagle
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks


def score_of(config: eagle.TrainedConfig) -> scores.Score:
  """Returns the score of windows that are drafted token by token.

  While a window's tokens match, serving computes the very same.
  """
  network = eagle.Eagle(config.run_as)

  def score(params, view, batch, gamma, shown=None):
    del shown  # it sees every token before a slot as it is
    head = view.head.astype(jnp.float32) + params['head']
    params = {name: x for name, x in params.items() if name != 'head'}
    tokens, anchors = batch.tokens, batch.anchors
    rows, length = tokens.shape
    targets, _ = windows.targets(batch, gamma)
    run = lambda *given, method: networks.apply(
      network, params, *given, method=method
    )
    h = run(batch.features.astype(jnp.float32), method='fused')
    h = jnp.pad(h[:, :-1], ((0, 0), (1, 0), (0, 0)))
    index = jnp.arange(length)
    known = index > 0  # before the first token there is no state
    out, text = run(
      layers_lib.lookup(view.embed, tokens),
      h,
      jnp.broadcast_to(index, tokens.shape),
      jnp.broadcast_to(
        known & (index <= index[:, None]), (rows, length, length)
      ),
      method='text',
    )
    out = [jnp.take_along_axis(out, anchors[..., None], axis=1)[:, :, None]]
    seen, pair = known & (index <= anchors[..., None]), None
    for k in range(1, gamma):
      x = layers_lib.lookup(view.embed, targets[..., k - 1 : k])
      after, pair = run(
        x, out[-1], anchors[..., None] + k, text.pair, seen, pair,
        method='beside',
      )  # fmt: skip
      out.append(after)
    states = run(jnp.concatenate(out, axis=2), method='normed')
    extra_tokens = targets.size - anchors.size
    return scores.of_windows(states, anchors, extra_tokens, head)

  return score
