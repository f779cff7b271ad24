//! The numbers that a window and its cap come to.

use super::{Cap, Clip};

/// The bounds of a ratio, in the ratio and in its logarithm.
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

impl Bounds {
    /// With δ the value for A < 0 is max(min(x, δ), clip(x)): min(max(x, 1−εl), max(δ, 1+εh)) wherever δ ≥ 1−εl; a smaller δ is below the
    /// window, where the value is clip(x) throughout, so the cap is 1+εh there too.
    pub(crate) fn of(clip: Clip) -> Bounds {
        let (upper, lower) = (1.0 + clip.high, 1.0 - clip.low);
        let (log_upper, log_lower) =
            (clip.high.ln_1p(), if clip.low < 1.0 { (-clip.low).ln_1p() } else { f64::NEG_INFINITY });
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
