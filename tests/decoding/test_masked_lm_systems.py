"""Alignment, kept keys and ids of masked language models, in the whole loop.

An output that is read at the wrong position, or an id that is mapped wrongly,
makes a bad drafter, and no error: here drafts are known to be right.
"""

import dataclasses

import contract_systems as systems
import numpy as np
import pytest

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.masked_lm import drafter as masked_lm
from specdiff_jax.drafters.masked_lm import model as model_lib
from specdiff_jax.models import gpt2
from specdiff_jax.models import networks

GREEDY = request_lib.Settings(max_new_tokens=systems.NEW)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, seed=3)
REQUEST = systems.REQUESTS[3]


def oracle(shifted: bool) -> dict:
  """Returns params of a GPT-2 that knows the text by its positions alone.

  Its output at a position is the text's token there, or one later if
  `shifted`: layers and embedding are 0, rows of the table of positions 1 at
  that token, and the head takes each token's column.
  """
  text = systems.script(GREEDY)[REQUEST.prompt[0]]
  params = {
    name: np.zeros(shape, np.float32)
    for name, shape in networks.shapes(SIZES).items()
  }
  known = text[1:] if shifted else text
  params['position_embed'][np.arange(len(known)), known] = 1
  params['head'] = 9 * np.eye(systems.VOCAB, dtype=np.float32)
  params['final_norm'] += 1
  return params_lib.nest(params)


SIZES = gpt2.GPT2Config(
  vocab_size=systems.VOCAB,
  width=systems.VOCAB,
  layers=1,
  heads=1,
  mlp_width=4,
  max_positions=systems.BUCKET + systems.NEW + systems.GAMMA,
  tied_head=False,
)


def decode(model, params, settings, requests, mode='argmax', batch=4):
  """Returns completions, which have to be those of plain decoding."""
  drafter = masked_lm.MaskedLMDrafter(
    model, systems.GAMMA, strategies.Chain(mode=mode)
  )
  one = systems.session(
    systems.Row('ar'),
    settings,
    batch,
    engine=systems.engine_of(drafter),
    drafter_params=params,
  )
  got = one.decode(requests)
  plain = systems.plain(settings)
  assert systems.tokens(got) == [plain[r.number] for r in requests]
  return got


@pytest.mark.parametrize('shifted', [False, True])
def test_an_oracle_has_all_its_drafts_accepted(shifted):
  right, wrong = (
    model_lib.MaskedLM(SIZES, systems.VOCAB - 1, s)
    for s in (shifted, not shifted)
  )
  ids = np.arange(systems.VOCAB)
  params = masked_lm.make_params(right, oracle(shifted), ids, systems.VOCAB)
  # The mask is a token of the text too: let it be drafted here.
  params = params.replace(feed=ids, ids=ids, drafter_ids=ids)
  (best,) = decode(right, params, GREEDY, [REQUEST], batch=1)
  cycles = -(-(systems.NEW - 1) // (systems.GAMMA + 1))
  assert best.cycles == cycles
  assert best.accepted[systems.GAMMA] >= cycles - 1
  # Negative control, one position off: as good as nothing is accepted.
  (worst,) = decode(wrong, params, GREEDY, [REQUEST], batch=1)
  assert worst.cycles > 0.8 * worst.emitted


def refused(completions):
  """Returns the part of cycles in which the first slot was not accepted.

  The last cycle of a row is left out: the limit may cut it.
  """
  none = sum(c.accepted[0] for c in completions)
  return none / sum(c.cycles for c in completions)


@pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['T0', 'T1'])
def test_the_verifier_as_its_own_drafter_is_right_at_first(settings):
  """Beyond a causal prefix its first slot has the verifier's law.

  So nothing is refused, if positions, keys from cycle to cycle, uneven rows
  and both vocabularies are right.
  """
  model, params = systems.masked_params('causal')
  mode = 'shared_noise'
  got = decode(model, params, settings, systems.REQUESTS, mode)
  assert refused(got) <= 0.02  # cut by the limit
  # Negative controls: another alignment, ids off by one.
  model, params = systems.masked_params('causal', shifted=False)
  assert refused(decode(model, params, settings, systems.REQUESTS, mode)) > 0.3
  model, params = systems.masked_params('causal', turn=1)
  assert refused(decode(model, params, settings, systems.REQUESTS, mode)) > 0.3
