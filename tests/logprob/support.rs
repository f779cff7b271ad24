//! Calls on any backend from plain vectors.

use moerl::element::Float;
use moerl::error::Fault;
use moerl::logprob::{Backward, Config, Forward, Gradient, KeepSets, Partial, workspace_bytes};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Error};
use rand::RngExt;
use rand::rngs::StdRng;

pub use crate::common::formulas::*;
pub use crate::common::{canonical, canonical_bits, normal};

/// The arguments of a call. Element (r, j) of the logits is `logits[offset + r·stride + j]`.
#[derive(Clone, Debug)]
pub struct Inputs<T> {
    pub config: Config,
    pub logits: Vec<T>,
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
    pub offset: usize,
    /// `[rows, ids]`.
    pub tokens: Option<Vec<i64>>,
    pub ids: usize,
    pub wide_tokens: bool,
    pub keep: Option<Keep>,
    pub temperature: Option<Vec<f32>>,
    pub loss_mask: Option<Vec<u8>>,
    pub workspace: bool,
}

/// Keep-sets, row after row.
#[derive(Clone, Debug, PartialEq)]
pub struct Keep {
    pub ids: Vec<i32>,
    pub offsets: Vec<i64>,
}

impl Keep {
    pub fn of(sets: &[Vec<i32>]) -> Keep {
        let mut offsets = vec![0];
        for set in sets {
            offsets.push(offsets[offsets.len() - 1] + set.len() as i64);
        }
        Keep { ids: sets.concat(), offsets }
    }

    pub fn set(&self, row: usize) -> &[i32] {
        &self.ids[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }
}

impl<T: Float> Inputs<T> {
    /// Rows one behind the other, token `7·r mod V` in row r.
    pub fn new(rows: usize, columns: usize, logits: Vec<T>) -> Inputs<T> {
        assert_eq!(logits.len(), rows * columns);
        Inputs {
            config: Config::default(),
            logits,
            rows,
            columns,
            stride: columns,
            offset: 0,
            tokens: Some((0..rows).map(|r| (7 * r % columns) as i64).collect()),
            ids: 1,
            wide_tokens: false,
            keep: None,
            temperature: None,
            loss_mask: None,
            workspace: false,
        }
    }

    /// Normal logits of this standard deviation, random tokens.
    pub fn random(rng: &mut StdRng, rows: usize, columns: usize, deviation: f32) -> Inputs<T> {
        let logits = (0..rows * columns).map(|_| T::from_f32(deviation * normal(rng))).collect();
        let tokens = (0..rows).map(|_| rng.random_range(0..columns as i64)).collect();
        Inputs { tokens: Some(tokens), ..Inputs::new(rows, columns, logits) }
    }

    pub fn vocabulary(&self) -> usize {
        self.config.vocabulary.unwrap_or(self.columns)
    }

    /// The counted logits of a row.
    pub fn row(&self, row: usize) -> Vec<f64> {
        let start = self.offset + row * self.stride;
        self.logits[start..start + self.vocabulary()].iter().map(|x| f64::from(x.to_f32())).collect()
    }

    /// The counted logits of a row after the softcap.
    pub fn capped_row(&self, row: usize) -> Vec<f64> {
        self.row(row).iter().map(|&x| capped(&self.config, x).0).collect()
    }

    /// With the scale of the logits in it, where there is no softcap.
    pub fn temperature_of(&self, row: usize) -> f64 {
        let fold = if self.config.softcap.is_some() { 1.0 } else { f64::from(self.config.logit_scale) };
        f64::from(self.temperature.as_ref().map_or(self.config.temperature, |t| t[row])) / fold
    }

    /// The first token of a row.
    pub fn token(&self, row: usize) -> usize {
        self.tokens_of(row)[0] as usize
    }

    pub fn tokens_of(&self, row: usize) -> &[i64] {
        &self.tokens.as_ref().expect("the case has tokens")[row * self.ids..(row + 1) * self.ids]
    }

    /// The same rows with other tokens, `ids` of them each.
    pub fn with_tokens(&self, ids: usize, tokens: Vec<i64>) -> Inputs<T> {
        assert_eq!(tokens.len(), self.rows * ids);
        Inputs { ids, tokens: Some(tokens), ..self.clone() }
    }

    /// The same logits with other rows and alignment; what lies between them is NaN.
    pub fn laid_out(&self, offset: usize, stride: usize) -> Inputs<T> {
        let mut logits = vec![T::from_f32(f32::NAN); offset + self.rows * stride];
        for r in 0..self.rows {
            let from = self.offset + r * self.stride;
            logits[offset + r * stride..][..self.columns].copy_from_slice(&self.logits[from..from + self.columns]);
        }
        Inputs { logits, offset, stride, ..self.clone() }
    }

    /// Rows `chosen`, in this order.
    pub fn rows_of(&self, chosen: &[usize]) -> Inputs<T> {
        let pick = |r: &usize| &self.logits[self.offset + r * self.stride..][..self.columns];
        Inputs {
            logits: chosen.iter().flat_map(pick).copied().collect(),
            rows: chosen.len(),
            stride: self.columns,
            offset: 0,
            tokens: self.tokens.as_ref().map(|_| chosen.iter().flat_map(|&r| self.tokens_of(r).to_vec()).collect()),
            keep: self.keep.as_ref().map(|k| Keep::of(&chosen.iter().map(|&r| k.set(r).to_vec()).collect::<Vec<_>>())),
            temperature: self.temperature.as_ref().map(|t| chosen.iter().map(|&r| t[r]).collect()),
            loss_mask: self.loss_mask.as_ref().map(|m| chosen.iter().map(|&r| m[r]).collect()),
            ..self.clone()
        }
    }

    /// The same values in another type that holds them exactly.
    pub fn widened(&self) -> Inputs<f32> {
        Inputs {
            config: self.config.clone(),
            logits: self.logits.iter().map(|x| x.to_f32()).collect(),
            rows: self.rows,
            columns: self.columns,
            stride: self.stride,
            offset: self.offset,
            tokens: self.tokens.clone(),
            ids: self.ids,
            wide_tokens: self.wide_tokens,
            keep: self.keep.clone(),
            temperature: self.temperature.clone(),
            loss_mask: self.loss_mask.clone(),
            workspace: self.workspace,
        }
    }
}

/// Which outputs to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub logprobs: bool,
    pub entropy: bool,
    pub rest: bool,
    pub squares: bool,
    pub saved: bool,
    /// Ranks and the argmax.
    pub order: bool,
    pub kept: bool,
}

pub const NOTHING: Asked =
    Asked { logprobs: false, entropy: false, rest: false, squares: false, saved: false, order: false, kept: false };
/// What a trainer asks for.
pub const EVERYTHING: Asked =
    Asked { logprobs: true, entropy: true, rest: true, squares: true, saved: true, order: false, kept: false };
pub const WITH_ORDER: Asked = Asked { order: true, ..EVERYTHING };

/// What a forward call wrote; arrays not asked for stay at [`UNTOUCHED`].
#[derive(Clone, Debug)]
pub struct Outputs {
    pub logprobs: Vec<f32>,
    pub entropy: Vec<f32>,
    pub max: Vec<f32>,
    pub log_sum: Vec<f32>,
    pub lse: Vec<f32>,
    pub sum_p2: Vec<f32>,
    pub sum_sq: Vec<f32>,
    pub saved: Vec<Partial>,
    /// `[rows, ids]`.
    pub rank: Vec<i32>,
    pub argmax: Vec<i32>,
    /// `[rows, ids − 1]`.
    pub other_labels: Vec<f32>,
    pub kept_logprobs: Vec<f32>,
    pub kept_entropy: Vec<f32>,
    pub kept_mass: Vec<f32>,
    pub kept_saved: Vec<Partial>,
    pub label_added: u64,
    pub fault: Option<Fault>,
}

pub const UNTOUCHED: f32 = 12345.0;

/// The caller's number of every call.
pub const TAG: u16 = 513;

impl Outputs {
    /// Every bit of every row, NaN being one value: nothing says which NaN it is.
    pub fn bits(&self) -> Vec<[u32; 11]> {
        (0..self.entropy.len()).map(|r| self.row_bits(r)).collect()
    }

    /// How many tokens a row has.
    pub fn ids(&self) -> usize {
        self.logprobs.len() / self.entropy.len()
    }

    /// As if each row had its first token alone.
    pub fn first_ids(&self) -> Outputs {
        Outputs { logprobs: self.logprobs.chunks(self.ids()).map(|row| row[0]).collect(), ..self.clone() }
    }

    /// As [`row_bits`](Self::row_bits), with all tokens, ranks and the argmax.
    pub fn long_row_bits(&self, r: usize) -> Vec<u32> {
        let ids = self.ids();
        let mut bits = self.row_bits(r).to_vec();
        bits.extend(canonical(&self.logprobs[r * ids..(r + 1) * ids]));
        bits.extend(canonical(&self.other_labels[r * (ids - 1)..(r + 1) * (ids - 1)]));
        bits.extend(self.rank[r * ids..(r + 1) * ids].iter().map(|&rank| rank as u32));
        bits.push(self.argmax[r] as u32);
        bits.extend(self.kept_bits(r));
        bits
    }

    /// Every bit of the kept outputs.
    pub fn kept_bits(&self, r: usize) -> Vec<u32> {
        let s = &self.kept_saved[r];
        let values =
            [self.kept_logprobs[r], self.kept_entropy[r], self.kept_mass[r], s.max_logit, s.sum, s.weighted, s.label];
        canonical(&values).collect()
    }

    pub fn row_bits(&self, r: usize) -> [u32; 11] {
        let s = &self.saved[r];
        [
            self.logprobs[r * self.ids()],
            self.entropy[r],
            self.max[r],
            self.log_sum[r],
            self.lse[r],
            self.sum_p2[r],
            self.sum_sq[r],
            s.max_logit,
            s.sum,
            s.weighted,
            s.label,
        ]
        .map(canonical_bits)
    }

    pub fn floats(&self, r: usize) -> [f32; 6] {
        [self.logprobs[r * self.ids()], self.entropy[r], self.max[r], self.log_sum[r], self.lse[r], self.sum_p2[r]]
    }
}

fn narrow(tokens: &[i64]) -> Vec<i32> {
    tokens.iter().map(|&t| i32::try_from(t).expect("a token that i32 holds")).collect()
}

pub fn forward<B: Backend, T: Float>(backend: &B, inputs: &Inputs<T>, asked: Asked) -> Outputs {
    try_forward(backend, inputs, asked).expect("a valid call")
}

pub fn try_forward<B: Backend, T: Float>(backend: &B, inputs: &Inputs<T>, asked: Asked) -> Result<Outputs, Error> {
    let stream = backend.stream()?;
    let logits = backend.upload(&stream, &inputs.logits)?;
    let view = logits.view().slice(inputs.offset..inputs.logits.len());
    let mut call = Forward::new(Matrix::strided(view, inputs.rows, inputs.columns, inputs.stride)?);

    let tokens = inputs.tokens.as_deref().unwrap_or(&[]);
    let (wide, small);
    if inputs.tokens.is_some() && inputs.wide_tokens {
        // With a stride of their own.
        let strided: Vec<i64> = tokens.chunks(inputs.ids).flat_map(|row| [row, &[i64::MIN]].concat()).collect();
        wide = backend.upload(&stream, &strided)?;
        call.tokens = Some(Matrix::strided(wide.view(), tokens.len() / inputs.ids, inputs.ids, inputs.ids + 1)?);
    } else if inputs.tokens.is_some() {
        small = backend.upload(&stream, &narrow(tokens))?;
        call.tokens = Some(Matrix::new(small.view(), tokens.len() / inputs.ids, inputs.ids)?);
    }
    let temperature = inputs.temperature.as_ref().map(|t| backend.upload(&stream, t)).transpose()?;
    call.temperature = temperature.as_ref().map(Buffer::view);
    let loss_mask = inputs.loss_mask.as_ref().map(|m| backend.upload(&stream, m)).transpose()?;
    call.loss_mask = loss_mask.as_ref().map(Buffer::view);

    let keep = inputs
        .keep
        .as_ref()
        .map(|k| Ok::<_, Error>((backend.upload(&stream, &k.ids)?, backend.upload(&stream, &k.offsets)?)));
    let keep = keep.transpose()?;
    call.keep = keep.as_ref().map(|(ids, offsets)| KeepSets { ids: ids.view(), offsets: offsets.view() });

    let (rows, ids) = (inputs.rows, inputs.ids);
    let mut outputs = Vec::new();
    for len in [rows * ids, rows, rows, rows, rows, rows, rows, rows * (ids - 1), rows, rows, rows] {
        outputs.push(backend.upload(&stream, &vec![UNTOUCHED; len])?);
    }
    let record = Partial { label: UNTOUCHED, ..bytemuck::Zeroable::zeroed() };
    let mut saved = backend.upload(&stream, &vec![record; rows])?;
    let mut kept_saved = backend.upload(&stream, &vec![record; rows])?;
    let mut rank = backend.upload(&stream, &vec![UNTOUCHED as i32; rows * ids])?;
    let mut argmax = backend.upload(&stream, &vec![UNTOUCHED as i32; rows])?;
    let mut label_added = backend.allocate::<u64>(&stream, 1)?;
    let scratch = if inputs.workspace { workspace_bytes(inputs.rows, inputs.vocabulary()) } else { 0 };
    let mut scratch = backend.allocate::<u8>(&stream, scratch)?;
    let mut errors = backend.error_word(&stream)?;

    let [logprobs, entropy, max, log_sum, lse, sum_p2, sum_sq, other_labels, kept_logprobs, kept_entropy, kept_mass] =
        &mut outputs[..]
    else {
        unreachable!()
    };
    call.logprobs = asked.logprobs.then(|| logprobs.view_mut());
    call.entropy = asked.entropy.then(|| entropy.view_mut());
    call.max = asked.rest.then(|| max.view_mut());
    call.log_sum = asked.rest.then(|| log_sum.view_mut());
    call.lse = asked.rest.then(|| lse.view_mut());
    call.sum_p2 = asked.squares.then(|| sum_p2.view_mut());
    call.sum_sq = asked.squares.then(|| sum_sq.view_mut());
    call.saved = asked.saved.then(|| saved.view_mut());
    call.rank = (asked.order && inputs.tokens.is_some()).then(|| rank.view_mut());
    call.argmax = asked.order.then(|| argmax.view_mut());
    call.other_labels = (asked.saved && ids > 1).then(|| other_labels.view_mut());
    call.kept_logprobs = asked.kept.then(|| kept_logprobs.view_mut());
    call.kept_entropy = asked.kept.then(|| kept_entropy.view_mut());
    call.kept_mass = (asked.kept && asked.saved).then(|| kept_mass.view_mut());
    call.kept_saved = asked.kept.then(|| kept_saved.view_mut());
    call.label_added = asked.kept.then(|| label_added.view_mut());
    call.workspace = inputs.workspace.then(|| scratch.view_mut());
    call.errors = Some(errors.view_mut());
    call.tag = TAG;
    backend.logprob_forward(&stream, &inputs.config, call)?;

    let fault = match backend.check(&stream, &mut errors) {
        Ok(()) => None,
        Err(Error::Data(fault)) => Some(fault),
        Err(other) => return Err(other),
    };
    let after = backend.download(&stream, logits.view())?;
    assert!(
        bytemuck::cast_slice::<T, u8>(&after) == bytemuck::cast_slice::<T, u8>(&inputs.logits),
        "forward wrote logits"
    );
    let mut fetched = outputs.iter().map(|b| backend.download(&stream, b.view()));
    let mut take = || fetched.next().expect("an output");
    Ok(Outputs {
        logprobs: take()?,
        entropy: take()?,
        max: take()?,
        log_sum: take()?,
        lse: take()?,
        sum_p2: take()?,
        sum_sq: take()?,
        other_labels: take()?,
        kept_logprobs: take()?,
        kept_entropy: take()?,
        kept_mass: take()?,
        saved: backend.download(&stream, saved.view())?,
        kept_saved: backend.download(&stream, kept_saved.view())?,
        rank: backend.download(&stream, rank.view())?,
        argmax: backend.download(&stream, argmax.view())?,
        label_added: backend.download(&stream, label_added.view())?[0],
        fault,
    })
}

/// Upstream gradients per row.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// `[rows, ids]`.
    pub logprobs: Option<Vec<f32>>,
    pub entropy: Option<Vec<f32>>,
    pub lse: Option<Vec<f32>>,
    pub kept: Option<KeptUpstream>,
}

/// Those of the keep-sets, with what the forward call saved of them.
#[derive(Clone, Debug)]
pub struct KeptUpstream {
    pub saved: Vec<Partial>,
    pub logprobs: Vec<f32>,
    pub entropy: Vec<f32>,
}

impl Upstream {
    pub fn random(rng: &mut StdRng, rows: usize) -> Upstream {
        let mut some = || Some((0..rows).map(|_| normal(rng)).collect());
        Upstream { logprobs: some(), entropy: some(), lse: some(), kept: None }
    }

    pub fn of(&self, row: usize) -> [f64; 3] {
        [&self.logprobs, &self.entropy, &self.lse].map(|a| a.as_ref().map_or(0.0, |a| f64::from(a[row])))
    }

    pub fn rows_of(&self, chosen: &[usize]) -> Upstream {
        let pick = |a: &Option<Vec<f32>>| a.as_ref().map(|a| chosen.iter().map(|&r| a[r]).collect());
        Upstream { logprobs: pick(&self.logprobs), entropy: pick(&self.entropy), lse: pick(&self.lse), kept: None }
    }
}

/// Where the gradient goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    InPlace,
    /// The logits' layout, in the logits' type or in f32.
    Apart,
    /// Another first element and row stride.
    Elsewhere {
        offset: usize,
        stride: usize,
    },
}

/// What fills the gradient's memory before the call.
pub const BEFORE: f32 = -77.0;

/// The whole memory of the gradient after the call, in the type G (in place: T, and G must be T).
pub fn backward<B: Backend, T: Float, G: Float>(
    backend: &B,
    inputs: &Inputs<T>,
    saved: &[Partial],
    up: &Upstream,
    target: Target,
) -> Vec<G> {
    try_backward(backend, inputs, saved, up, target).expect("a valid call")
}

pub fn try_backward<B: Backend, T: Float, G: Float>(
    backend: &B,
    inputs: &Inputs<T>,
    saved: &[Partial],
    up: &Upstream,
    target: Target,
) -> Result<Vec<G>, Error> {
    let stream = backend.stream()?;
    let mut logits = backend.upload(&stream, &inputs.logits)?;
    let saved = backend.upload(&stream, saved)?;
    let tokens = inputs.tokens.as_ref().map(|t| backend.upload(&stream, t)).transpose()?;
    let temperature = inputs.temperature.as_ref().map(|t| backend.upload(&stream, t)).transpose()?;
    let loss_mask = inputs.loss_mask.as_ref().map(|m| backend.upload(&stream, m)).transpose()?;
    let upload = |a: &Option<Vec<f32>>| a.as_ref().map(|a| backend.upload(&stream, a)).transpose();
    let (d_logprobs, d_entropy, d_lse) = (upload(&up.logprobs)?, upload(&up.entropy)?, upload(&up.lse)?);
    let keep = inputs
        .keep
        .as_ref()
        .map(|k| Ok::<_, Error>((backend.upload(&stream, &k.ids)?, backend.upload(&stream, &k.offsets)?)));
    let keep = keep.transpose()?;
    let kept_saved = up.kept.as_ref().map(|k| backend.upload(&stream, &k.saved)).transpose()?;
    let d_kept_logprobs = upload(&up.kept.as_ref().map(|k| k.logprobs.clone()))?;
    let d_kept_entropy = upload(&up.kept.as_ref().map(|k| k.entropy.clone()))?;

    let (offset, stride) = match target {
        Target::Elsewhere { offset, stride } => (offset, stride),
        _ => (inputs.offset, inputs.stride),
    };
    let (rows, columns, len) = (inputs.rows, inputs.columns, inputs.logits.len());
    let mut apart = backend.upload(&stream, &vec![G::from_f32(BEFORE); offset + rows * stride])?;
    let gradient = if target == Target::InPlace {
        assert_eq!(T::ELEMENT, G::ELEMENT);
        Gradient::InPlace(MatrixMut::strided(logits.view_mut().slice(inputs.offset..len), rows, columns, stride)?)
    } else {
        Gradient::Into {
            logits: Matrix::strided(logits.view().slice(inputs.offset..len), rows, columns, inputs.stride)?,
            d_logits: MatrixMut::strided(
                apart.view_mut().slice(offset..offset + rows * stride),
                rows,
                columns,
                stride,
            )?,
        }
    };
    let mut call = Backward::new(gradient, saved.view());
    call.tokens = match &tokens {
        Some(tokens) => Some(Matrix::new(tokens.view(), tokens.view().len() / inputs.ids, inputs.ids)?),
        None => None,
    };
    call.temperature = temperature.as_ref().map(Buffer::view);
    call.loss_mask = loss_mask.as_ref().map(Buffer::view);
    call.d_logprobs = d_logprobs.as_ref().map(Buffer::view);
    call.d_entropy = d_entropy.as_ref().map(Buffer::view);
    call.d_lse = d_lse.as_ref().map(Buffer::view);
    call.keep = keep.as_ref().map(|(ids, offsets)| KeepSets { ids: ids.view(), offsets: offsets.view() });
    call.kept_saved = kept_saved.as_ref().map(Buffer::view);
    call.d_kept_logprobs = d_kept_logprobs.as_ref().map(Buffer::view);
    call.d_kept_entropy = d_kept_entropy.as_ref().map(Buffer::view);
    backend.logprob_backward(&stream, &inputs.config, call)?;
    if target == Target::InPlace {
        Ok(bytemuck::cast_slice(&backend.download(&stream, logits.view())?).to_vec())
    } else {
        backend.download(&stream, apart.view())
    }
}

/// The rows of a gradient in memory.
pub fn gradient_rows<T: Float, G: Float>(inputs: &Inputs<T>, memory: &[G]) -> Vec<Vec<f32>> {
    (0..inputs.rows)
        .map(|r| memory[inputs.offset + r * inputs.stride..][..inputs.columns].iter().map(|x| x.to_f32()).collect())
        .collect()
}

/// Worst errors in units of the goals of the specification: 1e-6 + 2 ulp for logprob, log_sum, lse and max, 4e-6 + 2 ulp for the
/// entropy, 4e-6 relative for sum_p2. The sums of a row are good to about 2⁻²⁰ by their tree and by ex2; f64 finishes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Worst {
    pub logprob: f64,
    pub entropy: f64,
    pub log_sum: f64,
    pub lse: f64,
    pub max: f64,
    pub sum_p2: f64,
}

impl Worst {
    pub fn see(&mut self, found: &Outputs, r: usize, expected: &Exact) {
        let near = |x: f64| 1e-6 + 2.0 * ulp(x);
        self.logprob = self.logprob.max(of_goal(found.logprobs[r], expected.logprob, near(expected.logprob)));
        self.log_sum = self.log_sum.max(of_goal(found.log_sum[r], expected.log_sum, near(expected.log_sum)));
        self.lse = self.lse.max(of_goal(found.lse[r], expected.lse, near(expected.lse)));
        self.max = self.max.max(of_goal(found.max[r], expected.max, near(expected.max)));
        let entropy = of_goal(found.entropy[r], expected.entropy, 4e-6 + 2.0 * ulp(expected.entropy));
        self.entropy = self.entropy.max(entropy);
        self.sum_p2 = self.sum_p2.max(of_goal(found.sum_p2[r], expected.sum_p2, 4e-6 * expected.sum_p2));
    }

    pub fn assert_within_goals(&self, what: &str) {
        println!("{what}: worst over goal {self:.3?}");
        let Worst { logprob, entropy, log_sum, lse, max, sum_p2 } = *self;
        for (name, worst) in [
            ("logprob", logprob),
            ("entropy", entropy),
            ("log_sum", log_sum),
            ("lse", lse),
            ("max", max),
            ("sum_p2", sum_p2),
        ] {
            assert!(worst <= 1.0, "{what}: {name} is off by {worst} of its goal");
        }
    }
}

/// Runs every row against the f64 formulas; rows must have a valid token.
pub fn worst_of<B: Backend, T: Float>(backend: &B, inputs: &Inputs<T>) -> Worst {
    let found = forward(backend, inputs, EVERYTHING);
    let mut worst = Worst::default();
    for r in 0..inputs.rows {
        worst.see(&found, r, &exact(&inputs.capped_row(r), inputs.temperature_of(r), inputs.token(r)));
        assert!(found.logprobs[r] <= 0.0 && found.entropy[r] >= 0.0, "row {r}: {:?}", found.floats(r));
    }
    assert_eq!(found.fault, None);
    worst
}
