"""Reading HLO texts: loops, FLOPs, traffic, arrays; and programs of XLA."""

import jax
import jax.numpy as jnp
import pytest

from specdiff_jax.tools.aot import hlo
from specdiff_jax.tools.aot import hlo_costs
from specdiff_jax.tools.aot import hlo_memory

# A loop of six turns, from 1 to 13 by twos; within it a matmul, an all-reduce,
# and a reduce-scatter that another computation starts. Ten rows lie in tiles.
LOOP = """
HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%scatter (p: f32[10,64]) -> f32[5,64] {
  %p = f32[10,64]{1,0} parameter(0)
  ROOT %rs = f32[5,64]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

%body (state: (s32[], f32[10,64], f32[32,64])) -> (s32[], f32[10,64], f32[32,64]) {
  %state = (s32[], f32[10,64]{1,0}, f32[32,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %h = f32[10,64]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %w = f32[32,64]{1,0} get-tuple-element(%state), index=2
  %part = f32[10,32]{1,0:T(8,128)} dot(%h, %w), lhs_contracting_dims={1}, rhs_contracting_dims={1}, metadata={op_name="jit(f)/while/body/dot_general"}
  %whole = f32[10,32]{1,0:T(8,128)S(1)} all-reduce(%part), to_apply=%add, metadata={op_name="jit(f)/while/body/psum"}
  %back = f32[10,64]{1,0:T(8,128)} dot(%whole, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %start = ((f32[10,64]), f32[5,64], u32[]) async-start(%back), calls=%scatter
  %done = f32[5,64]{1,0} async-done(%start), calls=%scatter
  ROOT %out = (s32[], f32[10,64]{1,0}, f32[32,64]{1,0}) tuple(%next, %back, %w)
}

%condition (state.1: (s32[], f32[10,64], f32[32,64])) -> pred[] {
  %bound = s32[] constant(13)
  %state.1 = (s32[], f32[10,64]{1,0}, f32[32,64]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (x.1: f32[10,64], w.1: bf16[32,64]) -> f32[10,64] {
  %x.1 = f32[10,64]{1,0} parameter(0)
  %w.1 = bf16[32,64]{1,0} parameter(1)
  %one = s32[] constant(1)
  %gathered-start = (bf16[32,64]{1,0}, bf16[64,64]{1,0}) all-gather-start(%w.1), dimensions={0}
  %gathered = bf16[64,64]{1,0} all-gather-done(%gathered-start), metadata={op_name="gather"}
  %wide = f32[32,64]{1,0} convert(%w.1)
  %start.1 = (s32[], f32[10,64]{1,0}, f32[32,64]{1,0}) tuple(%one, %x.1, %wide)
  %loop = (s32[], f32[10,64]{1,0}, f32[32,64]{1,0}) while(%start.1), condition=%condition, body=%body
  ROOT %result = f32[10,64]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_turns():
  costs = hlo_costs.read(LOOP)
  assert costs.flops == 6 * 2 * (2 * 10 * 64 * 32)
  assert costs.collectives() == {
    'all-reduce': {'count': 6, 'bytes': 6 * 10 * 32 * 4, 'started': 0},
    'reduce-scatter': {'count': 6, 'bytes': 6 * 10 * 64 * 4, 'started': 6},
    'all-gather': {'count': 1, 'bytes': 64 * 64 * 2, 'started': 1},
  }
  assert [t.kind for t in costs.traffic] == [
      'reduce-scatter', 'all-gather', 'all-reduce',
  ]  # fmt: skip
  assert costs.traffic[2].label == 'jit(f)/while/body/psum'
  assert costs.traffic[2].shape == 'f32[10,32]'
  assert [t.looped for t in costs.traffic] == [True, False, True]


@pytest.mark.parametrize(
    'change, turns',
    [
        (('constant(13)', 'constant(14)'), 7),  # the last turn is not full
        (('direction=LT', 'direction=NE'), 1),  # a bound that is not told
        (('%bound = s32[] constant(13)', '%bound = s32[] parameter(1)'), 1),
        (('body=%body', 'body=%body, backend_config={"known_trip_count":'
          '{"n":"40"}}'), 40),
    ],
)  # fmt: skip
def test_trip_counts_follow_the_condition(change, turns):
  """The controls of the test above: other loops, other counts."""
  assert change[0] in LOOP
  costs = hlo_costs.read(LOOP.replace(*change))
  assert costs.collectives()['all-reduce']['count'] == turns
  assert costs.flops == turns * 2 * (2 * 10 * 64 * 32)


def test_what_a_condition_reads_counts():
  longer = LOOP.replace(
    '  ROOT %less =',
    '  %h.1 = f32[10,64]{1,0} get-tuple-element(%state.1), index=1\n'
    '  %norm = f32[10,64]{1,0} negate(%h.1)\n'
    '  ROOT %less =',
  )
  before, after = (hlo_costs.read(text).work for text in (LOOP, longer))
  more = [one for one in after if one.label == 'negate']
  assert len(after) == len(before) + 1
  assert [(one.times, one.looped) for one in more] == [(6, True)]


def test_arrays_have_the_padding_of_their_tiles():
  arrays = {a.label: a.nbytes for a in hlo_costs.read(LOOP).arrays}
  # 10 x 32 in tiles of 8 x 128 are 16 x 128.
  assert arrays['jit(f)/while/body/dot_general'] == 16 * 128 * 4
  assert arrays['gather'] == 64 * 64 * 2
  assert 'jit(f)/while/body/psum' not in arrays  # it lies in scratch memory


@pytest.mark.parametrize(
    'line, flops',
    [
        # A plain product of [66, 576] and [1536, 576].
        ('%c = f32[2,33,1536]{2,1,0} convolution(%a, %b), window={size=1}, '
         'dim_labels=0bf_oi0->0bf', 2 * 66 * 576 * 1536),
        # A batched one, [2, 3, 99, 64] and [2, 3, 1057, 64], whose batch lies
        # in a spread window: 6 places of the result meet one each.
        ('%c = f32[2,3,99,1057]{3,2,1,0} convolution(%d, %e), '
         'window={size=2x3 stride=1x2 lhs_dilate=2x3}, '
         'dim_labels=01bf_01oi->01bf', 2 * 6 * 99 * 1057 * 64),
        # One whose second operand is spread over a padded window.
        ('%c = f32[2,33,3,64]{3,2,1,0} convolution(%f, %g), '
         'window={size=1x3 pad=0_0x2_2 rhs_reversal=0x1}, '
         'dim_labels=0bf1_1oi0->0b1f', 2 * 66 * 3 * 64 * 576),
        ('%c = f32[2,33,3,64]{3,2,1,0} convolution(%f, %g), '
         'window={size=1x3 rhs_reversal=0x1}, '
         'dim_labels=0bf1_1oi0->0b1f', 2 * 66 * 64 * 576),  # the control
    ],
)  # fmt: skip
def test_convolutions_count_what_they_multiply(line, flops):
  text = f"""
ENTRY %main () -> f32[] {{
  %a = f32[2,33,576]{{2,1,0}} parameter(0)
  %b = f32[1536,576,1]{{2,1,0}} parameter(1)
  %d = f32[2,3,99,64]{{3,2,1,0}} parameter(2)
  %e = f32[2,3,1057,64]{{3,2,1,0}} parameter(3)
  %f = f32[2,33,576,1]{{3,2,1,0}} parameter(4)
  %g = f32[3,64,576,1]{{3,2,1,0}} parameter(5)
  ROOT {line}
}}
"""
  assert hlo_costs.read(text).flops == flops


def test_programs_of_xla_are_read():
  """A scan of five products, and one product outside, compiled here."""

  def f(x, weights):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
    return x @ weights[0]

  x, weights = jnp.ones((7, 32)), jnp.ones((5, 32, 32))
  compiled = jax.jit(f).lower(x, weights).compile()
  costs = hlo_costs.read(compiled.as_text())
  assert costs.flops == 6 * 2 * 7 * 32 * 32
  assert costs.collectives() == {}
  # XLA's own analysis sees the body once, which is what this is for.
  assert compiled.cost_analysis()['flops'] < costs.flops


def test_what_a_fusion_writes_in_place_is_no_array():
  text = """
%fused (p: f32[64,64], q: f32[1,64], i: s32[]) -> f32[64,64] {
  %p = f32[64,64]{1,0} parameter(0)
  %q = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = f32[64,64]{1,0} dynamic-update-slice(%p, %q, %i, %i)
}
ENTRY %main (a: f32[64,64], b: f32[1,64], c: s32[]) -> f32[64,64] {
  %a = f32[64,64]{1,0} parameter(0)
  %b = f32[1,64]{1,0} parameter(1)
  %c = s32[] parameter(2)
  ROOT %d = f32[64,64]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%fused
}
"""
  assert hlo_costs.read(text).arrays == ()
  made = text.replace('dynamic-update-slice(%p, %q, %i, %i)', 'negate(%p)')
  assert hlo_costs.read(made).arrays[0].nbytes == 64 * 64 * 4


def test_parse_finds_the_entry():
  computations, entry = hlo.parse(LOOP)
  assert entry == 'main'
  assert set(computations) == {'add', 'scatter', 'body', 'condition', 'main'}
  assert hlo.parse('') == ({}, '')


# --- bytes of main memory -----------------------------------------------------

# A cycle of a loop. A weight is multiplied by, a cache is updated in place and
# read in a loop over chunks that says how often it turns, scores lie in main
# memory, and what the sampling parameters decide is the first branch.
CYCLE = """
HloModule jit_decode, is_scheduled=true

%update (p: bf16[8,512], q: bf16[8,1], i: s32[]) -> bf16[8,512] {
  %p = bf16[8,512]{1,0} parameter(0)
  %q = bf16[8,1]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = bf16[8,512]{1,0} dynamic-update-slice(%p, %q, %i, %i)
}

%chunk (k: bf16[8,512], at: s32[]) -> f32[8,64] {
  %k = bf16[8,512]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %cut = bf16[8,64]{1,0} dynamic-slice(%k, %at, %at), dynamic_slice_sizes={8,64}
  ROOT %wide = f32[8,64]{1,0} convert(%cut)
}

%chunks (c: (s32[], bf16[8,512])) -> (s32[], bf16[8,512]) {
  %c = (s32[], bf16[8,512]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %keys = bf16[8,512]{1,0} get-tuple-element(%c), index=1
  %s = f32[8,64]{1,0} fusion(%keys, %n), kind=kLoop, calls=%chunk, metadata={op_name="jit(decode)/while/body/trips_8/while/body/dot"}
  ROOT %o = (s32[], bf16[8,512]{1,0}) tuple(%n, %keys)
}

%greedy (g: bf16[8,512]) -> bf16[8,512] {
  ROOT %g = bf16[8,512]{1,0} parameter(0)
}

%sampled (h: bf16[8,512]) -> bf16[8,512] {
  %h = bf16[8,512]{1,0} parameter(0)
  ROOT %turned = bf16[8,512]{1,0} negate(%h)
}

%body (s: (bf16[64,512], bf16[8,512], f32[1])) -> (bf16[64,512], bf16[8,512], f32[1]) {
  %s = (bf16[64,512]{1,0}, bf16[8,512]{1,0}, f32[1]{0}) parameter(0)
  %w = bf16[64,512]{1,0} get-tuple-element(%s), index=0
  %cache = bf16[8,512]{1,0} get-tuple-element(%s), index=1
  %heat = f32[1]{0} get-tuple-element(%s), index=2
  %zero = s32[] constant(0)
  %warm = s32[] fusion(%heat), kind=kLoop, calls=%hot
  %near = bf16[64,512]{1,0:S(1)} copy(%w)
  %y = f32[8,64]{1,0} dot(%cache, %near), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %new = bf16[8,1]{1,0:S(1)} slice(%y), slice={[0:8], [0:1]}
  %kept = bf16[8,512]{1,0} fusion(%cache, %new, %zero), kind=kLoop, calls=%update
  %start = (s32[], bf16[8,512]{1,0}) tuple(%zero, %kept)
  %loop = (s32[], bf16[8,512]{1,0}) while(%start), condition=%less, body=%chunks, metadata={op_name="jit(decode)/while/body/trips_8/while"}
  %same = bf16[8,512]{1,0} get-tuple-element(%loop), index=1
  %token = bf16[8,512]{1,0} conditional(%warm, %same, %same), branch_computations={%greedy, %sampled}
  %logits = f32[8,100]{1,0} broadcast(%zero), dimensions={}
  ROOT %out = (bf16[64,512]{1,0}, bf16[8,512]{1,0}, f32[1]{0}) tuple(%w, %token, %heat)
}

%hot (t: f32[1]) -> s32[] {
  %t = f32[1]{0} parameter(0)
  ROOT %any = s32[] convert(%t)
}

ENTRY %main (a: bf16[64,512], b: bf16[8,512], t0: f32[1]) -> bf16[8,512] {
  %a = bf16[64,512]{1,0} parameter(0), metadata={op_name="params['up']"}
  %b = bf16[8,512]{1,0} parameter(1), metadata={op_name="state.cache.layers[0][0]"}
  %t0 = f32[1]{0} parameter(2), metadata={op_name="state.sampling.temperature"}
  %twice = bf16[8,512]{1,0} copy(%b)
  %begin = (bf16[64,512]{1,0}, bf16[8,512]{1,0}, f32[1]{0}) tuple(%a, %twice, %t0)
  %cycles = (bf16[64,512]{1,0}, bf16[8,512]{1,0}, f32[1]{0}) while(%begin), condition=%going, body=%body, metadata={op_name="jit(decode)/while"}
  ROOT %end = bf16[8,512]{1,0} get-tuple-element(%cycles), index=1
}
"""
NAMES = hlo_costs.Names(
  weights=('params',),
  caches=('state.cache',),
  vocab=(100,),
  slots=(512, 520),
  sampling=('state.sampling',),
  cold='temperature',
)
WEIGHT, CACHE, CHUNK = 64 * 512 * 2, 8 * 512 * 2, 8 * 64


def moved(text, names=NAMES, looped=True):
  found = {}
  for one in hlo_costs.read(text, names).work:
    if one.looped == looped:
      for kind, nbytes in one.causes.items():
        found[kind] = found.get(kind, 0) + one.times * nbytes
  return found


def test_bytes_are_those_of_main_memory_by_what_they_are_of():
  assert moved(CYCLE) == {
    'weights': WEIGHT,  # read once: the product reads a scratch memory
    # The product reads all of it, the update writes a column; chunks read it.
    'cache': CACHE + 8 * 2 + 8 * CHUNK * 2,
    # What the product makes, and a slice reads of it.
    # The temperature, what is made of it, and a constant for two.
    'other': CHUNK * 4 + 8 * 4 + 2 * 4 + 2 * 4,
    'scores': 8 * CHUNK * 4 + 8 * 4,
    'logits': 8 * 100 * 4,
  }
  assert moved(CYCLE, looped=False) == {'cache copies': 2 * CACHE}


@pytest.mark.parametrize(
    'old, new, more',
    [
        # A loop whose turns are not told counts once.
        ('trips_8/while"}', 'while"}',
         {'cache': -7 * CHUNK * 2, 'scores': -7 * (CHUNK + 1) * 4}),
        # All of it is written where the update is not in place: it is no cache.
        ('ROOT %u = bf16[8,512]{1,0} dynamic-update-slice(%p, %q, %i, %i)',
         'ROOT %u = bf16[8,512]{1,0} add(%p, %p)',
         {'cache': CACHE - 8 * 2 - 8 * CHUNK * 2,
          'scores': CACHE + 8 * CHUNK * 2, 'other': -4}),
        # A weight that stays in main memory is read again.
        ('1,0:S(1)} copy(%w)', '1,0} copy(%w)', {'weights': 2 * WEIGHT}),
        # The costlier branch, where not only sampling decides.
        ('op_name="state.sampling.temperature"', 'op_name="state.length"',
         {'cache': CACHE, 'scores': CACHE}),
    ],
)  # fmt: skip
def test_bytes_follow_the_program(old, new, more):
  """The controls of the test above."""
  assert old in CYCLE
  found, before = moved(CYCLE.replace(old, new)), moved(CYCLE)
  assert {k: n - before[k] for k, n in found.items() if n != before[k]} == more


@pytest.mark.parametrize(
    'line, read, written',
    [
        # Prefetches: what arrives in the scratch memory was read once.
        ('(f32[64,64]{1,0:S(1)}, f32[64,64]{1,0}, u32[]) copy-start(%a)',
         64 * 64, 0),
        ('((f32[64,64]{1,0}), f32[8,64]{1,0:S(1)}, s32[]) slice-start(%a)',
         8 * 64, 0),
        ('f32[8,64]{1,0} dynamic-slice(%a, %i, %i)', 8 * 64 + 1, 8 * 64),
        ('f32[3,64]{1,0} gather(%a, %ids)', 3 * 64 + 3, 3 * 64),
        ('f32[64,64]{1,0} dynamic-update-slice(%a, %row, %i, %i)',
         64 + 1, 64),
        ('f32[64,64]{1,0} scatter(%a, %ids, %row), to_apply=%add', 3 + 64, 64),
        # Two results, one of them written in place; a slice of an operand.
        ('(f32[64,64]{1,0}, f32[1,64]{1,0}) fusion(%a, %b, %i), '
         'calls=%fused', 64 + 1, 64 + 64),
        ('f32[64,64]{1,0} bitcast(%a)', 0, 0),
        ('f32[64,64]{1,0} custom-call(), custom_call_target="AllocateBuffer"',
         0, 0),
    ],
)  # fmt: skip
def test_parts_and_updates_count_as_what_they_move(line, read, written):
  text = f"""
%fused (p: f32[64,64], q: f32[64,64], n: s32[]) -> (f32[64,64], f32[1,64]) {{
  %p = f32[64,64]{{1,0}} parameter(0)
  %q = f32[64,64]{{1,0}} parameter(1)
  %n = s32[] parameter(2)
  %flat = f32[4096]{{0}} reshape(%q)
  %cut = f32[64]{{0}} dynamic-slice(%flat, %n)
  %one = f32[1,64]{{1,0}} reshape(%cut)
  %put = f32[64,64]{{1,0}} dynamic-update-slice(%p, %one, %n, %n)
  ROOT %both = (f32[64,64]{{1,0}}, f32[1,64]{{1,0}}) tuple(%put, %one)
}}
ENTRY %main (a: f32[64,64], b: f32[64,64]) -> f32[64,64] {{
  %a = f32[64,64]{{1,0}} parameter(0)
  %b = f32[64,64]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  %ids = s32[3]{{0}} parameter(3)
  %row = f32[1,64]{{1,0}} parameter(4)
  ROOT %x = {line}
}}
"""
  computations, entry = hlo.parse(text)
  inside = computations[entry]
  found = hlo_memory.touched(inside['x'], inside, computations)
  assert sum(t.nbytes for t in found if t.name) == 4 * read
  assert sum(t.nbytes for t in found if not t.name) == 4 * written


def test_work_between_start_and_end_hides_a_collective():
  text = """
ENTRY %main (a: f32[64,64], b: f32[64,64]) -> f32[64,64] {
  %a = f32[64,64]{1,0} parameter(0)
  %b = f32[64,64]{1,0} parameter(1)
  %start = (f32[64,64]{1,0}, f32[128,64]{1,0}) all-gather-start(%a), dimensions={0}
  %work = f32[64,64]{1,0} dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done = f32[128,64]{1,0} all-gather-done(%start)
  %later = f32[64,64]{1,0} dot(%work, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %sum = f32[64,64]{1,0} all-reduce(%later), to_apply=%add
}
"""
  gathered, reduced = sorted(hlo_costs.read(text).traffic, key=lambda x: x.kind)
  assert (gathered.started, reduced.started) == (1, 0)
  assert gathered.between == (2 * 64**3, 2 * 64 * 64 * 4)
  assert reduced.between == (0, 0)


def test_both_branches_of_a_conditional_are_called():
  text = (
    'ENTRY %main (p: pred[], x: f32[]) -> f32[] {\n'
    '  ROOT %c = f32[] conditional(%p, %x, %x), true_computation=%yes, '
    'false_computation=%no.1, metadata={op_name="cond"}\n}\n'
  )
  computations, entry = hlo.parse(text)
  assert computations[entry]['c'].calls() == ['yes', 'no.1']
