//! More than 2³¹ logits, on a device; the same at a small size, emulated.

use moerl::device::executor::Executor;
use moerl::element::{Float, bf16};
use moerl::logprob::{Backward, Config, Forward, Gradient, KeepSets, Partial};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};

use crate::backward::worst_gradient;
use crate::common::large::{Tile, copy};
use crate::keep::assert_kept;
use crate::support::*;

/// Rows to look at closely: the first, the middle ones, those on both sides of logits 2³¹ and 2³², the last.
fn chosen_rows(rows: usize, columns: usize) -> Vec<usize> {
    let mut chosen = vec![0, 1, rows / 2, rows - 2, rows - 1];
    for beyond in [(1 << 31) / columns, (1 << 32) / columns] {
        chosen.extend([beyond - 1, beyond]);
    }
    chosen.retain(|&r| r < rows);
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// Forward, once with the order and once without, and backward; the chosen rows must be what they are alone, and agree with f64.
fn check<B: Executor, T: Float>(backend: &B, rows: usize, columns: usize, in_place: bool) {
    let what = format!("{rows} rows of {columns} columns of {}", T::ELEMENT);
    let stream = backend.stream().unwrap();
    let (tile, upstream) = (Tile::<T>::new(1, 3.0), Tile::<f32>::new(2, 1.0));
    let mut logits = backend.allocate::<T>(&stream, rows * columns).unwrap();
    tile.lay(backend, &stream, logits.view_mut());
    let token = |r: usize| (r * 7919 % columns) as i32;
    let tokens = backend.upload(&stream, &(0..rows).map(token).collect::<Vec<_>>()).unwrap();

    let chosen = chosen_rows(rows, columns);
    let numbers: Vec<T> = chosen.iter().flat_map(|&r| tile.range(r * columns..(r + 1) * columns)).collect();
    let config = Config::at_temperature(0.7);
    let alone = Inputs {
        config: config.clone(),
        tokens: Some(chosen.iter().map(|&r| i64::from(token(r))).collect()),
        ..Inputs::new(chosen.len(), columns, numbers)
    };
    worst_of(backend, &alone).assert_within_goals(&what);
    let expected = forward(backend, &alone, WITH_ORDER);

    let mut saved = backend.allocate::<Partial>(&stream, rows).unwrap();
    for has_order in [true, false] {
        let floats = || backend.upload(&stream, &vec![UNTOUCHED; rows]).unwrap();
        let (mut logprobs, mut entropy, mut max, mut lse) = (floats(), floats(), floats(), floats());
        let (mut log_sum, mut sum_p2) = (floats(), floats());
        let mut rank = backend.allocate::<i32>(&stream, rows).unwrap();
        let mut argmax = backend.allocate::<i32>(&stream, rows).unwrap();
        let mut word = backend.error_word(&stream).unwrap();
        let mut call = Forward::new(Matrix::new(logits.view(), rows, columns).unwrap());
        call.tokens = Some(Matrix::new(tokens.view(), rows, 1).unwrap());
        call.logprobs = Some(logprobs.view_mut());
        call.entropy = Some(entropy.view_mut());
        call.max = Some(max.view_mut());
        call.log_sum = Some(log_sum.view_mut());
        call.lse = Some(lse.view_mut());
        call.sum_p2 = Some(sum_p2.view_mut());
        call.saved = Some(saved.view_mut());
        call.rank = has_order.then(|| rank.view_mut());
        call.argmax = has_order.then(|| argmax.view_mut());
        call.errors = Some(word.view_mut());
        backend.logprob_forward(&stream, &config, call).unwrap();
        backend.check(&stream, &mut word).unwrap();
        let of_rows = [&logprobs, &entropy, &max, &log_sum, &lse, &sum_p2]
            .map(|buffer| backend.download(&stream, buffer.view()).unwrap());
        let (rank, argmax) =
            (backend.download(&stream, rank.view()).unwrap(), backend.download(&stream, argmax.view()).unwrap());
        for (i, &r) in chosen.iter().enumerate() {
            let found = of_rows.each_ref().map(|values| values[r].to_bits());
            assert_eq!(found, expected.floats(i).map(f32::to_bits), "{what}: row {r}");
            if has_order {
                assert_eq!((rank[r], argmax[r]), (expected.rank[i], expected.argmax[i]), "{what}: row {r}");
            }
        }
        // No row was left out.
        assert!(of_rows.iter().flatten().all(|&x| x != UNTOUCHED && x.is_finite()), "{what}");
    }

    let [a, b, c] = [0, 1, 2].map(|part| upstream.range(part * rows..(part + 1) * rows).collect::<Vec<_>>());
    let [d_logprobs, d_entropy, d_lse] = [&a, &b, &c].map(|values| backend.upload(&stream, values).unwrap());
    let mut apart = backend.allocate::<T>(&stream, if in_place { 0 } else { rows * columns }).unwrap();
    backend.fill(&stream, apart.view_mut(), 0x7f).unwrap();
    let gradient = if in_place {
        Gradient::InPlace(MatrixMut::new(logits.view_mut(), rows, columns).unwrap())
    } else {
        Gradient::Into {
            logits: Matrix::new(logits.view(), rows, columns).unwrap(),
            d_logits: MatrixMut::new(apart.view_mut(), rows, columns).unwrap(),
        }
    };
    let mut call = Backward::new(gradient, saved.view());
    call.tokens = Some(Matrix::new(tokens.view(), rows, 1).unwrap());
    call.d_logprobs = Some(d_logprobs.view());
    call.d_entropy = Some(d_entropy.view());
    call.d_lse = Some(d_lse.view());
    backend.logprob_backward(&stream, &config, call).unwrap();

    let up = Upstream { logprobs: Some(a), entropy: Some(b), lse: Some(c), kept: None }.rows_of(&chosen);
    let expected: Vec<T> = backward(backend, &alone, &expected.saved, &up, Target::Apart);
    let (worst, _) = worst_gradient::<T, T>(&alone, &up, &gradient_rows(&alone, &expected));
    assert!(worst <= 1.0, "{what}: a gradient is off by {worst} of its goal");
    let written = if in_place { &logits } else { &apart };
    let bits = |x: &[T]| x.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
    for (i, &r) in chosen.iter().enumerate() {
        let found = backend.download(&stream, written.view().slice(r * columns..(r + 1) * columns)).unwrap();
        assert!(bits(&found) == bits(&expected[i * columns..][..columns]), "{what}: gradient of row {r}");
    }
}

/// Keep-sets of all columns and of every other one in turn, forward and backward, in place; the chosen rows as they are alone.
fn check_kept<B: Executor>(backend: &B, rows: usize, columns: usize) {
    let stream = backend.stream().unwrap();
    let tile = Tile::<bf16>::new(3, 3.0);
    let mut logits = backend.allocate::<bf16>(&stream, rows * columns).unwrap();
    tile.lay(backend, &stream, logits.view_mut());
    let set = |r: usize| (0..columns as i32).step_by(1 + r % 2).collect::<Vec<_>>();
    let mut offsets = vec![0i64];
    offsets.extend((0..rows).scan(0, |end, r| {
        *end += (columns >> (r % 2)) as i64;
        Some(*end)
    }));
    let count = offsets[rows] as usize;
    let mut ids = backend.allocate::<i32>(&stream, count).unwrap();
    let sets = [0, 1].map(|r| backend.upload(&stream, &set(r)).unwrap());
    for r in 0..rows {
        let place = offsets[r] as usize..offsets[r + 1] as usize;
        copy(backend, &stream, sets[r % 2].view(), ids.view_mut().slice(place));
    }
    let token = |r: usize| (r * 7919 % columns) as i32 & !1;
    let tokens = backend.upload(&stream, &(0..rows).map(token).collect::<Vec<_>>()).unwrap();
    let offsets = backend.upload(&stream, &offsets).unwrap();

    let chosen: Vec<usize> = vec![0, 1, rows / 2, rows / 2 + 1, rows - 2, rows - 1];
    let numbers: Vec<bf16> = chosen.iter().flat_map(|&r| tile.range(r * columns..(r + 1) * columns)).collect();
    let alone = Inputs {
        tokens: Some(chosen.iter().map(|&r| i64::from(token(r))).collect()),
        keep: Some(Keep::of(&chosen.iter().map(|&r| set(r)).collect::<Vec<_>>())),
        ..Inputs::new(chosen.len(), columns, numbers)
    };
    let expected = forward(backend, &alone, Asked { kept: true, ..EVERYTHING });
    assert_kept(&alone, &expected, "the chosen rows");

    let floats = || backend.upload(&stream, &vec![UNTOUCHED; rows]).unwrap();
    let (mut logprobs, mut entropy, mut mass) = (floats(), floats(), floats());
    let mut saved = backend.allocate::<Partial>(&stream, rows).unwrap();
    let mut kept_saved = backend.allocate::<Partial>(&stream, rows).unwrap();
    let mut word = backend.error_word(&stream).unwrap();
    let mut call = Forward::new(Matrix::new(logits.view(), rows, columns).unwrap());
    call.tokens = Some(Matrix::new(tokens.view(), rows, 1).unwrap());
    call.keep = Some(KeepSets { ids: ids.view(), offsets: offsets.view() });
    call.kept_logprobs = Some(logprobs.view_mut());
    call.kept_entropy = Some(entropy.view_mut());
    call.kept_mass = Some(mass.view_mut());
    call.saved = Some(saved.view_mut());
    call.kept_saved = Some(kept_saved.view_mut());
    call.errors = Some(word.view_mut());
    backend.logprob_forward(&stream, &alone.config, call).unwrap();
    backend.check(&stream, &mut word).unwrap();
    let found = [&logprobs, &entropy, &mass].map(|values| backend.download(&stream, values.view()).unwrap());
    for (i, &r) in chosen.iter().enumerate() {
        let bits = found.each_ref().map(|values| values[r].to_bits());
        let alone = [expected.kept_logprobs[i], expected.kept_entropy[i], expected.kept_mass[i]];
        assert_eq!(bits, alone.map(f32::to_bits), "row {r} of {rows}, {count} ids");
    }
    assert!(found.iter().flatten().all(|&x| x != UNTOUCHED && x.is_finite()), "{count} ids");

    let upstream = Tile::<f32>::new(4, 1.0);
    let [a, b] = [0, 1].map(|part| upstream.range(part * rows..(part + 1) * rows).collect::<Vec<_>>());
    let (d_logprobs, d_entropy) = (backend.upload(&stream, &a).unwrap(), backend.upload(&stream, &b).unwrap());
    let gradient = Gradient::InPlace(MatrixMut::new(logits.view_mut(), rows, columns).unwrap());
    let mut call = Backward::new(gradient, saved.view());
    call.tokens = Some(Matrix::new(tokens.view(), rows, 1).unwrap());
    call.keep = Some(KeepSets { ids: ids.view(), offsets: offsets.view() });
    call.kept_saved = Some(kept_saved.view());
    call.d_kept_logprobs = Some(d_logprobs.view());
    call.d_kept_entropy = Some(d_entropy.view());
    backend.logprob_backward(&stream, &alone.config, call).unwrap();
    let pick = |values: &[f32]| chosen.iter().map(|&r| values[r]).collect();
    let kept = KeptUpstream { saved: expected.kept_saved, logprobs: pick(&a), entropy: pick(&b) };
    let up = Upstream { kept: Some(kept), ..Upstream::default() };
    let expected: Vec<bf16> = backward(backend, &alone, &expected.saved, &up, Target::Apart);
    for (i, &r) in chosen.iter().enumerate() {
        let found = backend.download(&stream, logits.view().slice(r * columns..(r + 1) * columns)).unwrap();
        assert!(found == expected[i * columns..][..columns], "gradient of row {r} of {rows}, {count} ids");
    }
}

#[cfg(feature = "emulate")]
mod emulator {
    use super::*;

    #[test]
    fn few_kept_ids_are_checked_as_many() {
        check_kept(&moerl::Emulator::new(), 8, 4112);
    }

    #[test]
    fn few_rows_are_checked_as_many() {
        let emulator = moerl::Emulator::new();
        check::<_, bf16>(&emulator, 9, 4104, false);
        check::<_, bf16>(&emulator, 9, 4104, true);
        check::<_, f32>(&emulator, 5, 2052, true);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use crate::common;
    use crate::common::large::{has_room, room};

    fn on_a_device<T: Float>(rows: usize, columns: usize) {
        let Some(gpu) = common::cuda() else { return };
        let bytes = rows * columns * size_of::<T>();
        let Some(_alone) = room(&gpu, &format!("{rows} rows of {columns} columns"), bytes) else { return };
        // Out of place where there is room for the gradient too.
        check::<_, T>(&gpu, rows, columns, !has_room(&gpu, 2 * bytes));
    }

    #[test]
    fn two_to_the_31_logits() {
        on_a_device::<bf16>(8192, 262_144);
    }

    #[test]
    fn two_to_the_32_logits() {
        on_a_device::<bf16>(16_384, 262_144);
    }

    #[test]
    fn two_to_the_32_logits_in_place() {
        let Some(gpu) = common::cuda() else { return };
        let (rows, columns) = (16_384, 262_144);
        let Some(_alone) = room(&gpu, "2^32 logits in place", 2 * rows * columns) else { return };
        check::<_, bf16>(&gpu, rows, columns, true);
    }

    #[test]
    fn more_than_two_to_the_31_kept_ids() {
        let Some(gpu) = common::cuda() else { return };
        // Two rows have three halves of the columns between them.
        let (rows, columns) = (10_930, 262_144);
        let ids = rows / 2 * (columns + columns / 2);
        assert!(ids > 1 << 31);
        let Some(_alone) = room(&gpu, "2^31 kept ids", 4 * ids + 2 * rows * columns) else { return };
        check_kept(&gpu, rows, columns);
    }

    #[test]
    fn more_than_two_to_the_32_logits_in_f32() {
        on_a_device::<f32>(32_769, 131_072);
    }
}
