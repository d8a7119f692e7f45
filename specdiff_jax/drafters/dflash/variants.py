"""DFlash 2 and DSpark on disk: what their files have besides DFlash's.

DFlash 2 puts convolutions around the sublayers and a selector behind them, DSpark
has a Markov head. z-lab's form and the speculators form say so by the same keys
and names of tensors, the one in `dflash_config` or beside it, the other beside it.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import published
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.models import config as config_lib

Raw = published.Raw
ARCHITECTURES = {
  'dflash': 'DFlashDraftModel',
  'dflash2': 'DFlash2DraftModel',
  'dspark': 'Qwen3DSparkModel',
}
# Keys of a config.json that are read here, or that only training reads.
KEYS = (
    'conv_kernel_size', 'conv_group_size', 'selector_rank', 'selector_top_k',
    'markov_rank', 'markov_head_type', 'enable_confidence_head',
    'confidence_head_with_markov', 'sample_from_anchor', 'bonus_anchor',
    'num_anchors',
)  # fmt: skip
_MARKOV_TYPES = {'vanilla': 'markov', 'gated': 'gated'}
_TOP_K = 16  # candidates of a slot where other programs serve a selector
_MARKOV_NAMES = {
  'predecessor': 'markov_head.markov_w1.weight',
  'successor': 'markov_head.markov_w2.weight',
}
_NAMES = {
  'markov': _MARKOV_NAMES,
  'gated': {
    **_MARKOV_NAMES,
    'gate': 'markov_head.gate_proj.weight',
    'gate_bias': 'markov_head.gate_proj.bias',
  },
  'selector': {
    'predecessor': 'candidate_selector.predecessor_codebook',
    'successor': 'candidate_selector.successor_codebook',
    'hidden': 'candidate_selector.hidden_projection.weight',
  },
}
# What DSpark's files hold besides: how far a draft may be trusted, which no
# system reads of another program, and copies of the verifier's own.
_SPARE = ('confidence_head.', 'embed_tokens.', 'lm_head.')


def tensor_names(head: heads.Head | None) -> dict[str, str]:
  """Returns their name of each tensor of a head, by ours ('head.successor')."""
  names = _NAMES[head.kind] if head else {}
  return {f'head.{ours}': theirs for ours, theirs in names.items()}


def is_spare(sizes: dflash.DFlashConfig, theirs: str) -> bool:
  """Whether a file with a Markov head has a tensor that is not read."""
  markov = sizes.head and sizes.head.kind in _MARKOV_TYPES.values()
  return bool(markov) and theirs.removeprefix('model.').startswith(_SPARE)


def flat(raw: Raw) -> Raw:
  """Returns config.json with DSpark's keys beside the others.

  They may be in `dspark_config`, or begin with `dspark_`.
  """
  own = raw.get('dspark_config')
  inner = dict(own) if isinstance(own, dict) else {}
  for key, value in raw.items():
    if key.startswith('dspark_') and key != 'dspark_config':
      inner[key.removeprefix('dspark_')] = value
  rest = {k: v for k, v in raw.items() if not k.startswith('dspark_')}
  return {**inner, **rest}


def read(
  file: str, raw: Raw, network: config_lib.TransformerConfig
) -> dict[str, Any]:
  """Returns fields of `DFlashConfig`: what these keys say of the network."""
  integer = lambda key, default=0: hf_sizes.integer(file, raw, key, default)
  taps, names = integer('conv_kernel_size'), published.architectures(raw)
  ranks = {key: integer(key) for key in ('selector_rank', 'markov_rank')}
  for kind, wanted in (
    ('dflash2', ('conv_kernel_size', 'conv_group_size', 'selector_rank')),
    ('dspark', ('markov_rank',)),
  ):
    lacking = [key for key in wanted if raw.get(key) is None]
    if ARCHITECTURES[kind] in names and lacking:
      raise errors.InputError(
        f'{file}: {lacking[0]} is missing, without which a '
        f'{ARCHITECTURES[kind]} is not known; download the file again.'
      )
  if all(ranks.values()):
    raise errors.InputError(
      f'{file}: selector_rank is {ranks["selector_rank"]} and markov_rank is '
      f'{ranks["markov_rank"]}, but a drafter has one such head; take another.'
    )
  head = None
  if ranks['selector_rank']:
    head = heads.Selector
  elif ranks['markov_rank']:
    told = raw.get('markov_head_type') or 'vanilla'
    if told not in tuple(_MARKOV_TYPES):  # it may be no text
      raise errors.InputError(
        f'{file}: markov_head_type is {printing.short(told)}; only '
        f'{" or ".join(map(repr, _MARKOV_TYPES))} is supported, whose scores '
        'read the token before alone. Take another drafter.'
      )
    head = heads.KINDS[_MARKOV_TYPES[told]]
  usual = (
    ARCHITECTURES['dspark'] in names and raw.get('bonus_anchor') is not True
  )
  first = raw.get('sample_from_anchor')
  return {
    'taps': taps,
    'group': integer('conv_group_size', 16) if taps else 16,
    'head': head and head(max(ranks.values()), network.vocab_size, network),
    'from_anchor': usual if first is None else first is True,
  }


def with_head(
  sizes: dflash.DFlashConfig, head: heads.Head
) -> dflash.DFlashConfig:
  """Returns the sizes of a drafter with a head over the whole vocabulary."""
  network = sizes.network
  whole = dataclasses.replace(head, vocab=network.vocab_size, verifier=network)
  return dataclasses.replace(sizes, head=whole)


def kind_of(name: str, sizes: dflash.DFlashConfig) -> str:
  """Returns what other programs know a drafter as: a key of ARCHITECTURES.

  Raises InputError where they have no such drafter.
  """
  head = sizes.head.kind if sizes.head else ''
  if sizes.taps and head == 'selector' and not sizes.from_anchor:
    return 'dflash2'
  if not sizes.taps and head != 'selector':
    return 'dspark' if head else 'dflash'
  has = (
    f'convolutions of {sizes.taps} taps' if sizes.taps else 'no convolutions'
  )
  first = ', and drafts from the anchor' if sizes.from_anchor else ''
  raise errors.InputError(
    f'{name}: this drafter has {has} (network.conv) and '
    f'{f"a head of the kind {head}" if head else "no head"}{first}. Other '
    'programs know convolutions with a selector, whose first draft is not from '
    'the anchor (DFlash 2), or a head of the kind markov or gated without '
    'convolutions (DSpark). Train such a one (--head gives a head); this one is '
    'served here.'
  )


def keys(kind: str, sizes: dflash.DFlashConfig) -> dict[str, Any]:
  """Returns what a config.json says of a drafter that is more than DFlash."""
  if kind == 'dflash2':
    return {
      'conv_kernel_size': sizes.taps,
      'conv_group_size': sizes.group,
      'selector_rank': sizes.head.rank,
      'selector_top_k': min(_TOP_K, sizes.network.vocab_size),
    }
  if kind == 'dflash':
    return {}
  types: Mapping[str, str] = {ours: k for k, ours in _MARKOV_TYPES.items()}
  return {
    'markov_rank': sizes.head.rank,
    'markov_head_type': types[sizes.head.kind],
    'enable_confidence_head': False,
    'confidence_head_with_markov': False,
  }
