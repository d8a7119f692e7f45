"""The fields that say how to train a drafter, and what to collect for it."""

import ml_collections

TRAINING = {
  'data': (
    '',
    'work directory of `collect`, or several, with commas between (a '
    'comma in the name of a directory that is there is part of it), or a '
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
    'of the weights exp(-(j - 1) / decay) in decayed_ce and variable_prefix',
  ),
  'beta_end': (
    0.0,
    'last beta of the Box-Cox loss of a length J (streak, soft_streak, '
    'rejection): 0 is -log J',
  ),
  'law_temperature': (1.0, "of the verifier's law in the losses that read it"),
  'stored_law': (
    False,
    "such losses take the verifier's likeliest tokens that `collect` "
    'stored (store_top_k) in place of a pass of the verifier; what was not '
    'stored is spread evenly over the other tokens',
  ),
  'dpace_smoothing': (0.5, 'a of dpace: 0 is the gradient of the streak'),
  'lk_eta': (3.0, 'of lk: its share of KL is exp(-eta overlap)'),
  'prefix_base': (
    0.9,
    'of variable_prefix: l tokens are shown with weight base^l',
  ),
  'noise_schedule': (
    'linear',
    'of elbo: linear (LLaDA, DiffuLLaMA) or log_linear (MDLM)',
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
  'served': (
    0.0,
    'probability with which a window counts only if serving would begin a '
    "cycle at it, by the drafter's own argmax drafts at that step; exact "
    'where windows are as many as completion tokens. 0: anchors are even '
    'over the text. No gain has been measured yet',
  ),
  'eval_fraction': (0.02, 'of the prompts, held out for evaluation by hash'),
  'train_limit': (
    0,
    'trajectories to train on, the first so many of those that are not '
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
  'export': (
    'last',
    'what becomes the drafter: the last params, or the best: those of the '
    'checkpoint with the highest tau, of the steps that are both evaluated '
    'and saved',
  ),
  'explosion': (
    100.0,
    'an update is left out if its gradient is so many times longer than '
    'their mean; 0: only where it is not finite',
  ),
  'skip_limit': (
    20,
    'updates left out in a row at which the run stops; 0: never',
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
    'split drafter, optimizer and a verifier that runs in the step over '
    'the data axis too: less memory, more traffic',
  ),
  'distributed': (False, 'one of several processes of one job'),
  'join_timeout': (300, 'seconds in which all processes have to be there'),
  'network': (
    ml_collections.ConfigDict(
      {
        'kind': 'diffusion',
        'layers': 2,
        'start': (),
        'features': (),
        'trunk': 1024,
        'vocab': 4096,
        'ngram': 3,
      }
    ),
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
    1,
    '--refresh continues prefixes where at most so many drafted tokens '
    'are accepted',
  ),
  'refresh_anchors': (
    4,
    'prefixes of a trajectory that --refresh continues, at most',
  ),
}
