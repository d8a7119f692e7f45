"""The nouns of training: a batch of windows, and what is read of the verifier.

Dimension letters are those of `core.types`; W anchors a row, N places in the
draft vocabulary, K stored tokens.
"""

from typing import Any

import flax.struct
import jax

Array = Any  # a jax.Array on a device, an np.ndarray on the host, or shapes


class Distribution(flax.struct.PyTreeNode):
  """The verifier's distribution of the token after each position.

  log p(v) = state . head_v / temperature - log_z, whatever part of the
  vocabulary is asked for.
  """

  state: Array  # [..., E] float32, what the head reads
  log_z: Array  # [...] float32


class TopK(flax.struct.PyTreeNode):
  """The verifier's distribution as its top k tokens, which `collect` stored."""

  ids: Array  # [..., K] int32
  log_p: Array  # [..., K] float16


class TrainBatch(flax.struct.PyTreeNode):
  """Rows of trajectories, and the anchors of their windows.

  The pipeline (`data.windows`) gives numpy arrays; who reads the verifier adds
  what the drafter and the loss take of it.
  """

  tokens: Array  # [B, T] int32 prompt and completion from the left, then 0
  length: Array  # [B] int32 tokens of the row, at most T
  prompt_length: Array  # [B] int32
  anchors: Array  # [B, W] int32 ascending; where not valid, prompt_length
  anchor_valid: Array  # [B, W] bool
  record: Array  # [B] int32 index in the source; -1 in blank rows
  features: Array | None = None  # [B, T, F, E] outputs of verifier layers
  distribution: Distribution | TopK | None = None  # [B, T, ...]


class VerifierView(flax.struct.PyTreeNode):
  """What training reads of the verifier's params, frozen in every step."""

  embed: jax.Array | None  # [V, E]; None: that of `verifier` is taken
  head: jax.Array  # [N, E] rows of the draft vocabulary
  index: jax.Array  # [V] int32 place in the draft vocabulary; -1 outside
  verifier: Any = None  # all params, where its pass is part of the step
