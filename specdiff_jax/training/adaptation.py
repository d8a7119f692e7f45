"""From an autoregressive model to a diffusion one: annealed masks, shifts.

DiffuLLaMA (arXiv 2410.17891) goes on training a causal model under the
diffusion ELBO (`revealed.elbo`), opens its attention little by little, and
keeps what the outputs mean: output i - 1 still predicts token i.

  share = annealed_share(step, 10_000)
  mask = annealed_mask(key, causal_BxTxT, full_BxTxT, share)
  target, counted = shifted_targets(tokens, masked)
"""

import jax
import jax.numpy as jnp


def annealed_share(step: jax.Array | int, steps: int) -> jax.Array:
  """Returns the share of the future that is open: to 1 at step steps - 1."""
  step = jnp.asarray(step, jnp.float32)
  return jnp.clip((step + 1) / max(steps, 1), 0.0, 1.0)


def annealed_mask(
    key: jax.Array, causal: jax.Array, full: jax.Array, share: jax.Array
) -> jax.Array:
  """Returns an attention mask between causal and full.

  Each pair that `full` allows and `causal` does not is open with probability
  `share`, independently (DiffuLLaMA, section 3.2): at 0 the model is the
  causal one, at 1 it is bidirectional.

  Args:
    key: drawn anew for each step.
    causal: [..., T, T] bool.
    full: [..., T, T] bool, padding left out.
    share: [] in 0..1; see `annealed_share`.
  """
  opened = jax.random.uniform(key, jnp.broadcast_shapes(
      causal.shape, full.shape
  )) < share
  return full & (causal | opened)


def shifted_targets(
    tokens: jax.Array, masked: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns what the outputs of a shifted model are to predict.

  Output i predicts token i + 1, as in the autoregressive model that it was
  (Dream, DiffuCoder, DiffuLLaMA). The first token is predicted by no output,
  the last output predicts nothing.

    tokens    a  b  c  d        masked    .  x  .  x
    target    b  c  d  .        counted   x  .  x  .

  Args:
    tokens: [..., T] the clean tokens.
    masked: [..., T] bool, which of them the model sees as masks.

  Returns:
    target [..., T], and counted [..., T] bool: where there is one to predict.
  """
  target = jnp.roll(tokens, -1, axis=-1)
  counted = jnp.roll(masked, -1, axis=-1)
  return target, counted.at[..., -1].set(False)
