from __future__ import annotations

from t2t_jax.hlo import Shape, bytes_by_kind, carry_batch, collectives

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
