"""Which of the drawn windows serving would begin a cycle at.

Anchors are drawn evenly over a text, but serving goes s <- s + accepted + 1: it
skips what was accepted, and stands behind rejections more often. Its walk is
that of the current drafter, drafting its argmax under rule=match, which
`evaluate.simulate` counts:

  anchor     4  5  6  7  8  9
  accepted   2  0  3  0  1  0
  visited    x        x  x        then 8 + 1 + 1, behind the end

It gained nothing where it was tried: docs/log.md, 22 November 2026.
"""

import jax
import jax.numpy as jnp


def counted(
  keys: jax.Array,
  share: float,
  anchors: jax.Array,
  match: jax.Array,
  valid: jax.Array,
) -> jax.Array:
  """Returns `valid` [B, W, G] without most windows that serving skips.

  Each of these is left out with probability `share`; those that are visited
  all stay, a row's first one among them.

  Args:
    keys: [B].
    share: probability, 0 to 1.
    anchors: [B, W], ascending where valid.
    match: [B, W, G] whether the target is the drafter's argmax.
    valid: [B, W, G].
  """
  accepted = jnp.cumprod(match & valid, axis=-1).sum(axis=-1)
  stays = visited(anchors, accepted, valid[..., 0])
  left_out = jax.vmap(
    lambda key: jax.random.bernoulli(key, share, anchors.shape[1:])
  )
  stays |= ~left_out(keys)
  return valid & stays[..., None]


def visited(
  anchors: jax.Array, accepted: jax.Array, valid: jax.Array
) -> jax.Array:
  """Returns [B, W], the windows at which serving begins a cycle.

  The walk starts at a row's first window; the next one is the first whose
  anchor is at least anchor + accepted + 1. That is serving if every position
  of the completion has a window. With fewer the walk goes on at the next one
  there is, and if they lie further apart than drafts are accepted it visits
  all.

  Args:
    anchors: [B, W] ascending where valid.
    accepted: [B, W] draft tokens.
    valid: [B, W] bool.

  Example: see above.
  """

  def window(due, drafted):
    anchor, accepted, valid = drafted
    here = valid & (anchor >= due)
    return jnp.where(here, anchor + accepted + 1, due), here

  by_window = [jnp.swapaxes(x, 0, 1) for x in (anchors, accepted, valid)]
  _, here = jax.lax.scan(window, jnp.zeros_like(anchors[:, 0]), by_window)
  return jnp.swapaxes(here, 0, 1)
