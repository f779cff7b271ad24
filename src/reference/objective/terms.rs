//! The divergence from the reference policy.

use super::policy::sign;
use super::{Coefficient, Config, KlForm, Token, is_inside, times};

/// Value and derivative by l.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Divergence {
    pub(super) value: f64,
    pub(super) slope: f64,
    /// A clamp holds the value.
    is_bounded: bool,
}

/// The estimator without an importance ratio, of x = r − l, clamped as configured.
pub(super) fn plain_divergence(config: &Config, to_ref: f64) -> Divergence {
    let Some(kl) = config.kl else { return Divergence::default() };
    let input = kl.input_clamp.unwrap_or(f64::INFINITY);
    let output = kl.output_clamp.unwrap_or(f64::INFINITY);
    let x = to_ref.clamp(-input, input);
    let (value, slope) = match kl.form {
        KlForm::K1 => (-x, 1.0),
        KlForm::Abs => (x.abs(), -sign(x)),
        KlForm::K2 => (x * x / 2.0, -x),
        KlForm::K3 | KlForm::K3IsToken | KlForm::K3IsSequence => (x.exp_m1() - x, -x.exp_m1()),
    };
    let is_bounded = x != to_ref || value.abs() > output;
    Divergence { value: value.clamp(-output, output), slope: if is_bounded { 0.0 } else { slope }, is_bounded }
}

/// The estimator as configured.
pub(super) fn divergence_of(config: &Config, token: &Token, segment: &Coefficient, ratio: f64) -> Divergence {
    let Some(kl) = config.kl else { return Divergence::default() };
    let plain = plain_divergence(config, token.to_ref);
    let found = match kl.form {
        KlForm::K3IsToken => {
            let slope = match is_inside(config.saturation, token.delta) {
                // k3 − expm1(x), of which nothing is left where both are large.
                true if !plain.is_bounded => -token.to_ref,
                true => plain.value,
                false => plain.slope,
            };
            Divergence { value: times(plain.value, ratio), slope: times(slope, ratio), ..plain }
        }
        KlForm::K3IsSequence => Divergence {
            value: times(plain.value, segment.sequence_ratio),
            // By way of s every token has a share in all values: Coefficient::shared.
            slope: times(plain.slope, segment.sequence_ratio),
            ..plain
        },
        _ => plain,
    };
    Divergence { slope: if kl.straight_through { -token.to_ref } else { found.slope }, ..found }
}
