"""The fields that a config may have: their meaning and their defaults.

`--help` prints them, and a config that leaves one out gets the default. A
name that stands here nowhere is a mistake, and is reported as one.
"""

import difflib

import ml_collections

from specdiff_jax.core import errors

DECODING = {
    'verifier': (
        'quickstart',
        'weights of the verifier: a .gguf file, a Hugging Face directory, a '
        "hub name (org/name), 'quickstart' (SmolLM2-135M-Instruct, fetched "
        "once) or 'random:tiny'",
    ),
    'adapter': (
        '',
        'directory of a LoRA adapter (PEFT layout), merged into the verifier: '
        'another model then, with drafters of its own',
    ),
    'drafter': (
        '',
        'safetensors file of the drafter, or its name in specdiff_jax/zoo; '
        "'random' for an untrained one; or the directory (or hub name) of a "
        'published diffusion drafter: Dream, DiffuCoder, LLaDA, A2D, MDLM, '
        'DiffuLLaMA, DiffuGPT or DFlash',
    ),
    'masked_lm': (
        ml_collections.ConfigDict({
            'family': '',
            'prefix': '',
            'alignment': '',
            'mask_id': -1,
            'tokenizer': '',
            'unknown': 0.01,
        }),
        'of a published masked language model that drafts: its family where '
        'config.json does not tell it (diffullama, diffugpt); whether its '
        'prefix sees the masks (full, as these are trained; or causal, whose '
        'keys are kept: much cheaper, approximate for models that were not '
        'trained so); whether slot j is predicted at j (same) or j - 1 '
        '(shifted), and the mask token, where the model says it wrongly; the '
        "directory of its tokenizer, if not its own ('verifier': the "
        "verifier's ids are its ids); the fraction of its tokens that the "
        'verifier may lack',
    ),
    'drafters': (
        ml_collections.ConfigDict({
            'specdiff': '',
            'specdiff2': '',
            'tree': '',
            'best_first': '',
            'adaptive': '',
            'sps': '',
        }),
        'drafters of single systems; each goes before config.drafter, so that '
        'systems with different drafters can be compared',
    ),
    'system': (
        'specdiff',
        'what drafts: ar (nothing), lookup, sps (a small autoregressive '
        'drafter), early_exit (the first layers of the verifier), specdiff '
        '(one chain), specdiff2 (K chains, self-selected), tree (K chains '
        'merged), best_first (the likeliest prefixes) or adaptive (as much as '
        'pays)',
    ),
    'dtype': ('bfloat16', 'of weights and cache: float32 or bfloat16'),
    'int8': (
        '',
        "whose weights are rounded to int8, a scale for each output: '' "
        '(nobody), verifier, drafter or both. It halves their memory next to '
        'bfloat16. A rounded verifier is another verifier, whose own law '
        'decoding then reproduces exactly; a rounded drafter changes only the '
        'speed',
    ),
    'exact': (
        True,
        'plain AR runs through the shapes of the drafted systems, which makes '
        'outputs equal bit for bit; False: through its own fastest ones',
    ),
    'batch': (
        1, 'rows decoded together, each refilled when its text is done '
        '(distill: trajectories a step)',
    ),
    'temperature': (0.0, 'of the verifier; 0 is greedy'),
    'top_k': (0, 'sample among the k most likely tokens; 0 switches it off'),
    'top_p': (1.0, 'sample within this probability mass; 1 switches it off'),
    'seed': (0, 'of all randomness: the same seed gives the same text'),
    'max_new_tokens': (128, 'tokens after which a row stops'),
    'prompt_buckets': (
        (64, 128, 256, 512),
        'tokens that prompts are padded to; the largest is the longest prompt',
    ),
    'gamma': (8, 'tokens drafted for each call of the verifier'),
    'exit_layer': (
        0,
        'layers of the verifier that draft in the system early_exit; 0: four '
        'fifths of them, where an exit that was not trained begins to agree',
    ),
    'gammas': (
        (2, 4, 7),
        'draft lengths that the system adaptive chooses among, up to gamma',
    ),
    'budgets': (
        (),
        'and sizes of best-first trees; a tree goes before a chain of its size',
    ),
    'draft': (
        'shared_noise',
        "how the drafter's laws become tokens above temperature 0: "
        "shared_noise (the verifier's own draws), sample or argmax",
    ),
    'rule': (
        'match',
        'what accepts drafts: match (any draft; seeded output equals plain '
        'decoding), greedy (any draft), rejection or block (draft=sample), '
        'without_replacement (system=tree)',
    ),
    'drafts': (8, 'K, drafts of one pass (systems specdiff2 and tree)'),
    'budget': (
        32,
        'tokens verified at once by the systems tree and best_first, the last '
        'committed one included',
    ),
    'denoising_steps': (
        1, 'passes of the drafter for each window; SpecDiff-2 takes 1'
    ),
    'denoising_order': (
        'confidence', 'what a pass decides first: confidence or entropy'
    ),
    'remask': (False, 'later passes may change what earlier ones decided'),
    'context_window': (
        0, 'last verified tokens that the drafter sees; 0 for all of them'
    ),
    'draft_temperature': (
        0.0,
        "of drawn drafts; 0: the verifier's own law (specdiff) or 1 (K drafts)",
    ),
    'draft_top_k': (
        0, 'drafts are drawn among so many tokens, if draft_temperature is set'
    ),
    'ngram': (3, 'longest match of prompt lookup, in tokens'),
    'chat': (True, "put the prompt into the model's chat template"),
    'stop': ((), 'strings that end the text; it is cut before the first'),
    'cycles_per_call': (
        16, 'verifier calls between two looks of the host, where text is shown '
        'or may hit a stop string',
    ),
    'cache_step': (
        0, 'room for new tokens by which caches grow as rows get long, each '
        'size compiled once: saves time and memory on long texts, but another '
        'size may change the last bits; 0: full-sized at once',
    ),
    'ar_slots': (
        ml_collections.ConfigDict({'float32': 0, 'bfloat16': 0}),
        'tokens that plain AR scores at once, by dtype; 0: where it is fastest '
        '(one, but two in bfloat16 on a CPU)',
    ),
    'decode_mesh': (
        (1, 1), 'devices for (data, model) that decode together: rows are '
        'split over data, weights and heads over model',
    ),
    'cache_dir': ('runs/verifier', 'where fetched weights are kept'),
}

BENCH = {
    'prompts': ('', 'JSONL file of prompts (--prompts goes before it)'),
    'limit': (0, 'how many of config.prompts bench takes; 0 takes all'),
    'systems': (
        ('ar', 'lookup', 'specdiff'),
        'what to compare (--systems goes before it)',
    ),
    'rounds': (3, 'interleaved repetitions; their median is reported'),
    'ar_dtypes': (
        ('float32', 'bfloat16'),
        'dtypes of which the fastest plain AR is looked for',
    ),
}

TRAINING = {
    'data': (
        '',
        'work directory of `collect` (or several, with commas between), or a '
        'JSONL file of prompts whose completions are then collected into '
        'WORKDIR/trajectories first',
    ),
    'eval_prompts': (
        (),
        'prompt files that must share nothing with the training prompts',
    ),
    'loss': (
        'streak',
        'streak (SpecDiff-2, Eq. 6); soft_streak (less noise, wants sampled '
        'trajectories); dpace (D-PACE); ce (cross-entropy), decayed_ce '
        '(DFlash) or ce_streak; against the law of the verifier: kl, '
        'reverse_kl, js, tv, lk (KL and TV mixed) or rejection (the length '
        'that rule=rejection accepts; wants sampled trajectories); of partly '
        'shown windows: variable_prefix (D2SD) or elbo (masked diffusion). '
        'Chains under rule=match: streak, dpace; trees: ce, decayed_ce, kl; '
        'rejection: rejection, lk; several denoising steps: elbo',
    ),
    'start_from': (
        '',
        'drafter whose sizes, weights and draft vocabulary training starts '
        "from, in place of config.network and the verifier's layers",
    ),
    'train_only': (
        '',
        "regular expression, found in the names of the drafter's parameters "
        'that are trained (of those that get adapters, with lora_rank); the '
        "others stay as they are. '': all",
    ),
    'lora_rank': (
        0,
        'train low-rank adapters of the matrices only, of this rank, which are '
        'merged into the drafter at the end; 0: the parameters themselves',
    ),
    'steps': (1000, 'optimizer steps in all'),
    'learning_rate': (1e-3, 'peak, after warm-up; the decay is a cosine'),
    'warmup': (0.04, 'steps of warm-up; below 1 a fraction of all steps'),
    'weight_decay': (0.01, 'of AdamW, on matrices'),
    'ce_fraction': (
        0.3,
        'part of the steps spent on decayed_ce before streak, soft_streak, '
        'rejection or tv',
    ),
    'decay': (
        7.0,
        'of the weights exp(-(j - 1) / decay) in decayed_ce and '
        'variable_prefix',
    ),
    'beta_end': (
        0.0,
        'last beta of the Box-Cox loss of a length J (streak, soft_streak, '
        'rejection): 0 is -log J',
    ),
    'law_temperature': (
        1.0, "of the verifier's law in the losses that read it"
    ),
    'stored_law': (
        False,
        "such losses take the verifier's likeliest tokens that `collect` "
        'stored (store_top_k) in place of a pass of the verifier; what was not '
        'stored is spread evenly over the other tokens',
    ),
    'dpace_smoothing': (0.5, 'a of dpace: 0 is the gradient of the streak'),
    'lk_eta': (3.0, 'of lk: its share of KL is exp(-eta overlap)'),
    'prefix_base': (
        0.9, 'of variable_prefix: l tokens are shown with weight base^l'
    ),
    'noise_schedule': (
        'linear', 'of elbo: linear (LLaDA, DiffuLLaMA) or log_linear (MDLM)'
    ),
    'anneal_fraction': (
        0.3,
        'part of the steps over which elbo opens the attention of a drafter of '
        'kind masked_lm, from causal to full',
    ),
    'vocab_block': (
        0,
        'tokens of the vocabulary whose logits the loss holds at once; 0: all '
        '(fastest where they fit)',
    ),
    'accumulate': (
        1,
        'parts of a batch that are computed one after the other, to the same '
        'gradient: so many times less memory for a third more work',
    ),
    'remat': (
        False,
        'compute each layer of the drafter again on the way back: less memory '
        'for a third more work',
    ),
    'train_dtype': (
        'float32',
        'in which the drafter computes while it is trained: float32 or '
        'bfloat16; params and optimizer are float32',
    ),
    'tokens': (512, 'tokens of a packed row; longer trajectories are cut'),
    'windows': (96, 'drafted windows for each trajectory'),
    'eval_fraction': (0.02, 'of the prompts, held out for evaluation by hash'),
    'train_limit': (
        0, 'trajectories to train on, the first so many of those that are not '
        'held out; 0: all',
    ),
    'eval_limit': (32, 'held-out trajectories that an evaluation takes'),
    'eval_every': (200, 'steps between evaluations'),
    'save_every': (200, 'steps between checkpoints'),
    'tensorboard': (
        False,
        'write the metrics to WORKDIR/events for TensorBoard too (needs the '
        'extra [tensorboard])',
    ),
    'feature_cache': (
        4000,
        "trajectories whose verifier features are kept in the host's memory; "
        '0: they are computed anew in every step, by a verifier that is split '
        'over the mesh',
    ),
    'log_every': (10, 'steps between lines of metrics'),
    'keep': (3, 'newest checkpoints that are kept, beside the best by tau'),
    'explosion': (
        100.0,
        'an update is left out if its gradient is so many times longer than '
        'their mean; 0: only where it is not finite',
    ),
    'skip_limit': (
        20, 'updates left out in a row at which the run stops; 0: never'
    ),
    'on_full_disk': (
        'stop',
        'what a checkpoint or line of metrics that cannot be written does to '
        'the run: stop, or go_on (but for the last ones)',
    ),
    'mesh': (
        (-1, 1),
        'devices for (data, model), or (replica, data, model) where there are '
        'several slices; -1 takes what is left',
    ),
    'fsdp': (
        False,
        'split drafter and optimizer over the data axis too: less memory, more '
        'traffic',
    ),
    'distributed': (False, 'one of several processes of one job'),
    'join_timeout': (300, 'seconds in which all processes have to be there'),
    'network': (
        ml_collections.ConfigDict({
            'kind': 'diffusion',
            'layers': 2,
            'start': (),
            'features': (),
            'trunk': 1024,
            'vocab': 4096,
            'ngram': 3,
        }),
        'a new drafter: its kind (diffusion; autoregressive for the system '
        'sps; or masked_lm, all of the verifier adapted to diffusion, with a '
        'mask token of masked_lm.mask_id: first with loss elbo, of whole '
        'texts, then from it with one of windows), its layers, its draft '
        'vocabulary. Of a diffusion drafter also the verifier layers it reads '
        '(features; by default the one below its own and the last), the MLP '
        'that starts its slots (trunk), the longest match of its lookup hint '
        '(ngram; 0: none). Of an autoregressive one the verifier layers that '
        'its own start as (start; by default the first ones)',
    ),
}

COLLECTING = {
    'completions': (
        1,
        'of each prompt, and of each prefix of --refresh; more than one need a '
        'temperature above 0',
    ),
    'store_top_k': (
        0,
        "tokens of the verifier's law to keep beside each completion token, "
        'the likeliest ones with their log-probabilities (at the temperature '
        'that is collected with, 1 for greedy ones); 0: none',
    ),
    'refresh_accepted': (
        1, '--refresh continues prefixes where at most so many drafted tokens '
        'are accepted',
    ),
    'refresh_anchors': (
        4, 'prefixes of a trajectory that --refresh continues, at most'
    ),
}

ALL = DECODING | BENCH | TRAINING | COLLECTING


def complete(
    config: ml_collections.ConfigDict, where: str = 'the config'
) -> ml_collections.ConfigDict:
  """Returns the config with every field; raises InputError on unknown ones.

  Example: complete(quickstart.get_config())
  """
  for name in config:
    if name not in ALL:
      raise unknown(f'{where} has the field', name, ALL)
  full = ml_collections.ConfigDict(
      {name: default for name, (default, _) in ALL.items()}
  )
  full = full.copy_and_resolve_references()
  for name, value in config.items():
    try:
      if isinstance(value, ml_collections.ConfigDict):
        _fill(full[name], value, f'{where} has the field', name)
      else:
        full[name] = value
    except TypeError:
      raise errors.InputError(
          f'{where} sets {name!r} to {value!r}, but it has to be of type '
          f'{type(full[name]).__name__}, like its default {full[name]!r}.'
      ) from None
  return full


def _fill(full, values, where: str, prefix: str) -> None:
  """Overwrites the fields of a nested config."""
  for name, value in values.items():
    if name not in full:
      raise unknown(where, f'{prefix}.{name}', full)
    full[name] = value


def unknown(where: str, name: str, known) -> errors.InputError:
  """Returns the error for a name that is none of the `known` ones."""
  near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
  guess = (
      f'Did you mean {" or ".join(near)}?'
      if near
      else f'There are: {", ".join(sorted(known))}.'
  )
  return errors.InputError(f'{where} {name!r}, which does not exist. {guess}')
