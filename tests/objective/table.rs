//! Values that can be checked by hand.

use moerl::Backend;
use moerl::objective::{
    Aggregation, Cap, Cispo, CispoCap, Config, Divergence, Dppo, Kl, KlForm, RatioLevel, Sapo, Variant, Vespo, Window,
};

use crate::case::{Case, run};

/// One segment of two tokens: old probabilities .20 and .10, new ones .25 and .30, so that ρ = (1.25, 3), s = √3.75.
fn two_tokens(advantage: f32) -> Case {
    let logs = |values: [f64; 2]| values.iter().map(|p| p.ln() as f32).collect::<Vec<_>>();
    Case {
        logprobs: logs([0.25, 0.30]),
        old_logprobs: Some(logs([0.20, 0.10])),
        ref_logprobs: Some(logs([0.30, 0.20])),
        advantages: vec![advantage],
        loss_mask: Some(vec![1, 1]),
        denominators: Some([2, 1, 1, 2]),
        ..Case::random(&[2], 0)
    }
}

pub fn two_tokens_give_the_values_of_the_table<B: Backend>(backend: &B) {
    let grpo = Config::ppo_clip(0.2, 0.2);
    let (gspo, token) = (Config::gspo(0.2, 0.2), Config::gspo_token(0.2, 0.2));
    let s = 3.75_f64.sqrt();
    for (name, config, advantage, loss, gradient) in [
        ("grpo", grpo.clone(), 1.0, -1.2, [0.0, 0.0]),
        ("grpo", grpo.clone(), -1.0, 2.125, [0.625, 1.5]),
        ("dual clip 2", grpo.clone().with_cap(Cap::Dual(2.0)), 1.0, -1.2, [0.0, 0.0]),
        ("dual clip 2", grpo.clone().with_cap(Cap::Dual(2.0)), -1.0, 1.625, [0.625, 0.0]),
        ("delta 1.1", grpo.clone().with_cap(Cap::Delta(1.1)), 1.0, -1.1, [0.0, 0.0]),
        ("delta 1.1", grpo.with_cap(Cap::Delta(1.1)), -1.0, 1.2, [0.0, 0.0]),
        ("gspo", gspo.clone(), 1.0, -1.2, [0.0, 0.0]),
        ("gspo", gspo.clone(), -1.0, s, [s / 2.0, s / 2.0]),
        ("gspo + delta 1.5", gspo.clone().with_cap(Cap::Delta(1.5)), 1.0, -1.2, [0.0, 0.0]),
        ("gspo + delta 1.5", gspo.clone().with_cap(Cap::Delta(1.5)), -1.0, 1.5, [0.0, 0.0]),
        ("gspo + delta 2.5", gspo.clone().with_cap(Cap::Delta(2.5)), 1.0, -1.2, [0.0, 0.0]),
        ("gspo + delta 2.5", gspo.with_cap(Cap::Delta(2.5)), -1.0, s, [s / 2.0, s / 2.0]),
        ("gspo_token", token.clone(), 1.0, -1.2, [0.0, 0.0]),
        ("gspo_token", token, -1.0, s, [s / 2.0, s / 2.0]),
    ] {
        let found = run(backend, &config, &two_tokens(advantage));
        // f32 inputs: ρ is known to 2 ulp and half an ulp of the logarithms, 5e-7 relative.
        assert!(
            (found.loss - loss).abs() < 1e-6 * loss.abs(),
            "{name}, A = {advantage}: loss {} not {loss}",
            found.loss
        );
        for (found, expected) in found.d_logprobs.iter().zip(gradient) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-6 * expected.abs(), "{name}, A = {advantage}: gradient {found} not {expected}");
        }
        assert!((f64::from(found.sequence_ratio[0]) - s).abs() < 1e-6 * s, "{name}: s {}", found.sequence_ratio[0]);
        assert!((f64::from(found.ratio[1]) - 3.0).abs() < 2e-6, "{name}: rho {}", found.ratio[1]);
    }
}

/// Loss and gradients to the six digits of the table: half a unit of the last, for each of two tokens in the loss, beside what f32 rounds.
fn assert_values<B: Backend>(backend: &B, name: &str, config: &Config, case: &Case, loss: Option<f64>, g: [f64; 2]) {
    let found = run(backend, config, case);
    if let Some(loss) = loss {
        assert!((found.loss - loss).abs() < 2e-6 * loss.abs().max(0.6), "{name}: loss {} not {loss}", found.loss);
    }
    for (found, expected) in found.d_logprobs.iter().zip(g) {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= 7e-7 + 1e-6 * expected.abs(), "{name}: gradient {found} not {expected}");
    }
}

pub fn every_variant_gives_the_values_of_the_table<B: Backend>(backend: &B) {
    let window = CispoCap::Window(Window::new(0.2, 0.2));
    let cispo = |cap, level| Config::new(Variant::Cispo(Cispo { cap, level, unified_mask: None }));
    let raw = CispoCap::Raw { max: 2.0 };
    let sapo = |level| Config::new(Variant::Sapo(Sapo { level, ..Sapo::default() }));
    let dppo = |cap| {
        let divergence = Divergence::TotalVariation;
        let dppo = Dppo { divergence, low: 0.1, high: 0.1, cap };
        Config::new(Variant::Dppo(dppo))
    };
    let s = 0.968246;
    for (name, config, advantage, loss, gradient) in [
        ("cispo window", cispo(window, RatioLevel::Token), 1.0, None, [-0.6, -0.6]),
        ("cispo window", cispo(window, RatioLevel::Token), -1.0, None, [0.6, 0.6]),
        ("cispo raw", cispo(raw, RatioLevel::Token), 1.0, None, [-0.625, -1.0]),
        ("cispo raw", cispo(raw, RatioLevel::Token), -1.0, None, [0.625, 1.0]),
        ("cispo sequence", cispo(raw, RatioLevel::Sequence), 1.0, Some(2.508015), [-s, -s]),
        ("cispo sequence", cispo(raw, RatioLevel::Sequence), -1.0, Some(-2.508015), [s, s]),
        ("gmpo", Config::new(Variant::Gmpo(Window::new(0.4, 0.4))), 1.0, Some(-1.365570), [-0.682785, 0.0]),
        ("gmpo", Config::new(Variant::Gmpo(Window::new(0.4, 0.4))), -1.0, Some(1.936492), [s, s]),
        ("sapo", sapo(RatioLevel::Token), 1.0, Some(-2.885947), [-0.615335, -0.629962]),
        ("sapo", sapo(RatioLevel::Token), -1.0, Some(2.773627), [0.614356, 0.583168]),
        ("sapo sequence", sapo(RatioLevel::Sequence), 1.0, Some(-2.873562), [-0.783526, -0.783526]),
        ("sapo sequence", sapo(RatioLevel::Sequence), -1.0, Some(2.772441), [0.767326, 0.767326]),
        ("luspo", Config::luspo(0.2, 0.2), 1.0, Some(-2.4), [0.0, 0.0]),
        ("luspo", Config::luspo(0.2, 0.2), -1.0, Some(3.872983), [1.936492, 1.936492]),
        ("dppo", dppo(f64::INFINITY), 1.0, Some(0.866434), [-0.625, 0.0]),
        ("dppo", dppo(f64::INFINITY), -1.0, Some(-2.672393), [0.625, 1.5]),
        ("dppo, cap 2", dppo(2.0), -1.0, Some(-2.070407), [0.625, 1.0]),
    ] {
        assert_values(backend, &format!("{name}, A = {advantage}"), &config, &two_tokens(advantage), loss, gradient);
    }
    // VESPO: phi of the whole ratio, 3.75; 1 where nothing moved.
    for (advantage, phi) in [(1.0, 0.003_673_95), (-1.0, 0.215_513)] {
        let config = Config::new(Variant::Vespo(Vespo::default())).with_aggregation(Aggregation::TokenSum);
        let g = -f64::from(advantage) * phi;
        assert_values(backend, "vespo", &config, &two_tokens(advantage), None, [g, g]);
        let case = Case { old_logprobs: None, ..two_tokens(advantage) };
        assert_values(backend, "vespo at 1", &config, &case, None, [-f64::from(advantage); 2]);
    }
    let square = Config::new(Variant::SquarePenalty { tau: 0.1 }).with_aggregation(Aggregation::TokenSum);
    let loss = Some(1.388784 + 1.264320);
    assert_values(backend, "square penalty", &square, &two_tokens(1.0), loss, [-0.977686, -0.890139]);
}

pub fn weights_of_a_geometric_mean_are_part_of_it<B: Backend>(backend: &B) {
    let config = Config::new(Variant::Gmpo(Window::new(0.4, 0.4)));
    let weighted = |advantage, weights| Case { weights: Some(weights), ..two_tokens(advantage) };
    let (plus, minus) = (weighted(1.0, vec![0.5, 1.0]), weighted(-1.0, vec![0.5, 1.0]));
    assert_values(backend, "gmpo, w", &config, &plus, Some(-0.965604), [-0.482802, 0.0]);
    assert_values(backend, "gmpo, w", &config, &minus, Some(1.369306), [0.684653, 0.684653]);
    // A weight of 0 leaves nothing of a product.
    assert_values(backend, "gmpo, w = 0", &config, &weighted(-1.0, vec![0.0, 1.0]), Some(0.0), [0.0, 0.0]);
}

pub fn divergences_give_the_values_of_the_table<B: Backend>(backend: &B) {
    let straight = |kl: Kl| Kl { straight_through: true, ..kl };
    let k3 = [0.0176784, 0.0721318];
    for (name, kl, values, gradient) in [
        ("k1", Kl::new(1.0, KlForm::K1), [-0.182322, 0.405465], [1.0, 1.0]),
        ("abs", Kl::new(1.0, KlForm::Abs), [0.182322, 0.405465], [-1.0, 1.0]),
        ("k2", Kl::new(1.0, KlForm::K2), [0.0166206, 0.0822010], [-0.182322, 0.405465]),
        ("k3", Kl::new(1.0, KlForm::K3), k3, [-0.2, 0.333333]),
        ("k3+", straight(Kl::new(1.0, KlForm::K3)), k3, [-0.182322, 0.405465]),
        ("k3, is", Kl::new(1.0, KlForm::K3IsToken), [0.0220981, 0.216395], [-0.227902, 1.216395]),
        (
            "k3+, clamped",
            straight(Kl { input_clamp: Some(0.1), output_clamp: Some(0.001), ..Kl::new(1.0, KlForm::K3) }),
            [0.001, 0.001],
            [-0.182322, 0.405465],
        ),
        (
            "k3, output clamped",
            Kl { output_clamp: Some(0.05), ..Kl::new(1.0, KlForm::K3) },
            [0.0176784, 0.05],
            [-0.2, 0.0],
        ),
    ] {
        // A = 0: nothing but the divergence is left.
        let config = Config::ppo_clip(0.2, 0.2).with_aggregation(Aggregation::TokenSum).with_kl(kl);
        let case = two_tokens(0.0);
        assert_values(backend, name, &config, &case, Some(values[0] + values[1]), gradient);
        for (found, expected) in run(backend, &config, &case).kl.iter().zip(values) {
            // Half a unit of the sixth digit, and what f32 rounds.
            assert!((f64::from(*found) - expected).abs() < 7e-7, "{name}: {found}");
        }
    }
    let config = Config::ppo_clip(0.2, 0.2).with_kl(Kl::new(1.0, KlForm::K3IsSequence));
    assert_values(backend, "k3, s", &config, &two_tokens(0.0), Some(0.0869584), [-0.150170, 0.366228]);
}

/// The first number above `x`.
fn above(x: f32) -> f32 {
    f32::from_bits(x.to_bits() + 1)
}

pub fn bounds_pass_the_gradient_and_the_next_number_does_not<B: Backend>(backend: &B) {
    let config = Config::ppo_clip(0.2, 0.28);
    let upper = 0.28_f64.ln_1p() as f32;
    // Δ = l − 0 for a negative bound, and 0 − o for a positive one: both are exact.
    let of = |l: f32, o: f32, advantage: f32| {
        let mut case = two_tokens(advantage);
        case.logprobs = vec![l, 0.0];
        case.old_logprobs = Some(vec![o, 0.0]);
        run(backend, &config, &case).d_logprobs[0]
    };
    assert!(of(0.0, -upper, 1.0) < 0.0);
    assert_eq!(of(0.0, -above(upper), 1.0).to_bits(), 0);
    let lower = (-0.2_f64).ln_1p() as f32;
    // The f32 bound lies on either side of the f64 one; one step inside passes for both, one outside for neither.
    assert!(of(f32::from_bits(lower.to_bits() - 1), 0.0, -1.0) > 0.0);
    assert_eq!(of(above(lower), 0.0, -1.0).to_bits(), 0);
    assert_eq!(of(0.0, 0.0, 0.0).to_bits(), 0);
}
