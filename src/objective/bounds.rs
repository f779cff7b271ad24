//! The numbers that a variant comes to.

use super::{Cap, Cispo, Clip, Dppo, Sapo, Variant, Vespo, Window};

/// The bounds of a ratio, in the ratio and in its logarithm. For a divergence from the old policy `upper` and `lower` say how far it may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Of the value for A > 0.
    pub(crate) upper: f64,
    pub(crate) log_upper: f64,
    /// Of the value for A < 0.
    pub(crate) lower: f64,
    pub(crate) log_lower: f64,
    /// What the value for A < 0 stops at; +∞ without a cap.
    pub(crate) cap: f64,
    pub(crate) log_cap: f64,
}

const NONE: Bounds = Bounds {
    upper: f64::INFINITY,
    log_upper: f64::INFINITY,
    lower: 0.0,
    log_lower: f64::NEG_INFINITY,
    cap: f64::INFINITY,
    log_cap: f64::INFINITY,
};

/// ln(1 − low) and ln(1 + high).
fn logarithms(Window { low, high }: Window) -> (f64, f64) {
    (if low < 1.0 { (-low).ln_1p() } else { f64::NEG_INFINITY }, high.ln_1p())
}

impl Bounds {
    pub(crate) fn of(variant: &Variant) -> Bounds {
        match *variant {
            Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip) => Bounds::of_clip(clip),
            Variant::Cispo(Cispo { cap, unified_mask, .. }) => {
                let (lower, upper) = cap.range();
                let (log_lower, log_upper) = unified_mask.map_or((lower.ln(), upper.ln()), logarithms);
                Bounds { upper, lower, log_lower, log_upper, ..NONE }
            }
            Variant::Gmpo(Window { low, high }) => Bounds { log_lower: -low, log_upper: high, ..NONE },
            Variant::MiniRl(window) => {
                let (log_lower, log_upper) = logarithms(window);
                Bounds { log_lower, log_upper, ..NONE }
            }
            Variant::Dppo(Dppo { low, high, cap, .. }) => Bounds { upper: high, lower: low, cap, ..NONE },
            _ => NONE,
        }
    }

    /// With δ the value for A < 0 is max(min(x, δ), clip(x)): min(max(x, 1−εl), max(δ, 1+εh)) wherever δ ≥ 1−εl; a smaller δ is below the
    /// window, where the value is clip(x) throughout, so the cap is 1+εh there too.
    fn of_clip(clip: Clip) -> Bounds {
        let (upper, lower) = (1.0 + clip.high, 1.0 - clip.low);
        let (log_lower, log_upper) = logarithms(Window::new(clip.low, clip.high));
        let open = Bounds { upper, log_upper, lower, log_lower, cap: f64::INFINITY, log_cap: f64::INFINITY };
        match clip.cap {
            Cap::None => open,
            Cap::Dual(c) => Bounds { cap: c, log_cap: c.ln(), ..open },
            Cap::Delta(d) => Bounds {
                upper: upper.min(d),
                log_upper: log_upper.min(d.ln()),
                cap: upper.max(d),
                log_cap: log_upper.max(d.ln()),
                ..open
            },
        }
    }
}

/// What shapes a variant's weight, by the sign of A.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// τ, k or λ of a penalty.
    pub(crate) positive: f64,
    pub(crate) negative: f64,
    /// λ of VESPO.
    pub(crate) positive_scale: f64,
    pub(crate) negative_scale: f64,
}

impl Rates {
    pub(crate) fn of(variant: &Variant) -> Rates {
        match *variant {
            Variant::Sapo(Sapo { tau_positive, tau_negative, .. }) => {
                Rates { positive: tau_positive, negative: tau_negative, ..Rates::default() }
            }
            Variant::Vespo(Vespo { positive, negative }) => Rates {
                positive: positive.0,
                negative: negative.0,
                positive_scale: positive.1,
                negative_scale: negative.1,
            },
            Variant::SquarePenalty { tau } => Rates { positive: tau, ..Rates::default() },
            Variant::KlCov { penalty } => Rates { positive: penalty, ..Rates::default() },
            _ => Rates::default(),
        }
    }
}
