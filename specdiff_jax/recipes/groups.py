"""The groups of a recipe's fields: frozen dataclasses.

Options of systems and losses are elsewhere, with what they are of: `options`,
`losses.options`.
"""

import dataclasses
from typing import Any

from specdiff_jax.core import fields
from specdiff_jax.core import limits
from specdiff_jax.drafters import options as drafter_options
from specdiff_jax.drafters import registry
from specdiff_jax.losses import options as loss_options
from specdiff_jax.models import config as config_lib
from specdiff_jax.recipes import options as options_lib

field, text, run = fields.field, fields.text, fields.run
_REPORTED = ('bench', 'verify')


# Systems with a drafter that the identities of files on disk have named since
# the first day.
_FIRST = ('specdiff', 'specdiff2', 'tree', 'best_first', 'adaptive', 'sps')


def _paths(name: str) -> Any:
  """Returns the field of a system's drafter: a path, or one for each part."""
  parts = registry.parts(name)
  if len(parts) == 1:
    told, newer = f'drafter of the system {name}', name not in _FIRST
    return field('', told, path=True, newer=newer)
  more = [
    (part, str, field('', f'the {part} of its networks', path=True))
    for part in parts
  ]
  kind = dataclasses.make_dataclass(f'{name}_drafter', more, frozen=True)
  return field(kind(), f'drafter of the system {name}', newer=True)


Drafters = dataclasses.make_dataclass(
  'Drafters',
  [
    (name, Any, _paths(name))
    for name, kind in options_lib.SYSTEMS.items()
    if issubclass(kind, options_lib.Trained)
  ],
  frozen=True,
)


@dataclasses.dataclass(frozen=True)
class Model:
  """The verifier."""

  verifier: str = text(
      'quickstart', 'weights of the verifier: a .gguf file, a Hugging Face '
      "directory, a hub name (org/name), 'quickstart' (SmolLM2-135M-Instruct, "
      "fetched once) or 'random:tiny'", path=True,
  )  # fmt: skip
  adapter: str = text(
      '', 'directory of a LoRA adapter (PEFT layout), merged into the '
      'verifier: another model then, with drafters of its own', path=True,
  )  # fmt: skip
  dtype: str = text(
      'bfloat16', 'dtype of weights and KV cache: float32 or bfloat16',
      choices=options_lib.DTYPES, reported=('verify',),
  )  # fmt: skip
  int8: str = text(
      '', "whose weights are rounded to int8, a scale for each output: '' "
      '(nobody), verifier, drafter or both. It halves their memory next to '
      'bfloat16. A rounded verifier is another verifier, whose own '
      'distribution decoding then reproduces exactly; a rounded drafter '
      'changes only the speed', choices=('', 'verifier', 'drafter', 'both'),
      reported=('bench', 'verify'),
  )  # fmt: skip
  cache_dir: str = field(
      'runs/verifier', 'where fetched weights are kept', path=True,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drafting(options_lib.Drafter):
  """Which system decodes, and what its trained drafter is."""

  system: str = text(
      'specdiff', 'what drafts: ar (nothing), lookup, sps (a small '
      'autoregressive drafter), early_exit (the first layers of the verifier), '
      'specdiff (one chain; dflash: of a DFlash drafter; deer: drawn, and '
      'accepted by rejection), specdiff2 (K chains, self-selected), tree (K '
      'chains merged), best_first (the likeliest prefixes), lattice (the same '
      'by what a head says of pairs of tokens), diffuspec (a path searched with '
      'an n-gram model), d2sd (a draft and branches of its prefixes), mixture '
      "(a chain of each of several drafters), eagle (a tree by the verifier's "
      'states) or adaptive (as much as pays)',
      choices=tuple(options_lib.SYSTEMS),
  )  # fmt: skip
  drafters: Any = text(
      Drafters(), 'drafters of single systems; each goes before '
      'config.drafter, so that systems with different drafters can be compared',
      reported=('bench',),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sampling(options_lib.Seed):
  """What decides a completion, beside verifier and prompt."""

  temperature: float = text(0.0, 'sampling temperature; 0 is greedy')
  top_k: int = text(
      0, 'sample among the k most likely tokens; 0 switches it off',
      reported=_REPORTED,
  )  # fmt: skip
  top_p: float = text(
      1.0, 'sample within this probability mass; 1 switches it off',
      reported=_REPORTED,
  )  # fmt: skip
  max_new_tokens: int = text(
      128, 'tokens after which a completion stops', reported=_REPORTED,
  )  # fmt: skip
  chat: bool = text(
      True, "put the prompt into the model's chat template", reported=_REPORTED,
  )  # fmt: skip
  template: str = text(
      '{}', 'arguments of the chat template beside the messages, as JSON, such '
      'as {"enable_thinking": false} or {"tools": [...]}; those of a prompt go '
      'before them', json=True, newer=True, reported=_REPORTED,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Decoding(options_lib.Batch):
  """How requests go through the rows of a batch."""

  prompt_buckets: tuple[int, ...] = field(
      (64, 128, 256, 512), 'tokens that prompts are padded to; the largest is '
      'the longest prompt', low=1, high=limits.MOST_TOKENS,
  )  # fmt: skip
  stop: tuple[str, ...] = text(
      (), 'strings that end the text; it is cut before the one that is '
      'completed first. A special token, such as <|im_end|>, ends it as a '
      'token', element=str,
  )  # fmt: skip
  cycles_per_call: int = field(
      16, 'verifier calls between two looks of the host, where text is shown '
      'or may hit a stop string', low=1, high=1 << 30,
  )  # fmt: skip
  cache_step: int = field(
      0, 'room for new tokens by which KV caches grow as sequences get long, '
      'each size compiled once: saves time and memory on long texts, but '
      'another size may change the last bits; 0: full-sized at once', low=0,
      high=limits.MOST_TOKENS,
  )  # fmt: skip
  attention: str = text(
      '', "how the verifier reads its KV cache: dense, all slots at once; "
      'chunked, as far as the longest text, without scores in memory; kernel, by '
      "one kernel a layer (one GPU only; it has run on none yet); '': chunked on a TPU, "
      'and on a GPU where it is long. Another way may change the last bits',
      choices=config_lib.ATTENTION, newer=True,
  )  # fmt: skip
  decode_mesh: tuple[int, ...] = text(
      (1, 1), 'devices for (data, model) that decode together: requests are '
      'split over data, weights and heads over model',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Bench:
  """What is measured."""

  prompts: str = field(
      '', 'JSONL file of prompts (--prompts goes before it)', path=True,
  )  # fmt: skip
  limit: int = field(
      0, 'how many of config.prompts bench takes; 0 takes all', low=0,
  )  # fmt: skip
  systems: tuple[str, ...] = field(
      ('ar', 'lookup', 'specdiff'), 'what to compare (--systems goes before '
      'it)', choices=tuple(options_lib.SYSTEMS),
  )  # fmt: skip
  rounds: int = field(
      3, 'interleaved repetitions; their median is reported', low=1,
  )  # fmt: skip
  ar_dtypes: tuple[str, ...] = field(
      ('float32', 'bfloat16'), 'dtypes of which the fastest plain AR is looked '
      'for', choices=options_lib.DTYPES,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Training(
  options_lib.Sizes, options_lib.Seed, options_lib.Batch, options_lib.Gamma
):
  """What is trained, and on what."""

  data: str = field(
      '', 'work directory of `collect`, or several, with commas between (a '
      'comma in the name of a directory that is there is part of it), or a '
      'JSONL file of prompts whose completions are then collected into '
      'WORKDIR/trajectories first', path=True,
  )  # fmt: skip
  eval_prompts: tuple[str, ...] = field(
      (), 'prompt files that must share nothing with the training prompts',
      element=str, path=True,
  )  # fmt: skip
  start_from: str = run(
      '', 'drafter whose sizes, weights and draft vocabulary training starts '
      "from, in place of config.network and the verifier's layers", path=True,
  )  # fmt: skip
  new_vocab: int = run(
      0, 'tokens of a new draft vocabulary of start_from, the most frequent '
      'ones of config.data (for other kinds of text); 0: its own', low=0,
      high=1 << 22, newer=True,
  )  # fmt: skip
  train_only: str = run(
      '', "regular expression, found in the names of the drafter's parameters "
      'that are trained (of those that get adapters, with lora_rank); the '
      "others stay as they are. '': all",
  )  # fmt: skip
  lora_rank: int = run(
      0, 'train low-rank adapters of the matrices only, of this rank, which '
      'are merged into the drafter at the end; 0: the parameters themselves',
      low=0,
  )  # fmt: skip
  head_kind: str = run(
      '', 'train a head of the drafter start_from, which stays as it is, for the '
      'system lattice: markov or gated (DSpark) or selector (DFlash 2), which '
      'score each token by the one before; or confidence (DSpark), by which '
      "drafts are cut (diffuspec.confidence); '': a drafter",
      choices=('', *drafter_options.HEADS, drafter_options.CONFIDENCE),
      newer=True,
  )  # fmt: skip
  head_rank: int = run(
      64, 'rank of a new head', low=1, high=1 << 16, newer=True,
  )  # fmt: skip
  tokens: int = run(
      512, 'tokens of a packed sequence; longer trajectories are cut', low=1,
      high=limits.MOST_TOKENS,
  )  # fmt: skip
  windows: int = run(96, 'drafted windows for each trajectory', low=1)
  eval_fraction: float = run(
      0.02, 'fraction of the prompts that is held out for evaluation, by hash',
      above=0, below=1,
      within='between 0 and 1: some prompts to train on, some to evaluate on',
  )  # fmt: skip
  train_limit: int = field(
      0, 'trajectories to train on, the first so many of those that are not '
      'held out; 0: all', low=0,
  )  # fmt: skip
  eval_limit: int = field(
      32, 'held-out trajectories that an evaluation takes', low=1,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Objective(loss_options.Warmed):
  """What a drafter learns; the options of its loss are in `Recipe.losses`."""

  loss: str = run(
      'streak', 'streak (SpecDiff-2, Eq. 6); soft_streak (less noise, wants '
      'sampled trajectories); dpace (D-PACE); ce (cross-entropy), decayed_ce '
      "(DFlash) or ce_streak; against the verifier's distribution: kl, "
      'decayed_kl (EAGLE), reverse_kl, js, tv, lk (KL and TV mixed), dspark (CE '
      'and L1) or rejection (the length that rule=rejection accepts; wants '
      'sampled trajectories); of partly shown '
      'windows: variable_prefix (D2SD) or elbo (masked diffusion); of drawn '
      'chains: suffix (DEER); of a head: confidence (DSpark). Chains '
      'under rule=match: streak, dpace; trees: ce, decayed_ce, kl; rejection: '
      'rejection, lk; several denoising steps: elbo',
      choices=tuple(loss_options.LOSSES),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """How a gradient becomes an update."""

  learning_rate: float = run(
      1e-3, 'peak, after warm-up; the decay is a cosine', above=0,
      within='positive',
  )  # fmt: skip
  warmup: float = run(
      0.04, 'steps of warm-up; below 1 a fraction of all steps', low=0,
  )  # fmt: skip
  weight_decay: float = run(0.01, 'weight decay of AdamW, on matrices', low=0)
  explosion: float = run(
      100.0, 'an update is skipped if its gradient is so many times longer '
      'than their mean; 0: only where it is not finite',
      fits=lambda x: not x or x > 1, within='0, or above 1',
  )  # fmt: skip
  skip_limit: int = field(
      20, 'updates skipped one after the other at which the run stops; 0: '
      'never', low=0,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How long a run goes, and what it writes on the way."""

  steps: int = field(1000, 'optimizer steps in all', low=1)
  eval_every: int = field(200, 'steps between evaluations', low=0)
  save_every: int = field(200, 'steps between checkpoints', low=0)
  log_every: int = field(10, 'steps between lines of metrics', low=0)
  keep: int = field(
      3, 'newest checkpoints that are kept, beside the best by tau', low=1,
  )  # fmt: skip
  export: str = field(
      'last', 'what becomes the drafter: the last params, or the best: those '
      'of the checkpoint with the highest tau, of the steps that are both '
      'evaluated and saved', choices=('last', 'best'),
  )  # fmt: skip
  store: str = field(
      'bfloat16', "dtype of the drafter's file; int8 halves it, and rounds what "
      'drafts, which changes no text', choices=('bfloat16', 'int8'),
  )  # fmt: skip
  on_full_disk: str = field(
      'stop', 'what a checkpoint or line of metrics that cannot be written '
      'does to the run: stop, or go_on (but for the last ones)',
      choices=('stop', 'go_on'),
  )  # fmt: skip
  tensorboard: bool = field(
      False, 'write the metrics to WORKDIR/events for TensorBoard too (needs '
      'the extra [tensorboard])',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Memory:
  """What trades memory for time."""

  vocab_block: int = field(
      0, 'tokens of the vocabulary whose logits the loss holds at once; 0: all '
      '(fastest where they fit)', low=0,
  )  # fmt: skip
  accumulate: int = field(
      1, 'micro-batches of a batch, computed one after the other to the same '
      'gradient: so many times less memory for a third more work', low=1,
  )  # fmt: skip
  remat: bool = field(
      False, 'compute each layer of the drafter again on the way back: less '
      'memory for a third more work',
  )  # fmt: skip
  train_dtype: str = run(
      'float32', 'dtype in which the drafter computes while it is trained: '
      'float32 or bfloat16; params and optimizer are float32',
      choices=options_lib.DTYPES,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where the verifier and what is trained lie."""

  feature_cache: int = field(
      4000, "trajectories whose verifier features are kept in the host's "
      'memory; 0: they are computed anew in every step, by a verifier that is '
      'split over the mesh', low=0,
  )  # fmt: skip
  feature_store: str = field(
      '', 'folder in which these features stay for later runs on the same '
      'trajectories, about 1 MB for each 200 tokens (width 576, 4 layers); '
      "'': none", path=True,
  )  # fmt: skip
  mesh: tuple[int, ...] = field(
      (-1, 1), 'devices for (data, model), or (replica, data, model) where '
      'there are several slices; -1 takes what is left',
  )  # fmt: skip
  fsdp: bool = field(
      False, 'split drafter, optimizer and a verifier that runs in the step '
      'over the data axis too: less memory, more traffic',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Processes:
  """How several processes of a job find each other."""

  distributed: bool = field(False, 'one of several processes of one job')
  join_timeout: int = field(
      300, 'seconds in which all processes have to be there', low=1,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collecting:
  """What is collected beside the completions."""

  completions: int = field(
      1, 'completions of each prompt, and of each prefix of --refresh; more '
      'than one need a temperature above 0', low=1,
  )  # fmt: skip
  store_top_k: int = field(
      0, "tokens of the verifier's distribution to keep beside each completion "
      'token, the likeliest ones with their log-probabilities (at the '
      'temperature that is collected with, 1 for greedy ones); 0: none', low=0,
  )  # fmt: skip
  refresh_accepted: int = field(
      1, '--refresh continues prefixes where at most so many drafted tokens '
      'are accepted', low=0,
  )  # fmt: skip
  refresh_anchors: int = field(
      4, 'prefixes of a trajectory that --refresh continues, at most', low=1,
  )  # fmt: skip
