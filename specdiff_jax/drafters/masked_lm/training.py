"""From an autoregressive model to a diffusion one: annealed masks, shifts.

DiffuLLaMA (arXiv 2410.17891) goes on training a causal model under the
diffusion ELBO (`revealed.elbo`), opens its attention little by little, and
keeps what the outputs mean: output i - 1 still predicts token i. `whole_elbo`
does so on whole texts; `score_of` then lets any loss of windows train the
model as it is served.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from specdiff_jax.drafters import scores
from specdiff_jax.drafters.masked_lm import network as adapted_network
from specdiff_jax.losses import revealed
from specdiff_jax.losses import slots
from specdiff_jax.models import head as head_lib
from specdiff_jax.models import views


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
  opened = (
    jax.random.uniform(key, jnp.broadcast_shapes(causal.shape, full.shape))
    < share
  )
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


def whole_elbo(
  config: adapted_network.AdaptedConfig, schedule: revealed.Schedule, steps: int
) -> Callable[..., slots.Value]:
  """Returns the ELBO of whole completions, given their prompts.

  Completion tokens are masked at one time for each text, prompts never; the
  attention is open after so many steps. For `objective.Objective.whole`.
  """

  def value(params, view, batch, keys, step, block):
    tokens, length = batch.tokens, batch.length
    rows, size = tokens.shape
    mask_keys, attention_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    index = jnp.arange(size)
    there = index < length[:, None]
    asked = there & (index >= batch.prompt_length[:, None])
    drawn = jax.vmap(lambda key: revealed.draw_masks(key, (), size, schedule))(
      mask_keys
    )
    masked = asked & ~drawn.mask
    seen = jax.vmap(annealed_mask, (0, 0, 0, None))(
      attention_keys,
      views.causal_mask(length, size),
      jnp.broadcast_to(there[:, None], (rows, size, size)),
      annealed_share(step, steps),
    )
    given = jnp.where(masked, config.mask_id, tokens)
    x = adapted_network.states(config, params, view.embed, given, seen)
    target, counted = shifted_targets(tokens, asked)
    log_q, _ = head_lib.targets(x, view.head, view.index[target], block)
    shown = slots.Shown(jnp.roll(~masked, -1, axis=-1), drawn.weight)
    loss, metrics = revealed.elbo(log_q, counted, shown)
    targets = jnp.sum(masked & (index > 0))
    return loss, metrics | {
      'targets': targets,
      'useful_targets_per_token': targets / tokens.size,
    }

  return value


def score_of(config: adapted_network.AdaptedConfig) -> scores.Score:
  """Returns the score of windows that follow a fully bidirectional prefix.

  The prefix of each window sees its masks, so that no window shares a pass
  with another: W passes of the whole text, one after the other.
  """

  def score(params, view, batch, gamma, shown=None):
    del shown  # its windows are masked whole
    tokens = jnp.pad(batch.tokens, ((0, 0), (0, gamma)))
    index = jnp.arange(tokens.shape[1])
    offsets_G = jnp.arange(gamma)

    @jax.checkpoint
    def one(anchor):  # [B]
      given = jnp.where(index <= anchor[:, None], tokens, config.mask_id)
      seen = index <= anchor[:, None] + gamma
      seen = jnp.broadcast_to(seen[:, None], tokens.shape + index.shape)
      x = adapted_network.states(config, params, view.embed, given, seen)
      place = anchor[:, None] + offsets_G  # of the output before each slot
      return jnp.take_along_axis(x, place[..., None], axis=1)

    states = jax.lax.map(one, batch.anchors.T)  # [W, B, G, E]
    extra_tokens = batch.anchors.shape[1] * tokens.size - batch.tokens.size
    return scores.of_windows(
      jnp.moveaxis(states, 0, 1), batch.anchors, extra_tokens
    )

  return score
