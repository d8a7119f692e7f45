"""The fields that say how to decode, and what `bench` compares."""

import ml_collections

from specdiff_jax.drafters import registry

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
    ml_collections.ConfigDict(
      {
        'family': '',
        'prefix': '',
        'alignment': '',
        'mask_id': -1,
        'tokenizer': '',
        'unknown': 0.01,
      }
    ),
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
    ml_collections.ConfigDict(
      {
        'specdiff': '',
        'specdiff2': '',
        'tree': '',
        'best_first': '',
        'adaptive': '',
        **registry.drafters(),
      }
    ),
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
    'outputs of chains equal bit for bit on a CPU, and those of trees up '
    'to the order in which attention adds up a branch; False: through its '
    'own fastest ones',
  ),
  'batch': (
    1,
    'rows decoded together, each refilled when its text is done, in '
    'batches of 32 and more a sixteenth of them at a time (distill: '
    'trajectories a step)',
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
    1,
    'passes of the drafter for each window; SpecDiff-2 takes 1',
  ),
  'denoising_order': (
    'confidence',
    'what a pass decides first: confidence or entropy',
  ),
  'remask': (False, 'later passes may change what earlier ones decided'),
  'context_window': (
    0,
    'last verified tokens that the drafter sees; 0 for all of them',
  ),
  'draft_temperature': (
    0.0,
    "of drawn drafts; 0: the verifier's own law (specdiff) or 1 (K drafts)",
  ),
  'draft_top_k': (
    0,
    'drafts are drawn among so many tokens, if draft_temperature is set',
  ),
  'ngram': (3, 'longest match of prompt lookup, in tokens'),
  'chat': (True, "put the prompt into the model's chat template"),
  'stop': (
    (),
    'strings that end the text; it is cut before the one that is completed '
    'first. A special token, such as <|im_end|>, ends it as a token',
  ),
  'cycles_per_call': (
    16,
    'verifier calls between two looks of the host, where text is shown '
    'or may hit a stop string',
  ),
  'cache_step': (
    0,
    'room for new tokens by which caches grow as rows get long, each '
    'size compiled once: saves time and memory on long texts, but another '
    'size may change the last bits; 0: full-sized at once',
  ),
  'ar_slots': (
    ml_collections.ConfigDict({'float32': 0, 'bfloat16': 0}),
    'tokens that plain AR scores at once, by dtype; 0: where it is fastest '
    '(one, but two in bfloat16 on a CPU)',
  ),
  'decode_mesh': (
    (1, 1),
    'devices for (data, model) that decode together: rows are '
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
