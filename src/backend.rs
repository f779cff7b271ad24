//! The one trait that a trainer, the command and every test are written against.

use bytemuck::Pod;

use crate::advantage;
use crate::correction;
use crate::covariance;
use crate::ema;
use crate::error::{Error, Fault, Result};
use crate::expert_ledger;
use crate::gate;
use crate::linear_logprob;
use crate::logprob;
use crate::memory::{Memory, View, ViewMut};
use crate::objective;
use crate::route_change;
use crate::router_loss;

/// An owned array of a [`Backend`].
pub trait Buffer<T, M> {
    /// The whole array, for reading.
    fn view(&self) -> View<'_, T, M>;
    /// The whole array, for writing.
    fn view_mut(&mut self) -> ViewMut<'_, T, M>;
}

/// Something that executes the operations: the f64 [`Reference`](crate::Reference), the emulated kernels, or a CUDA device.
///
/// Operations are queued on `stream` and return at once; they allocate nothing and synchronise nothing. Results are there after
/// [`synchronize`](Backend::synchronize), or for work queued later on the same stream.
pub trait Backend {
    /// The memory that its arrays lie in.
    type Memory: Memory;
    /// An ordered queue of work; `()` where work is done at once.
    type Stream;
    /// An owned array.
    type Buffer<T: Pod + Send + Sync>: Buffer<T, Self::Memory>;

    /// `reference`, `emulator` or `cuda`.
    fn name(&self) -> &'static str;

    /// A new stream.
    fn stream(&self) -> Result<Self::Stream>;
    /// Waits for all work queued on `stream`.
    fn synchronize(&self, stream: &Self::Stream) -> Result<()>;

    /// An array of `len` zeros.
    fn allocate<T: Pod + Send + Sync>(&self, stream: &Self::Stream, len: usize) -> Result<Self::Buffer<T>>;
    /// An array with these contents.
    fn upload<T: Pod + Send + Sync>(&self, stream: &Self::Stream, data: &[T]) -> Result<Self::Buffer<T>>;
    /// Sets every byte of an array, in stream order.
    fn fill<T: Pod>(&self, stream: &Self::Stream, array: ViewMut<'_, T, Self::Memory>, byte: u8) -> Result<()>;
    /// The contents of an array, after all work queued on `stream`.
    fn download<T: Pod + Send + Sync>(&self, stream: &Self::Stream, array: View<'_, T, Self::Memory>)
    -> Result<Vec<T>>;

    /// A clear [`ErrorWord`].
    fn error_word(&self, stream: &Self::Stream) -> Result<ErrorWord<Self>>
    where
        Self: Sized,
    {
        Ok(ErrorWord { word: self.upload(stream, &[crate::abi::MOERL_NO_FAULT])? })
    }

    /// Waits for `stream`, and returns what the device found wrong in the data since the last check; clears the word.
    ///
    /// # Errors
    /// [`Error::Data`] with the first offending row.
    fn check(&self, stream: &Self::Stream, word: &mut ErrorWord<Self>) -> Result<()>
    where
        Self: Sized,
    {
        let found = self.download(stream, word.word.view())?[0];
        match Fault::from_word(found) {
            None => Ok(()),
            Some(fault) => {
                // In place: a captured graph goes on writing to this address. No fault is all ones.
                self.fill(stream, word.word.view_mut(), 0xff)?;
                Err(Error::Data(fault))
            }
        }
    }

    // ---- gate -------------------------------------------------------------------------------------------------------

    /// Experts and weights for T tokens, selected or forced: see [`gate`].
    ///
    /// # Errors
    /// [`Forward::validate`](gate::Forward::validate)'s; what only the device can see goes to the call's error word.
    fn gate_forward(
        &self,
        stream: &Self::Stream,
        config: &gate::Config,
        call: gate::Forward<'_, Self::Memory>,
    ) -> Result<()>;

    /// The gradient of the router logits from the gradient of the weights that [`gate_forward`](Backend::gate_forward) returned.
    ///
    /// # Errors
    /// [`Backward::validate`](gate::Backward::validate)'s.
    fn gate_backward(
        &self,
        stream: &Self::Stream,
        config: &gate::Config,
        call: gate::Backward<'_, Self::Memory>,
    ) -> Result<()>;

    // ---- router_loss ------------------------------------------------------------------------------------------------

    /// Sums over rows for the regularisers of a router: see [`router_loss`].
    ///
    /// # Errors
    /// [`Partial::validate`](router_loss::Partial::validate)'s.
    fn router_loss_partial(
        &self,
        stream: &Self::Stream,
        gate: &gate::Config,
        config: &router_loss::Config,
        plan: &router_loss::Plan<Self>,
        call: router_loss::Partial<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// Values of the losses from (reduced) sums, and what their gradients are multiplied by.
    ///
    /// # Errors
    /// [`Finish::validate`](router_loss::Finish::validate)'s.
    fn router_loss_finish(
        &self,
        stream: &Self::Stream,
        gate: &gate::Config,
        config: &router_loss::Config,
        plan: &router_loss::Plan<Self>,
        call: router_loss::Finish<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// The gradient of the regularisers alone; beside the gate's own it is part of [`gate_backward`](Backend::gate_backward).
    ///
    /// # Errors
    /// [`Backward::validate`](router_loss::Backward::validate)'s.
    fn router_loss_backward(
        &self,
        stream: &Self::Stream,
        gate: &gate::Config,
        call: router_loss::Backward<'_, Self::Memory>,
    ) -> Result<()>;

    /// Moves a selection bias towards an even load, in exact integers.
    ///
    /// # Errors
    /// [`BiasUpdate::validate`](router_loss::BiasUpdate::validate)'s.
    fn router_bias_update(&self, stream: &Self::Stream, call: router_loss::BiasUpdate<'_, Self::Memory>) -> Result<()>;
    /// The last step of [`RouterShift`](gate::RouterShift): from the sum over layers to what the objective adds to log-ratios.
    ///
    /// # Errors
    /// [`ShiftFinish::validate`](gate::ShiftFinish::validate)'s.
    fn gate_router_shift(&self, stream: &Self::Stream, call: gate::ShiftFinish<'_, Self::Memory>) -> Result<()>;

    // ---- logprob ----------------------------------------------------------------------------------------------------

    /// Log-probabilities, entropies and the rest of [`logprob`] for N rows of logits.
    ///
    /// # Errors
    /// [`Forward::validate`](logprob::Forward::validate)'s; what only the device can see goes to the call's error word.
    fn logprob_forward(
        &self,
        stream: &Self::Stream,
        config: &logprob::Config,
        call: logprob::Forward<'_, Self::Memory>,
    ) -> Result<()>;

    /// The gradient of the logits from the gradients of what [`logprob_forward`](Backend::logprob_forward) returned.
    ///
    /// # Errors
    /// [`Backward::validate`](logprob::Backward::validate)'s.
    fn logprob_backward(
        &self,
        stream: &Self::Stream,
        config: &logprob::Config,
        call: logprob::Backward<'_, Self::Memory>,
    ) -> Result<()>;

    /// One shard's part of [`logprob_forward`](Backend::logprob_forward), where each device has some columns of the vocabulary.
    ///
    /// # Errors
    /// [`PartialCall::validate`](logprob::PartialCall::validate)'s.
    fn logprob_partial(
        &self,
        stream: &Self::Stream,
        config: &logprob::Config,
        call: logprob::PartialCall<'_, Self::Memory>,
    ) -> Result<()>;

    /// The outputs from what [`logprob_partial`](Backend::logprob_partial) left on all shards.
    ///
    /// # Errors
    /// [`Combine::validate`](logprob::Combine::validate)'s; what only the device can see goes to the call's error word.
    fn logprob_combine(
        &self,
        stream: &Self::Stream,
        config: &logprob::Config,
        call: logprob::Combine<'_, Self::Memory>,
    ) -> Result<()>;

    // ---- linear_logprob ---------------------------------------------------------------------------------------------

    /// [`logprob_forward`](Backend::logprob_forward) of logits that are a product and never all there: see [`linear_logprob`].
    ///
    /// # Errors
    /// The call's `validate`'s; [`Error::Unavailable`] where there is nothing that multiplies matrices: on a CUDA device without the crate
    /// feature `linear`, or without cuBLASLt.
    fn linear_logprob_forward<'a>(
        &self,
        stream: &Self::Stream,
        config: &linear_logprob::Config,
        call: logprob::Forward<'a, Self::Memory, linear_logprob::Projection<'a, Self::Memory>>,
    ) -> Result<()>;

    /// [`logprob_partial`](Backend::logprob_partial) likewise.
    ///
    /// # Errors
    /// As [`linear_logprob_forward`](Backend::linear_logprob_forward).
    fn linear_logprob_partial<'a>(
        &self,
        stream: &Self::Stream,
        config: &linear_logprob::Config,
        call: logprob::PartialCall<'a, Self::Memory, linear_logprob::Projection<'a, Self::Memory>>,
    ) -> Result<()>;

    /// The gradients of hidden states and weight.
    ///
    /// # Errors
    /// As [`linear_logprob_forward`](Backend::linear_logprob_forward).
    fn linear_logprob_backward<'a>(
        &self,
        stream: &Self::Stream,
        config: &linear_logprob::Config,
        call: logprob::Backward<'a, Self::Memory, linear_logprob::Gradients<'a, Self::Memory>>,
    ) -> Result<()>;

    // ---- objective --------------------------------------------------------------------------------------------------

    /// Loss, gradient and statistics of a batch of whole segments: see [`objective`].
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Overlap`, `MissingInput`, `ZeroDenominator`, `Workspace`. What only
    /// the device can see goes to the call's error word.
    fn objective(
        &self,
        stream: &Self::Stream,
        config: &objective::Config,
        plan: &objective::Plan<Self>,
        batch: objective::Batch<'_, Self::Memory>,
        output: objective::Output<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// The first phase: sums per segment. Of `output` it uses `loss` and `diagnostics` (see [`objective::Phases`]), `workspace`, `errors`,
    /// `tag` and `accumulate`.
    ///
    /// # Errors
    /// As [`objective`](Backend::objective); `Config` for local denominators.
    fn objective_partial(
        &self,
        stream: &Self::Stream,
        config: &objective::Config,
        plan: &objective::Plan<Self>,
        batch: objective::Batch<'_, Self::Memory>,
        phases: objective::Phases<'_, Self::Memory>,
        output: objective::Output<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// The second phase: coefficients, and what a segment decides. Adds to `loss` and `diagnostics`; writes `sequence_ratio`,
    /// `sequence_clipped`.
    ///
    /// # Errors
    /// As [`objective_partial`](Backend::objective_partial).
    fn objective_finish(
        &self,
        stream: &Self::Stream,
        config: &objective::Config,
        plan: &objective::Plan<Self>,
        batch: objective::Batch<'_, Self::Memory>,
        phases: objective::Phases<'_, Self::Memory>,
        output: objective::Output<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// The third phase: what tokens decide. Adds to `loss` and `diagnostics`; writes `d_logprobs`, `ratio`, `clipped`.
    ///
    /// # Errors
    /// As [`objective_partial`](Backend::objective_partial).
    fn objective_apply(
        &self,
        stream: &Self::Stream,
        config: &objective::Config,
        plan: &objective::Plan<Self>,
        batch: objective::Batch<'_, Self::Memory>,
        phases: objective::Phases<'_, Self::Memory>,
        output: objective::Output<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    // ---- correction -------------------------------------------------------------------------------------------------

    /// Weights, rejections and their statistics for a batch of whole segments: see [`correction`](mod@correction).
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Overlap`, `MissingInput`, `Segments`, `Workspace`. What only the device can
    /// see goes to the call's error word.
    fn correction(
        &self,
        stream: &Self::Stream,
        config: &correction::Config,
        plans: correction::Plans<'_, Self>,
        batch: correction::Batch<'_, Self::Memory>,
        output: correction::Output<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// The first phase: sums of every piece. Of `output` it uses `globals`, `diagnostics`, `workspace`, `errors`, `tag` and `accumulate`.
    ///
    /// # Errors
    /// As [`correction`](Backend::correction).
    fn correction_partial(
        &self,
        stream: &Self::Stream,
        config: &correction::Config,
        plans: correction::Plans<'_, Self>,
        batch: correction::Batch<'_, Self::Memory>,
        phases: correction::Phases<'_, Self::Memory>,
        output: correction::Output<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// The second phase: what segments, turns and groups decide. Adds to `globals`, `diagnostics` and `rejected`; writes what has an element a
    /// segment or group.
    ///
    /// # Errors
    /// As [`correction`](Backend::correction).
    fn correction_finish(
        &self,
        stream: &Self::Stream,
        config: &correction::Config,
        plans: correction::Plans<'_, Self>,
        batch: correction::Batch<'_, Self::Memory>,
        phases: correction::Phases<'_, Self::Memory>,
        output: correction::Output<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// The third phase: what tokens have. Writes `weights`, `keep` and `log_ratio`, and, where the batch normalises them, `segment_weights`.
    ///
    /// # Errors
    /// As [`correction`](Backend::correction).
    fn correction_apply(
        &self,
        stream: &Self::Stream,
        config: &correction::Config,
        plans: correction::Plans<'_, Self>,
        batch: correction::Batch<'_, Self::Memory>,
        phases: correction::Phases<'_, Self::Memory>,
        output: correction::Output<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    // ---- route change -----------------------------------------------------------------------------------------------

    /// Statistics of tokens by how many of their experts changed: see [`route_change`].
    ///
    /// # Errors
    /// [`Call::validate`](route_change::Call::validate)'s.
    fn route_change(&self, stream: &Self::Stream, call: route_change::Call<'_, Self::Memory>) -> Result<()>;

    // ---- covariance -------------------------------------------------------------------------------------------------

    /// Which tokens Clip-Cov and KL-Cov single out: see [`covariance`].
    ///
    /// # Errors
    /// [`Call::validate`](covariance::Call::validate)'s.
    fn covariance(
        &self,
        stream: &Self::Stream,
        config: &covariance::Config,
        call: covariance::Call<'_, Self::Memory>,
    ) -> Result<()>;

    // ---- advantage --------------------------------------------------------------------------------------------------

    /// Group-normalised advantages: see [`advantage`].
    ///
    /// # Errors
    /// [`Call::validate`](advantage::Call::validate)'s.
    fn group_advantages(
        &self,
        stream: &Self::Stream,
        config: &advantage::Config,
        groups: &advantage::GroupPlan<Self>,
        call: advantage::Call<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// One of the two passes over a batch's values: see [`advantage::Moments`].
    ///
    /// # Errors
    /// [`Moments::validate`](advantage::Moments::validate)'s.
    fn batch_moments(
        &self,
        stream: &Self::Stream,
        pass: advantage::Pass,
        call: advantage::Moments<'_, Self::Memory>,
    ) -> Result<()>;

    /// Whitens values by the moments of their batch: see [`advantage::Whitening`].
    ///
    /// # Errors
    /// [`Whiten::validate`](advantage::Whiten::validate)'s.
    fn batch_whiten(
        &self,
        stream: &Self::Stream,
        config: &advantage::Whitening,
        call: advantage::Whiten<'_, Self::Memory>,
    ) -> Result<()>;

    /// The counted tokens of every segment.
    ///
    /// # Errors
    /// [`CountTokens::validate`](advantage::CountTokens::validate)'s.
    fn count_tokens(
        &self,
        stream: &Self::Stream,
        plan: &objective::Plan<Self>,
        call: advantage::CountTokens<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// Advantages of tokens, from the end of every segment backwards: see [`advantage::TokenEstimator`].
    ///
    /// # Errors
    /// [`TokenCall::validate`](advantage::TokenCall::validate)'s; what only the device can see goes to the call's error word.
    fn token_advantages(
        &self,
        stream: &Self::Stream,
        config: &advantage::TokenEstimator,
        plan: &objective::Plan<Self>,
        call: advantage::TokenCall<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// Returns less the optimal baseline of their token index: see [`advantage::TokenBaseline`].
    ///
    /// # Errors
    /// [`BaselineCall::validate`](advantage::BaselineCall::validate)'s; what only the device can see goes to the call's error word.
    fn token_baseline(
        &self,
        stream: &Self::Stream,
        config: &advantage::TokenBaseline,
        plan: &advantage::BaselinePlan<Self>,
        call: advantage::BaselineCall<'_, Self::Memory>,
    ) -> Result<()>
    where
        Self: Sized;

    /// A value model's estimates, corrected per segment: see [`advantage::DoublyRobust`].
    ///
    /// # Errors
    /// [`DoublyRobust::validate`](advantage::DoublyRobust::validate)'s.
    fn doubly_robust(&self, stream: &Self::Stream, call: advantage::DoublyRobust<'_, Self::Memory>) -> Result<()>;

    // ---- ema --------------------------------------------------------------------------------------------------------

    /// One step of the moving averages of a list of tensors: see [`ema`].
    ///
    /// # Errors
    /// [`Call::validate`](ema::Call::validate)'s.
    fn ema(&self, stream: &Self::Stream, step: &ema::Step, call: ema::Call<'_, '_, Self::Memory>) -> Result<()>;

    // ---- expert_ledger ----------------------------------------------------------------------------------------------

    /// Adds a layer's tokens to its ledger: see [`expert_ledger`].
    ///
    /// # Errors
    /// [`Ledger::validate`](expert_ledger::Ledger::validate)'s.
    fn expert_ledger(&self, stream: &Self::Stream, call: expert_ledger::Ledger<'_, Self::Memory>) -> Result<()>;

    /// Adds a layer's part of the advantages normalised by expert.
    ///
    /// # Errors
    /// [`Advantages::validate`](expert_ledger::Advantages::validate)'s.
    fn expert_advantages(&self, stream: &Self::Stream, call: expert_ledger::Advantages<'_, Self::Memory>)
    -> Result<()>;

    /// Adds the squares of one parameter's gradient, expert by expert.
    ///
    /// # Errors
    /// [`SquaredNorms::validate`](expert_ledger::SquaredNorms::validate)'s.
    fn expert_squared_norms(
        &self,
        stream: &Self::Stream,
        call: expert_ledger::SquaredNorms<'_, Self::Memory>,
    ) -> Result<()>;

    /// What each expert's gradient is multiplied by to keep its norm below a limit.
    ///
    /// # Errors
    /// [`ClipScale::validate`](expert_ledger::ClipScale::validate)'s.
    fn expert_clip_scale(&self, stream: &Self::Stream, call: expert_ledger::ClipScale<'_, Self::Memory>) -> Result<()>;
}

/// The device error word: where kernels report data that only they can see. One word may serve any number of calls on one stream.
#[derive(Debug)]
pub struct ErrorWord<B: Backend> {
    word: B::Buffer<u64>,
}

impl<B: Backend> ErrorWord<B> {
    /// The word, to be handed to a call.
    pub fn view_mut(&mut self) -> ViewMut<'_, u64, B::Memory> {
        self.word.view_mut()
    }
}
