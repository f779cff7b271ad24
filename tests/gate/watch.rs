//! A forward call with telemetry, in plain vectors.

use moerl::element::Float;
use moerl::gate::{ROW_COUNTS, RouterShift, Telemetry};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};

use crate::common;
use crate::harness::{Forwarded, Problem, forward_watched};

/// What a test asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// What needs the slots alone.
    Cheap,
    /// What needs the native choice too.
    Choice,
    /// Everything.
    All,
}

/// What a call is given besides, and what is in the aggregates before it.
#[derive(Clone, Debug)]
pub struct Given<T> {
    /// `[R, k]`
    pub recorded_weights: Option<Vec<f32>>,
    /// `[T, E]`, as the logits lie.
    pub ref_logits: Option<Vec<T>>,
    /// Ids and log-probabilities of the old policy.
    pub old: Option<(Vec<i32>, Vec<f32>)>,
    /// The aggregates of an earlier call.
    pub before: Option<Watched>,
}

impl<T> Default for Given<T> {
    fn default() -> Self {
        Given { recorded_weights: None, ref_logits: None, old: None, before: None }
    }
}

/// What came of it. Floats that were not asked for hold −77.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    pub forwarded: Option<Forwarded>,
    pub overlap: Vec<u8>,
    pub overlap_hist: Vec<u64>,
    pub changed: Vec<u8>,
    pub changed_layers: Vec<u16>,
    pub replaced: Vec<u8>,
    pub margin: Vec<f32>,
    pub deficit: Vec<f32>,
    pub forced_mass: Vec<f32>,
    pub gate_l1: Vec<f32>,
    pub set_kl: Vec<f32>,
    pub router_kl: Vec<f32>,
    pub d_router_kl: Vec<f32>,
    pub logprob_sel: Vec<f32>,
    pub shift: Vec<f32>,
    pub counts: Vec<u64>,
    pub native_counts: Vec<u64>,
    pub row_counts: Vec<u64>,
}

impl Watched {
    pub fn results(&self) -> &Forwarded {
        self.forwarded.as_ref().unwrap()
    }

    /// Every integer, and the bits of every float.
    pub fn bits(&self) -> (Vec<u64>, Vec<u32>) {
        let wide = |x: &[u8]| x.iter().map(|&x| u64::from(x)).collect::<Vec<_>>();
        let layers = self.changed_layers.iter().map(|&x| u64::from(x)).collect();
        let integers = [
            wide(&self.overlap),
            self.overlap_hist.clone(),
            wide(&self.changed),
            layers,
            wide(&self.replaced),
            self.counts.clone(),
            self.native_counts.clone(),
            self.row_counts.clone(),
        ];
        (integers.concat(), self.floats().iter().flat_map(|(_, x)| common::bits(x)).collect())
    }

    /// Every measure, with its name.
    pub fn floats(&self) -> [(&'static str, &[f32]); 9] {
        [
            ("margin", &self.margin),
            ("deficit", &self.deficit),
            ("forced_mass", &self.forced_mass),
            ("gate_l1", &self.gate_l1),
            ("set_kl", &self.set_kl),
            ("router_kl", &self.router_kl),
            ("d_router_kl", &self.d_router_kl),
            ("logprob_sel", &self.logprob_sel),
            ("shift", &self.shift),
        ]
    }
}

/// Forward with telemetry.
pub fn watch<B: Backend, T: Float>(backend: &B, problem: &Problem<T>, asked: Asked, given: &Given<T>) -> Watched {
    let Problem { tokens, experts, k, .. } = *problem;
    let stream = backend.stream().unwrap();
    let before = given.before.clone().unwrap_or_default();
    macro_rules! buffers {
        ($($name:ident: $value:expr, $len:expr);* $(;)?) => {
            $(
                // Measures have what a forgotten store would leave behind; aggregates what an earlier call did.
                let start = if before.$name.is_empty() { vec![$value; $len] } else { before.$name.clone() };
                let mut $name = backend.upload(&stream, &start).unwrap();
            )*
        };
    }
    buffers! {
        overlap_hist: 0u64, k + 1; changed: 0u8, tokens; changed_layers: 0u16, tokens; shift: 0f32, tokens;
        counts: 0u64, experts; native_counts: 0u64, experts; row_counts: 0u64, ROW_COUNTS;
    }
    let measure = |len: usize| backend.upload(&stream, &vec![-77f32; len]).unwrap();
    let mut overlap = backend.upload(&stream, &vec![77u8; tokens]).unwrap();
    let mut replaced = backend.upload(&stream, &vec![77u8; tokens]).unwrap();
    let (mut margin, mut deficit, mut forced_mass) = (measure(tokens), measure(tokens), measure(tokens));
    let (mut gate_l1, mut set_kl, mut router_kl) = (measure(tokens), measure(tokens), measure(tokens));
    let (mut d_router_kl, mut logprob_sel) = (measure(tokens * experts), measure(tokens * k));
    let recorded = given.recorded_weights.as_ref().map(|x| backend.upload(&stream, x).unwrap());
    let reference = given.ref_logits.as_ref().map(|x| backend.upload(&stream, x).unwrap());
    let old = given.old.as_ref();
    let old_ids = old.map(|(ids, _)| backend.upload(&stream, ids).unwrap());
    let old_logprobs = old.map(|(_, logprobs)| backend.upload(&stream, logprobs).unwrap());
    backend.synchronize(&stream).unwrap();

    let mut telemetry =
        Telemetry { counts: Some(counts.view_mut()), row_counts: Some(row_counts.view_mut()), ..Telemetry::default() };
    if let Some(recorded) = &recorded {
        let rows = problem.tape.as_ref().map_or(0, |tape| tape.rows);
        telemetry.recorded_weights = Some(Matrix::new(recorded.view(), rows, k).unwrap());
        telemetry.gate_l1 = Some(gate_l1.view_mut());
        telemetry.set_kl = Some(set_kl.view_mut());
    }
    if asked != Asked::Cheap {
        telemetry.overlap = Some(overlap.view_mut());
        telemetry.overlap_hist = Some(overlap_hist.view_mut());
        telemetry.changed = Some(changed.view_mut());
        telemetry.changed_layers = Some(changed_layers.view_mut());
        telemetry.replaced = Some(replaced.view_mut());
        telemetry.margin = Some(margin.view_mut());
        telemetry.deficit = Some(deficit.view_mut());
        telemetry.native_counts = Some(native_counts.view_mut());
    }
    if asked == Asked::All {
        telemetry.forced_mass = Some(forced_mass.view_mut());
        telemetry.logprob_sel = Some(logprob_sel.view_mut());
        if let Some(reference) = &reference {
            let view = reference.view().slice(problem.first..problem.logits.len());
            telemetry.ref_logits = Some(Matrix::strided(view, tokens, experts, problem.stride).unwrap());
            telemetry.router_kl = Some(router_kl.view_mut());
            telemetry.d_router_kl = Some(MatrixMut::new(d_router_kl.view_mut(), tokens, experts).unwrap());
        }
        if let (Some(ids), Some(logprobs)) = (&old_ids, &old_logprobs) {
            telemetry.router_shift = Some(RouterShift {
                old_topk_ids: ids.view(),
                old_logprob_sel: logprobs.view(),
                shift: shift.view_mut(),
            });
        }
    }
    let forwarded = Some(forward_watched::<B, T, f32>(backend, problem, Some(telemetry)));
    macro_rules! download {
        ($($name:ident),*) => {
            Watched { forwarded, $($name: backend.download(&stream, $name.view()).unwrap()),* }
        };
    }
    download!(
        overlap,
        overlap_hist,
        changed,
        changed_layers,
        replaced,
        margin,
        deficit,
        forced_mass,
        gate_l1,
        set_kl,
        router_kl,
        d_router_kl,
        logprob_sel,
        shift,
        counts,
        native_counts,
        row_counts
    )
}
