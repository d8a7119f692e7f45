"""`aot`: compiles for chips that are not here: does it fit, how fast is it."""

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.parallel import topology
from specdiff_jax.recipes import recipe

_DOES_NOT_FIT = 3

_FLAGS = {
  'topology': flag.Flag(
    'chips to compile for: generation and shape of TPUs, as v5p:4x4x4 '
    f'({", ".join(topology.GENERATIONS)}); or h100, several as h100:8. Needed'
  ),
  'slices': flag.Flag(
    'how many of these, joined by the data centre network; the '
    'first axis of config.mesh goes over them',
    1,
    'integer',
  ),
  'program': flag.Flag(
    'a step of `distill`, with the verifier running in it where the drafter '
    'reads its features; the loop of `decode` over config.batch requests, by '
    'config.system; or its prefill of the largest of config.prompt_buckets',
    'train',
    'enum',
    choices=('train', 'decode', 'prefill'),
  ),
  'tau': flag.Flag(
    'tokens of a cycle: compiles plain decoding too, and says how much faster '
    'the system would be (decode)',
    0.0,
    'float',
    low=0,
  ),
}

COMMAND = command.Command(
  name='aot',
  what="""
    Compiles a program of the recipe for TPUs or a GPU without them, weights or
    data: config.verifier may be preset:NAME, the shape of a published model
    (`inspect preset:` lists them), and config.drafter 'random', or
    preset:dflash or preset:NAME of a masked language model. An axis of
    config.mesh that is -1 takes what the topology has.

    Says what each chip has to hold at its peak and of what that is made, the
    FLOPs of one step or one cycle (a token for each request and slot), and the
    collectives, those within loops as often as these turn, with what no other
    work hides of them. Then the distance to the chip's memory: the bytes of
    HBM that a step or cycle moves, over the least that it takes (the weights of
    each product once, the KV cache once, logits once), by cause and by
    operation; kernels; and the time that a chip as its data sheet has it would
    take. Nothing runs, so that times are predictions.

    It needs the compiler: pip install '.[tpu]' in the clone, or '.[cuda12]' for
    an H100. The last line of stdout is one JSON object: topology, fits,
    peak_bytes, limit_bytes, flops_per_chip, collectives ({kind: {count, bytes,
    started}}), hbm_bytes, floor_bytes, predicted_ms, predicted_floor_ms,
    exposed_ms (of collectives), kernels, causes, mfu; with --tau plain_ms and
    speedup; and more.
    """,
  flags=_FLAGS,
  fields=recipe.described(*recipe.DECODING, *recipe.TRAINING),
  examples=(
    'aot --config=configs/qwen2_5_72b_7b.py --topology=v5p:4x4x4',
    'aot --config=configs/qwen2_5_72b_7b.py --topology=v5p:2x2x4 '
    '--program=decode --config.batch=16',
    'aot --config=configs/llama3_1_8b_dflash.py --topology=v5p:2x2x1 '
    '--program=decode --tau=4',
    'aot --config=configs/distill_smollm2.py --topology=v5e:4x4 --slices=2 '
    '--config.batch=64',
  ),
  exit_codes={
    0: 'it fits',
    3: 'it does not fit; the advice says what to change',
  },
)


def body(call: command.Call) -> int:
  import jax

  jax.config.update('jax_platforms', 'cpu')  # chips that are here stay free
  from specdiff_jax.tools.aot import certificate

  found = certificate.certify(
    call.config,
    command.needed(call.options, 'topology'),
    call.options.program,
    call.options.slices,
    tau=call.options.tau,
    report=console,
  )
  console.table(found.memory(), fold=True)
  if costs := found.outcome.costs:
    console.out().print(f'FLOPs of each chip: {costs.flops:.4g}')
  for table in (*found.speed(), *found.work()):
    console.table(table, fold=True)
  for line in found.remarks():
    console.out().print(line)
  console.result(found.to_json())
  return 0 if found.fits else _DOES_NOT_FIT
