//! What the host refuses before anything is queued, and what it says; presets.

use moerl::element::{Element, bf16};
use moerl::error::{Error, Kind};
use moerl::gate::{Backward, Config, Filler, Forced, Forward, Groups, Preset, Renormalize, Routes, Score};
use moerl::memory::{Host, Matrix, MatrixMut, View};

/// The faults of a forward call of two rows.
fn refused(config: &Config, experts: usize, change: impl FnOnce(&mut Forward<'_, Host>)) -> Vec<(Kind, String)> {
    let logits = vec![bf16::ONE; 2 * experts];
    let k = config.resolve_top_k(None).unwrap_or(1);
    let (mut ids, mut weights) = (vec![0i32; 2 * k], vec![0f32; 2 * k]);
    let mut call =
        Forward::new(Matrix::new(&logits, 2, experts).unwrap(), &mut ids, MatrixMut::new(&mut weights, 2, k).unwrap());
    change(&mut call);
    problems(call.validate(config).map(|_| ()))
}

fn problems(result: moerl::Result<()>) -> Vec<(Kind, String)> {
    match result {
        Ok(()) => Vec::new(),
        Err(Error::Invalid(problems)) => problems.iter().map(|p| (p.kind, p.to_string())).collect(),
        Err(other) => panic!("{other}"),
    }
}

fn says(found: &[(Kind, String)], kind: Kind, words: &[&str]) {
    let hit = found.iter().any(|(k, text)| *k == kind && words.iter().all(|word| text.contains(word)));
    assert!(hit, "{kind:?} with {words:?} is not among {found:?}");
}

#[test]
fn impossible_configurations_are_refused_by_name_and_number() {
    let k = Config::softmax_selected;
    says(&refused(&k(0), 8, |_| ()), Kind::Config, &["top_k: is 0", "1 to 8"]);
    says(&refused(&k(9), 8, |_| ()), Kind::Config, &["top_k: is 9", "1 to 8"]);
    says(&refused(&k(33), 64, |_| ()), Kind::Config, &["top_k: is 33", "1 to 32"]);
    says(&refused(&k(1), 4097, |_| ()), Kind::Shape, &["4097 experts", "4096"]);
    says(&refused(&k(1), 0, |_| ()), Kind::Shape, &["0 experts"]);
    let rule = |score, renormalize| Config { renormalize, ..Config::new(score, 2) };
    for rule_of in [Renormalize::AddEps(1e-20), Renormalize::Guard, Renormalize::Exact] {
        says(&refused(&rule(Score::Softmax, rule_of), 8, |_| ()), Kind::Config, &["renormalize", "softmax over all"]);
    }
    says(&refused(&rule(Score::SoftmaxSelected, Renormalize::Guard), 8, |_| ()), Kind::Config, &["normalised already"]);
    says(&refused(&rule(Score::Raw, Renormalize::Floor(1.0)), 8, |_| ()), Kind::Config, &["raw"]);
    for x in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40, f32::MAX] {
        says(
            &refused(&rule(Score::Sigmoid, Renormalize::AddEps(x)), 8, |_| ()),
            Kind::Config,
            &["renormalize", "positive"],
        );
        says(&refused(&Config { softcap: Some(x), ..k(2) }, 8, |_| ()), Kind::Config, &["softcap", "positive"]);
    }
    says(&refused(&Config { scaling_factor: None, ..k(2) }, 8, |_| ()), Kind::Config, &["scaling_factor", "not given"]);
    says(
        &refused(&Config { scaling_factor: Some(f32::NAN), ..k(2) }, 8, |_| ()),
        Kind::Config,
        &["scaling_factor", "NaN"],
    );
    says(&refused(&Config { top_k: None, ..k(2) }, 8, |_| ()), Kind::Config, &["top_k", "neither"]);
    let endless = Config { top_k: Some(usize::MAX), preset_top_k: Some(1), ..k(2) };
    let (logits, mut ids, mut weights) = (vec![0f32; 16], vec![0i32; 4], vec![0f32; 4]);
    let call = Forward::new(Matrix::new(&logits, 2, 8).unwrap(), &mut ids, MatrixMut::new(&mut weights, 2, 2).unwrap());
    says(&problems(call.validate(&endless).map(|_| ())), Kind::Config, &["top_k: is 18446744073709551615"]);
    says(&refused(&Config { needs_selection_bias: true, ..k(2) }, 8, |_| ()), Kind::MissingInput, &["selection_bias"]);
}

#[test]
fn impossible_groups_are_refused() {
    let grouped = |count, admitted, top| Config { groups: Some(Groups { count, admitted, top }), ..Config::sigmoid(8) };
    for (groups, words) in [
        (grouped(7, 4, Some(2)), "divide the 64"),
        (grouped(0, 4, Some(2)), "divide the 64"),
        (grouped(8, 0, Some(2)), "admit 1 to 8"),
        (grouped(8, 9, Some(2)), "admit 1 to 8"),
        (grouped(32, 3, Some(2)), "less than the 8"),
        (grouped(8, 4, Some(9)), "best 9"),
        (grouped(8, 4, Some(0)), "best 0"),
        (grouped(8, 3, None), "8/3"),
    ] {
        says(&refused(&groups, 64, |_| ()), Kind::Config, &["groups", words]);
    }
    assert!(refused(&grouped(8, 4, None), 64, |_| ()).is_empty());
}

#[test]
fn ids_that_cannot_hold_the_experts_are_refused() {
    let config = Config::softmax_selected(2);
    let ids = [0u8; 4];
    let tape = Forced::new(Matrix::new(&ids[..], 2, 2).unwrap());
    let with = |forced: Forced<'static, Host>| move |call: &mut Forward<'_, Host>| call.routes = Routes::Forced(forced);
    let leaked: &'static [u8] = Box::leak(Box::new([0u8; 4]));
    let wide = Forced::new(Matrix::new(leaked, 2, 2).unwrap());
    assert_eq!(tape.ids.element(), Element::U8);
    says(&refused(&config, 512, with(wide)), Kind::Dtype, &["u8", "512 experts", "u16"]);
    says(&refused(&config, 256, with(wide)), Kind::Dtype, &["255", "sentinel", "u16"]);
    assert!(refused(&config, 256, with(Forced { has_sentinel: false, ..wide })).is_empty());
    assert!(refused(&config, 255, with(wide)).is_empty());
    let floats: &'static [f32] = Box::leak(Box::new([0f32; 4]));
    let longs: &'static [i64] = Box::leak(Box::new([0i64; 4]));
    says(&refused(&config, 8, with(Forced::new(Matrix::new(floats, 2, 2).unwrap()))), Kind::Dtype, &["hold f32"]);
    says(&refused(&config, 8, with(Forced::new(Matrix::new(longs, 2, 2).unwrap()))), Kind::Dtype, &["hold i64"]);
    // k: said by the configuration, else by the routes.
    let three = Config { top_k: Some(3), ..config.clone() };
    says(&refused(&three, 8, with(wide)), Kind::Shape, &["2 experts per row, needs 3"]);
}

#[test]
fn arrays_of_the_wrong_size_type_or_place_are_refused_together() {
    let config = Config::softmax_selected(2);
    let (bias, mask, ids) = (vec![0f32; 7], vec![0u8; 3], vec![0i32; 4]);
    let found = refused(&config, 8, |call| {
        call.selection_bias = Some(View::from(Box::leak(bias.clone().into_boxed_slice()) as &[f32]));
        call.token_mask = Some(View::from(Box::leak(mask.clone().into_boxed_slice()) as &[u8]));
        call.lse = Some((Box::leak(vec![0f32; 2].into_boxed_slice()) as &mut [f32]).into());
        call.topk_ids = (Box::leak(ids.clone().into_boxed_slice())[..3]).as_mut().into();
    });
    says(&found, Kind::Shape, &["selection_bias", "[7]", "[8]"]);
    says(&found, Kind::Shape, &["token_mask", "[3]", "[2]"]);
    says(&found, Kind::Shape, &["topk_ids", "[3]", "[4]"]);
    says(&found, Kind::Config, &["lse", "Softmax"]);

    let null = refused(&config, 8, |call| {
        // SAFETY: the call is only validated; nothing follows the pointer.
        call.token_mask = Some(unsafe { View::from_raw(0, 2) });
        // SAFETY: likewise.
        call.selection_bias = Some(unsafe { View::from_raw(0x1002, 8) });
    });
    says(&null, Kind::Alignment, &["token_mask", "null"]);
    says(&null, Kind::Alignment, &["selection_bias", "0x1002", "4"]);
}

#[test]
fn outputs_that_do_not_fit_are_refused() {
    fn leaked<T: Clone>(value: T, len: usize) -> &'static mut [T] {
        Box::leak(vec![value; len].into_boxed_slice())
    }
    let config = Config::softmax_selected(2);
    let record = |element_experts: usize, filler, record: MatrixMut<'static, Host>| {
        let config = Config { filler, ..Config::softmax_selected(2) };
        refused(&config, element_experts, |call| call.record_ids = Some(record))
    };
    let bytes = || MatrixMut::new(leaked(0u8, 4), 2, 2).unwrap();
    says(&record(512, Filler::RoundRobin, bytes()), Kind::Dtype, &["record_ids", "u8", "512 experts", "u16"]);
    says(&record(256, Filler::Sentinel, bytes()), Kind::Dtype, &["record_ids", "255", "sentinel"]);
    assert!(record(256, Filler::RoundRobin, bytes()).is_empty());
    assert!(record(255, Filler::Sentinel, bytes()).is_empty());
    let floats = MatrixMut::new(leaked(0f32, 4), 2, 2).unwrap();
    says(&record(8, Filler::RoundRobin, floats), Kind::Dtype, &["record_ids", "hold f32"]);
    let narrow = MatrixMut::new(leaked(0u16, 2), 2, 1).unwrap();
    says(&record(8, Filler::RoundRobin, narrow), Kind::Shape, &["record_ids", "[2, 1]", "[2, 2]"]);
    let found = refused(&config, 9, |call| {
        call.expert_scale = Some(View::from(&*leaked(1f32, 8)));
        call.dense_probs = Some(MatrixMut::new(leaked(bf16::ONE, 16), 2, 8).unwrap());
        call.bytemap = Some(leaked(0u8, 17).into());
        call.bitmap = Some(leaked(0u8, 3).into());
        call.cutoff = Some(leaked(0f32, 1).into());
    });
    says(&found, Kind::Shape, &["expert_scale", "[8]", "[9]"]);
    says(&found, Kind::Shape, &["dense_probs", "[2, 8]", "[2, 9]"]);
    says(&found, Kind::Dtype, &["dense_probs", "bf16", "f32"]);
    says(&found, Kind::Shape, &["bytemap", "[17]", "[18]"]);
    says(&found, Kind::Shape, &["bitmap", "[3]", "[4]"]);
    says(&found, Kind::Shape, &["cutoff", "[1]", "[2]"]);

    let shared = leaked(0u8, 16);
    let address = shared.as_ptr() as usize;
    let found = refused(&config, 8, |call| {
        call.bytemap = Some(shared.into());
        // SAFETY: the call is only validated; nothing follows the pointers.
        call.bitmap = Some(unsafe { moerl::memory::ViewMut::from_raw(address + 15, 2) });
        // SAFETY: likewise.
        let tape = unsafe { moerl::memory::ViewMut::<u8, Host>::from_raw(address + 2, 4) };
        call.record_ids = Some(MatrixMut::new(tape, 2, 2).unwrap());
    });
    says(&found, Kind::Overlap, &["bytemap", "bitmap"]);
    says(&found, Kind::Overlap, &["record_ids", "bytemap"]);
}

#[test]
fn outputs_that_share_memory_are_refused() {
    let config = Config::softmax_selected(2);
    let logits = vec![1f32; 16];
    let mut ids = vec![0i32; 4];
    let mut weights = vec![0f32; 4];
    let address = weights.as_ptr() as usize;
    let mut call =
        Forward::new(Matrix::new(&logits, 2, 8).unwrap(), &mut ids, MatrixMut::new(&mut weights, 2, 2).unwrap());
    // SAFETY: the call is only validated; nothing follows the pointer.
    call.selected_logits = Some(unsafe { moerl::memory::ViewMut::from_raw(address + 8, 4) });
    says(&problems(call.validate(&config).map(|_| ())), Kind::Overlap, &["topk_weights", "selected_logits"]);
}

#[test]
fn backward_asks_for_what_it_needs() {
    let config = Config::softmax(2);
    let (dw, ids, selected) = (vec![0f32; 4], vec![0i32; 4], vec![0f32; 4]);
    let mut d = vec![0f32; 16];
    let call = Backward::new(Matrix::new(&dw, 2, 2).unwrap(), &ids, &selected, MatrixMut::new(&mut d, 2, 8).unwrap());
    let found = problems(call.validate(&config).map(|_| ()));
    says(&found, Kind::MissingInput, &["lse"]);
    says(&found, Kind::MissingInput, &["router_logits"]);
    assert!(problems(call.validate(&Config::softmax_selected(2)).map(|_| ())).is_empty());
    let three = problems(call.validate(&Config::softmax_selected(3)).map(|_| ()));
    says(&three, Kind::Shape, &["d_topk_weights", "[2, 2]", "[2, 3]"]);
}

#[test]
fn an_empty_batch_is_no_work_and_no_fault() {
    use moerl::Backend;
    let (logits, mut ids, mut weights) = (Vec::<bf16>::new(), Vec::<i32>::new(), Vec::<f32>::new());
    let call = Forward::new(Matrix::new(&logits, 0, 8).unwrap(), &mut ids, MatrixMut::new(&mut weights, 0, 2).unwrap());
    moerl::Reference.gate_forward(&(), &Config::softmax_selected(2), call).unwrap();
    #[cfg(feature = "emulate")]
    {
        let emulator = moerl::Emulator::new();
        let call =
            Forward::new(Matrix::new(&logits, 0, 8).unwrap(), &mut ids, MatrixMut::new(&mut weights, 0, 2).unwrap());
        emulator.gate_forward(&(), &Config::softmax_selected(2), call).unwrap();
        assert!(emulator.launches().is_empty());
    }
}

#[test]
fn every_preset_has_one_name_and_a_router_that_validates() {
    for (i, &preset) in Preset::ALL.iter().enumerate() {
        assert_eq!(Preset::from_name(preset.name()), Some(preset));
        assert!(Preset::ALL[..i].iter().all(|other| other.name() != preset.name()));
        let config = Config::preset(preset);
        let given = Config { scaling_factor: config.scaling_factor.or(Some(1.0)), ..config };
        given.validate().unwrap();
    }
    assert_eq!(Preset::from_name("qwen4"), None);
    assert_eq!(Preset::ALL.len(), 30);
    let deepseek = Config::preset(Preset::DeepseekV3);
    assert_eq!(deepseek.groups, Some(Groups { count: 8, admitted: 4, top: Some(2) }));
    assert_eq!((deepseek.preset_top_k, deepseek.scaling_factor), (Some(8), Some(2.5)));
    assert_eq!(Config::preset(Preset::Moonlight).scaling_factor, None);
}

#[test]
fn k_is_the_explicit_one_then_the_routes_then_the_presets() {
    let preset = Config::preset(Preset::Qwen3);
    assert_eq!(preset.resolve_top_k(None), Some(8));
    assert_eq!(preset.resolve_top_k(Some(6)), Some(6));
    assert_eq!(Config { top_k: Some(4), ..preset }.resolve_top_k(Some(6)), Some(4));
    assert_eq!(Config::preset(Preset::Ernie4_5).resolve_top_k(None), None);
}
