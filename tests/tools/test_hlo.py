"""Reading HLO texts: loops, FLOPs, traffic, arrays; and programs of XLA."""

import jax
import jax.numpy as jnp
import pytest

from specdiff_jax.tools.aot import hlo
from specdiff_jax.tools.aot import hlo_costs

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
    'all-reduce': {'count': 6, 'bytes': 6 * 10 * 32 * 4},
    'reduce-scatter': {'count': 6, 'bytes': 6 * 10 * 64 * 4},
    'all-gather': {'count': 1, 'bytes': 64 * 64 * 2},
  }
  assert [t.kind for t in costs.traffic] == [
      'reduce-scatter', 'all-gather', 'all-reduce',
  ]  # fmt: skip
  assert costs.traffic[2].label == 'jit(f)/while/body/psum'
  assert costs.traffic[2].shape == 'f32[10,32]'


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


def test_both_branches_of_a_conditional_are_called():
  text = (
    'ENTRY %main (p: pred[], x: f32[]) -> f32[] {\n'
    '  ROOT %c = f32[] conditional(%p, %x, %x), true_computation=%yes, '
    'false_computation=%no.1, metadata={op_name="cond"}\n}\n'
  )
  computations, entry = hlo.parse(text)
  assert computations[entry]['c'].calls() == ['yes', 'no.1']
