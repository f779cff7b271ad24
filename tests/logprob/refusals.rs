//! Calls that are refused before anything is queued, with every fault named.

use moerl::error::Kind;
use moerl::logprob::{Backward, Config, Forward, Gradient, Partial, workspace_bytes};
use moerl::memory::{Host, Matrix, MatrixMut, View};
use moerl::{Backend, Error, Reference};

use crate::support::*;

fn refused(result: Result<(), Error>) -> Error {
    result.expect_err("the call is refused")
}

fn forward_with<'a>(
    config: &Config,
    logits: &'a [f32],
    rows: usize,
    change: impl FnOnce(&mut Forward<'a, Host>),
) -> Error {
    let mut call = Forward::new(Matrix::new(logits, rows, logits.len() / rows).unwrap());
    change(&mut call);
    refused(Reference.logprob_forward(&(), config, call))
}

#[test]
fn every_fault_is_named_at_once() {
    let logits = vec![0.0_f32; 12];
    let (mut short, mut lse) = (vec![0.0_f32; 2], vec![0.0_f32; 3]);
    let mask = vec![1_u8; 4];
    let config = Config { temperature: 0.0, vocabulary: Some(5), ..Config::default() };
    let error = forward_with(&config, &logits, 3, |call| {
        call.logprobs = Some((&mut short).into());
        call.lse = Some((&mut lse).into());
        call.loss_mask = Some((&mask).into());
    });
    for kind in [Kind::Temperature, Kind::Shape] {
        assert!(error.is(kind), "{error}");
    }
    let text = error.to_string();
    for part in [
        "temperature: is 0",
        "vocabulary: is 5",
        "4 columns",
        "logprobs: has shape [2], needs [3]",
        "loss_mask",
        "logprobs: are asked for, but there are no tokens",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains('\n'));
}

#[test]
fn temperatures_that_f32_cannot_scale_by_are_refused() {
    for temperature in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, 4e-39] {
        let error = Config::at_temperature(temperature).validate().expect_err("invalid");
        assert!(error.is(Kind::Temperature), "{temperature}: {error}");
    }
    for temperature in [4.3e-39, 1e-30, 1.0, f32::MAX] {
        assert_eq!(Config::at_temperature(temperature).validate(), Ok(()));
    }
}

#[test]
fn types_that_do_not_fit_are_refused() {
    let (integers, tokens, logits) = (vec![0_i32; 4], vec![0_u16; 2], vec![0.0_f32; 4]);
    let call = Forward::<Host>::new(Matrix::new(&integers, 2, 2).unwrap());
    let error = refused(Reference.logprob_forward(&(), &Config::default(), call));
    assert!(error.is(Kind::Dtype) && error.to_string().contains("logits: hold i32"), "{error}");
    let error =
        forward_with(&Config::default(), &logits, 2, |call| call.tokens = Some(Matrix::new(&tokens, 2, 1).unwrap()));
    assert!(error.is(Kind::Dtype) && error.to_string().contains("tokens: hold u16"), "{error}");
}

#[test]
fn an_empty_vocabulary_is_refused() {
    let config = Config { vocabulary: Some(0), ..Config::default() };
    assert!(forward_with(&config, &[0.0; 4], 2, |_| {}).is(Kind::Shape));
}

#[test]
fn a_small_workspace_is_refused_with_the_bytes_needed() {
    let mut workspace = vec![0_u8; 10];
    let error = forward_with(&Config::default(), &[0.0; 4], 2, |call| call.workspace = Some((&mut workspace).into()));
    assert!(error.is(Kind::Workspace), "{error}");
    assert!(error.to_string().contains(&workspace_bytes(2, 2).to_string()), "{error}");
}

#[test]
fn outputs_that_share_memory_are_refused() {
    let logits = [0.0_f32; 4];
    let mut both = vec![0.0_f32; 3];
    let address = both.as_mut_ptr() as usize;
    let error = forward_with(&Config::default(), &logits, 2, |call| {
        // SAFETY: the call is refused before anything is written.
        call.entropy = Some(unsafe { moerl::memory::ViewMut::from_raw(address, 2) });
        // SAFETY: likewise.
        call.lse = Some(unsafe { moerl::memory::ViewMut::from_raw(address + 4, 2) });
    });
    assert!(error.is(Kind::Overlap), "{error}");
}

#[test]
fn misaligned_addresses_are_refused() {
    let mask = [0.0_f32; 4];
    let address = mask.as_ptr() as usize + 2;
    let error = forward_with(&Config::default(), &[0.0; 4], 2, |call| {
        // SAFETY: the call is refused before anything is read.
        call.temperature = Some(unsafe { View::from_raw(address, 2) });
    });
    assert!(error.is(Kind::Alignment) && error.to_string().contains("multiple of 4"), "{error}");
}

static LOGITS: [f32; 4] = [0.0; 4];
static SAVED: [Partial; 2] = [Partial { max_logit: 0.0, sum: 2.0, weighted: 0.0, label: 0.0 }; 2];

fn backward_with<'a>(target: &'a mut [f32], change: impl FnOnce(&mut Backward<'a, Host>)) -> Error {
    let columns = target.len() / 2;
    let d_logits = MatrixMut::new(target, 2, columns).unwrap();
    let gradient = Gradient::Into { logits: Matrix::new(&LOGITS[..], 2, 2).unwrap(), d_logits };
    let mut call = Backward::new(gradient, (&SAVED[..]).into());
    change(&mut call);
    refused(Reference.logprob_backward(&(), &Config::default(), call))
}

#[test]
fn backward_names_what_it_lacks() {
    let up = [1.0_f32; 2];
    let error = backward_with(&mut [0.0; 4], |_| {});
    assert!(error.is(Kind::MissingInput), "no upstream gradient: {error}");
    let error = backward_with(&mut [0.0; 4], |call| call.d_logprobs = Some((&up[..]).into()));
    assert!(error.is(Kind::Shape) && error.to_string().contains("d_logprobs: are given"), "{error}");
    let error = backward_with(&mut [0.0; 6], |call| call.d_lse = Some((&up[..]).into()));
    assert!(error.is(Kind::Shape) && error.to_string().contains("d_logits: has shape [2, 3], needs [2, 2]"), "{error}");
    let error = backward_with(&mut [0.0; 4], |call| call.d_lse = Some((&up[..1]).into()));
    assert!(error.is(Kind::Shape), "{error}");
}

#[test]
fn a_gradient_in_another_sixteen_bit_type_is_refused() {
    let up = [1.0_f32; 2];
    let mut target = vec![half::f16::ZERO; 4];
    let gradient = Gradient::Into {
        logits: Matrix::new(&LOGITS[..], 2, 2).unwrap(),
        d_logits: MatrixMut::new(&mut target, 2, 2).unwrap(),
    };
    let mut call = Backward::<'_, Host>::new(gradient, (&SAVED[..]).into());
    call.d_lse = Some((&up[..]).into());
    let error = refused(Reference.logprob_backward(&(), &Config::default(), call));
    assert!(error.is(Kind::Dtype), "{error}");
}

#[test]
fn a_gradient_that_overlaps_its_logits_must_be_them() {
    let mut memory = [0.0_f32; 6];
    let up = [1.0_f32; 2];
    let address = memory.as_mut_ptr() as usize;
    for (shift, is_refused) in [(4, true), (0, false)] {
        // SAFETY: one thread; where the memory is the same, the reference copies a row before it writes it.
        let logits: View<'_, f32, Host> = unsafe { View::from_raw(address, 4) };
        // SAFETY: likewise.
        let d_logits: moerl::memory::ViewMut<'_, f32, Host> =
            unsafe { moerl::memory::ViewMut::from_raw(address + shift, 4) };
        let gradient = Gradient::Into {
            logits: Matrix::new(logits, 2, 2).unwrap(),
            d_logits: MatrixMut::new(d_logits, 2, 2).unwrap(),
        };
        let mut call = Backward::new(gradient, (&SAVED[..]).into());
        call.d_lse = Some((&up[..]).into());
        let result = Reference.logprob_backward(&(), &Config::default(), call);
        assert_eq!(result.is_err_and(|e| e.is(Kind::Overlap)), is_refused);
    }
}

#[test]
fn no_rows_are_no_work() {
    assert_eq!(try_forward(&Reference, &Inputs::<f32>::new(0, 3, vec![]), EVERYTHING).map(|o| o.fault), Ok(None));
}
