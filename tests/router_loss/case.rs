//! A router's batch in plain vectors, and its way through any backend.

use moerl::element::Float;
use moerl::gate::{self, Output};
use moerl::memory::{Matrix, MatrixMut};
use moerl::objective::Segments;
use moerl::router_loss::{Backward, Config, Finish, Gradient, Partial, Plan};
use moerl::{Backend, Buffer, Result};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

use crate::common;

/// A batch of `T` rows.
#[derive(Clone, Debug)]
pub struct Case<T> {
    pub gate: gate::Config,
    pub config: Config,
    pub experts: usize,
    pub k: usize,
    /// Of the segments; one for a batch.
    pub lengths: Vec<usize>,
    pub logits: Vec<T>,
    pub reference: Vec<T>,
    pub ids: Vec<i32>,
    pub token_mask: Option<Vec<u8>>,
    pub row_count: Option<i32>,
}

/// What partial returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums {
    pub probabilities: Vec<f64>,
    pub counts: Vec<u64>,
    pub rows: Vec<u64>,
    pub totals: Vec<f64>,
    pub nonfinite: Vec<u64>,
}

/// What finish returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    pub values: Vec<f64>,
    pub q: Vec<f32>,
    pub coefficients: Vec<f32>,
}

/// Every loss at once.
pub fn every_loss() -> Config {
    Config { balance: 0.7, z: 0.01, entropy: 0.3, router_kl: 0.2, ..Config::default() }
}

impl<T: Float> Case<T> {
    /// Normal logits with outliers and random routes, from a seed.
    pub fn random(
        gate: gate::Config,
        config: Config,
        lengths: &[usize],
        experts: usize,
        k: usize,
        seed: u64,
    ) -> Case<T> {
        let mut rng = common::seeded(seed);
        let tokens: usize = lengths.iter().sum();
        let mut normal = || {
            let x: f32 = StandardNormal.sample(&mut rng);
            T::from_f32(x * if rng.random_ratio(1, 97) { 6.0 } else { 1.5 })
        };
        let logits = (0..tokens * experts).map(|_| normal()).collect();
        let reference = (0..tokens * experts).map(|_| normal()).collect();
        let mut rng = common::seeded(seed + 1);
        let ids = (0..tokens)
            .flat_map(|_| {
                rand::seq::index::sample(&mut rng, experts, k).into_iter().map(|e| e as i32).collect::<Vec<_>>()
            })
            .collect();
        let lengths = lengths.to_vec();
        Case { gate, config, experts, k, lengths, logits, reference, ids, token_mask: None, row_count: None }
    }

    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    pub fn plan<B: Backend>(&self, backend: &B) -> Plan<B> {
        let segments = Segments::from_lengths(self.lengths.iter().copied()).unwrap();
        Plan::new(backend, &backend.stream().unwrap(), &segments).unwrap()
    }

    /// The sums over its rows, added to `before` if there is that.
    pub fn partial<B: Backend>(&self, backend: &B, before: Option<&Sums>) -> Result<Sums> {
        let (stream, plan) = (backend.stream()?, self.plan(backend));
        let (tokens, experts, segments) = (self.tokens(), self.experts, self.lengths.len());
        let logits = backend.upload(&stream, &self.logits)?;
        let reference = backend.upload(&stream, &self.reference)?;
        let ids = backend.upload(&stream, &self.ids)?;
        let mask = self.token_mask.as_ref().map(|mask| backend.upload(&stream, mask)).transpose()?;
        let count = self.row_count.map(|count| backend.upload(&stream, &[count])).transpose()?;
        // What a forgotten store would leave behind, or what is to be added to.
        let garbage = Sums {
            probabilities: vec![-77.0; segments * experts],
            counts: vec![77; segments * experts],
            rows: vec![77; segments],
            totals: vec![-77.0; 3],
            nonfinite: vec![77],
        };
        let start = before.unwrap_or(&garbage);
        let mut probabilities = backend.upload(&stream, &start.probabilities)?;
        let mut counts = backend.upload(&stream, &start.counts)?;
        let mut rows = backend.upload(&stream, &start.rows)?;
        let mut totals = backend.upload(&stream, &start.totals)?;
        let mut nonfinite = backend.upload(&stream, &start.nonfinite)?;
        let mut workspace =
            backend.upload(&stream, &vec![0xffu8; Partial::<B::Memory>::workspace_bytes(&plan, experts)])?;
        let call = Partial {
            router_logits: Matrix::new(logits.view(), tokens, experts)?,
            topk_ids: Some(ids.view()),
            ref_logits: (self.config.router_kl != 0.0)
                .then(|| Matrix::new(reference.view(), tokens, experts))
                .transpose()?,
            selected_logits: None,
            token_mask: mask.as_ref().map(Buffer::view),
            row_count: count.as_ref().map(Buffer::view),
            probabilities: probabilities.view_mut(),
            counts: counts.view_mut(),
            rows: rows.view_mut(),
            totals: totals.view_mut(),
            nonfinite: nonfinite.view_mut(),
            accumulate: before.is_some(),
            workspace: workspace.view_mut(),
        };
        backend.router_loss_partial(&stream, &self.gate, &self.config, &plan, call)?;
        Ok(Sums {
            probabilities: backend.download(&stream, probabilities.view())?,
            counts: backend.download(&stream, counts.view())?,
            rows: backend.download(&stream, rows.view())?,
            totals: backend.download(&stream, totals.view())?,
            nonfinite: backend.download(&stream, nonfinite.view())?,
        })
    }

    /// Losses and coefficients from sums; `count_rows` where `counts` are of other rows than `rows`.
    pub fn finish<B: Backend>(&self, backend: &B, sums: &Sums, count_rows: Option<&[u64]>) -> Result<Finished> {
        let (stream, plan) = (backend.stream()?, self.plan(backend));
        let (experts, segments) = (self.experts, self.lengths.len());
        let probabilities = backend.upload(&stream, &sums.probabilities)?;
        let counts = backend.upload(&stream, &sums.counts)?;
        let rows = backend.upload(&stream, &sums.rows)?;
        let totals = backend.upload(&stream, &sums.totals)?;
        let count_rows = count_rows.map(|rows| backend.upload(&stream, rows)).transpose()?;
        let mut values = backend.upload(&stream, &[-77f64; 4])?;
        let mut q = backend.upload(&stream, &vec![-77f32; segments * experts])?;
        let mut coefficients = backend.upload(&stream, &[-77f32; 4])?;
        let mut workspace = backend.upload(&stream, &vec![0xffu8; Finish::<B::Memory>::workspace_bytes(&plan)])?;
        let call = Finish {
            experts,
            probabilities: probabilities.view(),
            rows: rows.view(),
            totals: totals.view(),
            counts: counts.view(),
            count_rows: count_rows.as_ref().map(Buffer::view),
            valid_segments: None,
            values: values.view_mut(),
            q: q.view_mut(),
            coefficients: coefficients.view_mut(),
            workspace: workspace.view_mut(),
        };
        backend.router_loss_finish(&stream, &self.gate, &self.config, &plan, call)?;
        Ok(Finished {
            values: backend.download(&stream, values.view())?,
            q: backend.download(&stream, q.view())?,
            coefficients: backend.download(&stream, coefficients.view())?,
        })
    }

    /// The gradient of the regularisers alone.
    pub fn backward<B: Backend, G: Float>(&self, backend: &B, finished: &Finished) -> Result<Vec<G>> {
        let (stream, plan) = (backend.stream()?, self.plan(backend));
        let (tokens, experts) = (self.tokens(), self.experts);
        let logits = backend.upload(&stream, &self.logits)?;
        let reference = backend.upload(&stream, &self.reference)?;
        let ids = backend.upload(&stream, &self.ids)?;
        let mask = self.token_mask.as_ref().map(|mask| backend.upload(&stream, mask)).transpose()?;
        let count = self.row_count.map(|count| backend.upload(&stream, &[count])).transpose()?;
        let q = backend.upload(&stream, &finished.q)?;
        let coefficients = backend.upload(&stream, &finished.coefficients)?;
        let mut gradient = backend.upload(&stream, &vec![G::from_f32(-77.0); tokens * experts])?;
        let call = Backward {
            router_logits: Matrix::new(logits.view(), tokens, experts)?,
            regularizer: self.regularizer(&plan, q.view(), coefficients.view(), &reference)?,
            topk_ids: Some(ids.view()),
            selected_logits: None,
            token_mask: mask.as_ref().map(Buffer::view),
            row_count: count.as_ref().map(Buffer::view),
            output: Output::Dense(MatrixMut::new(gradient.view_mut(), tokens, experts)?),
        };
        backend.router_loss_backward(&stream, &self.gate, call)?;
        backend.download(&stream, gradient.view())
    }

    fn regularizer<'a, B: Backend>(
        &self,
        plan: &'a Plan<B>,
        q: moerl::memory::View<'a, f32, B::Memory>,
        coefficients: moerl::memory::View<'a, f32, B::Memory>,
        reference: &'a B::Buffer<T>,
    ) -> Result<Gradient<'a, B::Memory>> {
        let ref_logits = (self.config.router_kl != 0.0)
            .then(|| Matrix::new(reference.view(), self.tokens(), self.experts))
            .transpose()?;
        let has_balance = self.config.balance != 0.0;
        let gradient = Gradient::new(plan, q, coefficients);
        Ok(Gradient { ref_logits, q: gradient.q.filter(|_| has_balance), ..gradient })
    }

    /// The gradient of the gate (from the ids as forced ones) and of the regularisers in one write, and that of the gate alone.
    pub fn gate_backward<B: Backend>(
        &self,
        backend: &B,
        finished: &Finished,
        upstream: &[f32],
    ) -> Result<[Vec<f32>; 2]> {
        let run = |regularized| self.gate_backward_once(backend, finished, upstream, regularized);
        Ok([run(true)?, run(false)?])
    }

    fn gate_backward_once<B: Backend>(
        &self,
        backend: &B,
        finished: &Finished,
        upstream: &[f32],
        regularized: bool,
    ) -> Result<Vec<f32>> {
        let (stream, plan) = (backend.stream()?, self.plan(backend));
        let (tokens, experts, k) = (self.tokens(), self.experts, self.k);
        let logits = backend.upload(&stream, &self.logits)?;
        let reference = backend.upload(&stream, &self.reference)?;
        let ids = backend.upload(&stream, &self.ids)?;
        let upstream = backend.upload(&stream, upstream)?;
        let mask = self.token_mask.as_ref().map(|mask| backend.upload(&stream, mask)).transpose()?;
        let q = backend.upload(&stream, &finished.q)?;
        let coefficients = backend.upload(&stream, &finished.coefficients)?;
        let mut gradient = backend.upload(&stream, &vec![-77f32; tokens * experts])?;
        let mut call = gate::Backward::unsaved(
            Matrix::new(upstream.view(), tokens, k)?,
            ids.view(),
            Matrix::new(logits.view(), tokens, experts)?,
            MatrixMut::new(gradient.view_mut(), tokens, experts)?,
        );
        call.token_mask = mask.as_ref().map(Buffer::view);
        if regularized {
            call.regularizer = Some(self.regularizer(&plan, q.view(), coefficients.view(), &reference)?);
        }
        backend.gate_backward(&stream, &self.gate, call)?;
        backend.download(&stream, gradient.view())
    }
}
