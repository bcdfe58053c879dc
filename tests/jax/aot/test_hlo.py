from __future__ import annotations

from t2t_jax.aot.hlo import Shape, bytes_by_kind, carry_batch, collectives

TEXT = """
ENTRY %main (p0: f32[64,8]) -> f32[64,8] {
  %p0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  %all-gather-start.1 = (f32[16,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%p0), dimensions={0}, metadata={op_name="a"}
  %all-gather-done.1 = f32[64,8]{1,0} all-gather-done(%all-gather-start.1)
  %all-reduce.3 = (bf16[8]{0:T(256)(2,1)}, /*index=5*/f32[]) all-reduce(%a, %b), to_apply=%add
  %collective-permute-start = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%a)
  %all-gather.8 = bf16[8,8]{1,0} all-gather(%a), channel_id=3, dimensions={0}
  %all-gather.9 = bf16[8,8]{1,0} all-gather(%a), channel_id=3, dimensions={0}
  ROOT %reduce-scatter.7 = f32[2,64]{1,0:T(2,128)S(1)} reduce-scatter(%p0), dimensions={0}
}
"""


def test_messages_are_read_once_with_what_arrives():
    found = collectives(TEXT)
    assert [(message.kind, message.shapes, message.num_bytes) for message in found] == [
        ("all-gather", (Shape("f32", (64, 8)),), 64 * 8 * 4),
        ("all-reduce", (Shape("bf16", (8,)), Shape("f32", ())), 8 * 2 + 4),
        ("collective-permute", (Shape("f32", (4,)),), 16),
        ("all-gather", (Shape("bf16", (8, 8)),), 128),
        ("reduce-scatter", (Shape("f32", (2, 64)),), 2 * 64 * 4),
    ]
    assert bytes_by_kind(found)["all-gather"] == (2, 2048 + 128)


def test_a_message_with_the_batch_is_found_and_a_weight_of_that_size_is_not():
    found = collectives(TEXT)
    assert [message.kind for message in carry_batch(found, 64)] == ["all-gather", "reduce-scatter"]
    assert [message.kind for message in carry_batch(found, 64, [(8, 64)])] == ["reduce-scatter"]
    assert carry_batch(found, 1024) == []


LOOP = """
%fused (p: f32[8]) -> f32[8] {
  ROOT %all-reduce.1 = f32[8]{0} all-reduce(%p), channel_id=1, to_apply=%add
}
%inner (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-gather.2 = f32[16]{0} all-gather(%x), channel_id=2, dimensions={0}
  ROOT %f = f32[8]{0} fusion(%x), kind=kCustom, calls=%fused
}
%outer (arg: (s32[], /*index=1*/f32[8])) -> (s32[], f32[8]) {
  %while.1 = (s32[], f32[8]{0}) while(%t), condition=%less, body=%inner, backend_config={"known_trip_count":{"n":"14"}}
  ROOT %all-reduce.2 = f32[4]{0} all-reduce(%y), channel_id=3, to_apply=%add
}
ENTRY %main (p0: f32[64,8]) -> f32[64,8] {
  %while.2 = (s32[], f32[8]{0}) while(%t), condition=%less, body=%outer, backend_config={"known_trip_count":{"n":"2"}}
  ROOT %all-reduce.3 = f32[] all-reduce(%z), channel_id=4, to_apply=%add
}
"""


def test_a_message_in_a_loop_counts_as_often_as_it_is_sent():
    """Also from a fusion in a loop in a loop."""
    found = collectives(LOOP)
    assert [(message.kind, message.shapes[0].dims, message.times) for message in found] == [
        ("all-reduce", (8,), 28),
        ("all-gather", (16,), 28),
        ("all-reduce", (4,), 2),
        ("all-reduce", (), 1),
    ]
    assert bytes_by_kind(found) == {"all-gather": (28, 28 * 64), "all-reduce": (31, 28 * 32 + 2 * 16 + 4)}
