//! The ledger of experts in plain f64 loops.

use crate::error::Result;
use crate::expert_ledger::{Advantages, ClipScale, Ledger, SquaredNorms, Tokens};
use crate::memory::Host;

/// What a token is to the ledger.
enum Token {
    Absent,
    Nonfinite,
    /// Its advantage, and its experts with their shares g̃.
    Counted(f64, Vec<(usize, f64)>),
}

fn token(tokens: &Tokens<'_, Host>, t: usize, experts: usize) -> Token {
    if tokens.loss_mask.is_some_and(|mask| mask.as_slice()[t] == 0) {
        return Token::Absent;
    }
    let (weights, advantage) = (tokens.topk_weights.row_f64(t), f64::from(tokens.advantages.as_slice()[t]));
    if !advantage.is_finite() || weights.iter().any(|w| !w.is_finite()) {
        return Token::Nonfinite;
    }
    let sum: f64 = weights.iter().sum();
    if sum == 0.0 {
        return Token::Absent;
    }
    let ids = &tokens.topk_ids.as_slice()[t * weights.len()..];
    let shares = ids.iter().zip(&weights).map(|(&e, w)| (e as usize, w / sum));
    Token::Counted(advantage, shares.filter(|(e, _)| *e < experts).collect())
}

/// [`Backend::expert_ledger`](crate::Backend::expert_ledger).
pub(super) fn ledger(mut call: Ledger<'_, Host>) -> Result<()> {
    call.validate()?;
    let mut nonfinite = 0;
    for t in 0..call.tokens.len() {
        match token(&call.tokens, t, call.sums.len()) {
            Token::Absent => {}
            Token::Nonfinite => nonfinite += 1,
            Token::Counted(advantage, shares) => {
                for (e, share) in shares {
                    let away = advantage - call.shift.map_or(0.0, |shift| shift.as_slice()[e]);
                    let sums = &mut call.sums.as_mut_slice()[e];
                    sums.n += 1;
                    sums.gate += share;
                    sums.advantage += share * away;
                    sums.advantage_square += share * away * away;
                }
            }
        }
    }
    if let Some(to) = &mut call.nonfinite {
        to.as_mut_slice()[0] += nonfinite;
    }
    Ok(())
}

/// [`Backend::expert_advantages`](crate::Backend::expert_advantages).
pub(super) fn advantages(mut call: Advantages<'_, Host>) -> Result<()> {
    call.validate()?;
    let most = call.clip.map_or(f64::INFINITY, f64::from);
    for t in 0..call.tokens.len() {
        let Token::Counted(advantage, shares) = token(&call.tokens, t, call.mean.len()) else { continue };
        let terms = shares.iter().map(|&(e, share)| {
            let z = (advantage - call.mean.as_slice()[e]) * call.inverse_deviation.as_slice()[e];
            share * z.clamp(-most, most)
        });
        let to = &mut call.normalized.as_mut_slice()[t];
        *to = (f64::from(*to) + terms.sum::<f64>() / call.layers as f64) as f32;
    }
    Ok(())
}

/// [`Backend::expert_squared_norms`](crate::Backend::expert_squared_norms).
pub(super) fn squared_norms(mut call: SquaredNorms<'_, Host>) -> Result<()> {
    call.validate()?;
    for (e, to) in call.squares.as_mut_slice().iter_mut().enumerate() {
        *to += call.gradient.row_f64(e).iter().map(|x| x * x).sum::<f64>();
    }
    Ok(())
}

/// [`Backend::expert_clip_scale`](crate::Backend::expert_clip_scale).
pub(super) fn clip_scale(mut call: ClipScale<'_, Host>) -> Result<()> {
    call.validate()?;
    for (to, squares) in call.scale.as_mut_slice().iter_mut().zip(call.squares.as_slice()) {
        let scale = call.clip / (squares.sqrt() + 1e-6);
        *to = if scale >= 1.0 { 1.0 } else { scale as f32 };
    }
    Ok(())
}
