//! The road from a validated call to a kernel: grids, workspaces, parameter structures, and who runs them.

mod advantage;
pub mod bandwidth;
mod correction;
mod covariance;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(all(test, any(feature = "cuda", feature = "emulate")))]
pub(crate) mod echo;
mod ema;
#[cfg(feature = "emulate")]
pub mod emulator;
pub mod executor;
mod expert_ledger;
mod gate;
#[cfg(feature = "cuda")]
pub(crate) mod images;
mod linear_logprob;
mod logprob;
mod objective;
mod route_change;
mod router_loss;
pub(crate) mod workspace;

use bytemuck::Pod;

use crate::backend::Backend;
use crate::error::Result;
use crate::memory::{View, ViewMut};
use crate::objective::{Batch, Config, Output, Phases, Plan};
use executor::Executor;

impl<E: Executor> Backend for E {
    type Memory = E::Memory;
    type Stream = E::Stream;
    type Buffer<T: Pod + Send + Sync> = E::Buffer<T>;

    fn name(&self) -> &'static str {
        E::NAME
    }
    fn stream(&self) -> Result<E::Stream> {
        self.new_stream()
    }
    fn synchronize(&self, stream: &E::Stream) -> Result<()> {
        self.wait(stream)
    }
    fn allocate<T: Pod + Send + Sync>(&self, stream: &E::Stream, len: usize) -> Result<E::Buffer<T>> {
        self.zeros(stream, len)
    }
    fn upload<T: Pod + Send + Sync>(&self, stream: &E::Stream, data: &[T]) -> Result<E::Buffer<T>> {
        self.send(stream, data)
    }
    fn fill<T: Pod>(&self, stream: &E::Stream, array: ViewMut<'_, T, E::Memory>, byte: u8) -> Result<()> {
        self.set_bytes(stream, array, byte)
    }
    fn download<T: Pod + Send + Sync>(&self, stream: &E::Stream, array: View<'_, T, E::Memory>) -> Result<Vec<T>> {
        self.fetch(stream, array)
    }

    // ---- logprob ----------------------------------------------------------------------------------------------------

    fn logprob_forward(
        &self,
        stream: &E::Stream,
        config: &crate::logprob::Config,
        call: crate::logprob::Forward<'_, E::Memory>,
    ) -> Result<()> {
        logprob::forward(self, stream, config, call)
    }
    fn logprob_backward(
        &self,
        stream: &E::Stream,
        config: &crate::logprob::Config,
        call: crate::logprob::Backward<'_, E::Memory>,
    ) -> Result<()> {
        logprob::backward(self, stream, config, call)
    }
    fn logprob_partial(
        &self,
        stream: &E::Stream,
        config: &crate::logprob::Config,
        call: crate::logprob::PartialCall<'_, E::Memory>,
    ) -> Result<()> {
        logprob::partial(self, stream, config, call)
    }
    fn logprob_combine(
        &self,
        stream: &E::Stream,
        config: &crate::logprob::Config,
        call: crate::logprob::Combine<'_, E::Memory>,
    ) -> Result<()> {
        logprob::combine(self, stream, config, call)
    }

    // ---- linear_logprob ---------------------------------------------------------------------------------------------

    fn linear_logprob_forward<'a>(
        &self,
        stream: &E::Stream,
        config: &crate::linear_logprob::Config,
        call: crate::logprob::Forward<'a, E::Memory, crate::linear_logprob::Projection<'a, E::Memory>>,
    ) -> Result<()> {
        linear_logprob::forward(self, stream, config, call)
    }
    fn linear_logprob_partial<'a>(
        &self,
        stream: &E::Stream,
        config: &crate::linear_logprob::Config,
        call: crate::logprob::PartialCall<'a, E::Memory, crate::linear_logprob::Projection<'a, E::Memory>>,
    ) -> Result<()> {
        linear_logprob::partial(self, stream, config, call)
    }
    fn linear_logprob_backward<'a>(
        &self,
        stream: &E::Stream,
        config: &crate::linear_logprob::Config,
        call: crate::logprob::Backward<'a, E::Memory, crate::linear_logprob::Gradients<'a, E::Memory>>,
    ) -> Result<()> {
        linear_logprob::backward(self, stream, config, call)
    }

    // ---- gate -------------------------------------------------------------------------------------------------------

    fn gate_forward(
        &self,
        stream: &E::Stream,
        config: &crate::gate::Config,
        call: crate::gate::Forward<'_, E::Memory>,
    ) -> Result<()> {
        gate::forward(self, stream, config, call)
    }
    fn gate_backward(
        &self,
        stream: &E::Stream,
        config: &crate::gate::Config,
        call: crate::gate::Backward<'_, E::Memory>,
    ) -> Result<()> {
        gate::backward(self, stream, config, call)
    }
    fn gate_router_shift(&self, stream: &E::Stream, call: crate::gate::ShiftFinish<'_, E::Memory>) -> Result<()> {
        gate::router_shift(self, stream, call)
    }

    // ---- router_loss ------------------------------------------------------------------------------------------------

    fn router_loss_partial(
        &self,
        stream: &E::Stream,
        gate: &crate::gate::Config,
        config: &crate::router_loss::Config,
        plan: &crate::router_loss::Plan<E>,
        call: crate::router_loss::Partial<'_, E::Memory>,
    ) -> Result<()> {
        router_loss::partial(self, stream, gate, config, plan, call)
    }
    fn router_loss_finish(
        &self,
        stream: &E::Stream,
        gate: &crate::gate::Config,
        config: &crate::router_loss::Config,
        plan: &crate::router_loss::Plan<E>,
        call: crate::router_loss::Finish<'_, E::Memory>,
    ) -> Result<()> {
        router_loss::finish(self, stream, gate, config, plan, call)
    }
    fn router_loss_backward(
        &self,
        stream: &E::Stream,
        gate: &crate::gate::Config,
        call: crate::router_loss::Backward<'_, E::Memory>,
    ) -> Result<()> {
        gate::regularizer_alone(self, stream, gate, call)
    }
    fn router_bias_update(
        &self,
        stream: &E::Stream,
        call: crate::router_loss::BiasUpdate<'_, E::Memory>,
    ) -> Result<()> {
        router_loss::bias_update(self, stream, call)
    }

    // ---- objective --------------------------------------------------------------------------------------------------

    fn objective(
        &self,
        stream: &E::Stream,
        config: &Config,
        plan: &Plan<E>,
        batch: Batch<'_, E::Memory>,
        output: Output<'_, E::Memory>,
    ) -> Result<()> {
        objective::one_call(self, stream, config, plan, batch, output)
    }
    fn objective_partial(
        &self,
        stream: &E::Stream,
        config: &Config,
        plan: &Plan<E>,
        batch: Batch<'_, E::Memory>,
        phases: Phases<'_, E::Memory>,
        output: Output<'_, E::Memory>,
    ) -> Result<()> {
        objective::partial(self, stream, config, plan, batch, phases, output)
    }
    fn objective_finish(
        &self,
        stream: &E::Stream,
        config: &Config,
        plan: &Plan<E>,
        batch: Batch<'_, E::Memory>,
        phases: Phases<'_, E::Memory>,
        output: Output<'_, E::Memory>,
    ) -> Result<()> {
        objective::finish(self, stream, config, plan, batch, phases, output)
    }
    fn objective_apply(
        &self,
        stream: &E::Stream,
        config: &Config,
        plan: &Plan<E>,
        batch: Batch<'_, E::Memory>,
        phases: Phases<'_, E::Memory>,
        output: Output<'_, E::Memory>,
    ) -> Result<()> {
        objective::apply(self, stream, config, plan, batch, phases, output)
    }

    // ---- correction -------------------------------------------------------------------------------------------------

    fn correction(
        &self,
        stream: &E::Stream,
        config: &crate::correction::Config,
        plans: crate::correction::Plans<'_, E>,
        batch: crate::correction::Batch<'_, E::Memory>,
        output: crate::correction::Output<'_, E::Memory>,
    ) -> Result<()> {
        correction::one_call(self, stream, config, plans, batch, output)
    }
    fn correction_partial(
        &self,
        stream: &E::Stream,
        config: &crate::correction::Config,
        plans: crate::correction::Plans<'_, E>,
        batch: crate::correction::Batch<'_, E::Memory>,
        phases: crate::correction::Phases<'_, E::Memory>,
        output: crate::correction::Output<'_, E::Memory>,
    ) -> Result<()> {
        correction::partial(self, stream, config, plans, batch, phases, output)
    }
    fn correction_finish(
        &self,
        stream: &E::Stream,
        config: &crate::correction::Config,
        plans: crate::correction::Plans<'_, E>,
        batch: crate::correction::Batch<'_, E::Memory>,
        phases: crate::correction::Phases<'_, E::Memory>,
        output: crate::correction::Output<'_, E::Memory>,
    ) -> Result<()> {
        correction::finish(self, stream, config, plans, batch, phases, output)
    }
    fn correction_apply(
        &self,
        stream: &E::Stream,
        config: &crate::correction::Config,
        plans: crate::correction::Plans<'_, E>,
        batch: crate::correction::Batch<'_, E::Memory>,
        phases: crate::correction::Phases<'_, E::Memory>,
        output: crate::correction::Output<'_, E::Memory>,
    ) -> Result<()> {
        correction::apply(self, stream, config, plans, batch, phases, output)
    }

    // ---- route change -----------------------------------------------------------------------------------------------

    fn route_change(&self, stream: &Self::Stream, call: crate::route_change::Call<'_, E::Memory>) -> Result<()> {
        route_change::route_change(self, stream, call)
    }

    // ---- covariance -------------------------------------------------------------------------------------------------

    fn covariance(
        &self,
        stream: &Self::Stream,
        config: &crate::covariance::Config,
        call: crate::covariance::Call<'_, E::Memory>,
    ) -> Result<()> {
        covariance::covariance(self, stream, config, call)
    }

    // ---- advantage --------------------------------------------------------------------------------------------------

    fn group_advantages(
        &self,
        stream: &E::Stream,
        config: &crate::advantage::Config,
        groups: &crate::advantage::GroupPlan<E>,
        call: crate::advantage::Call<'_, E::Memory>,
    ) -> Result<()> {
        advantage::group_advantages(self, stream, config, groups, call)
    }
    fn batch_moments(
        &self,
        stream: &E::Stream,
        pass: crate::advantage::Pass,
        call: crate::advantage::Moments<'_, E::Memory>,
    ) -> Result<()> {
        advantage::batch_moments(self, stream, pass, call)
    }
    fn batch_whiten(
        &self,
        stream: &E::Stream,
        config: &crate::advantage::Whitening,
        call: crate::advantage::Whiten<'_, E::Memory>,
    ) -> Result<()> {
        advantage::batch_whiten(self, stream, config, call)
    }
    fn count_tokens(
        &self,
        stream: &E::Stream,
        plan: &Plan<E>,
        call: crate::advantage::CountTokens<'_, E::Memory>,
    ) -> Result<()> {
        advantage::count_tokens(self, stream, plan, call)
    }
    fn token_advantages(
        &self,
        stream: &E::Stream,
        config: &crate::advantage::TokenEstimator,
        plan: &Plan<E>,
        call: crate::advantage::TokenCall<'_, E::Memory>,
    ) -> Result<()> {
        advantage::token_advantages(self, stream, config, plan, call)
    }
    fn token_baseline(
        &self,
        stream: &E::Stream,
        config: &crate::advantage::TokenBaseline,
        plan: &crate::advantage::BaselinePlan<E>,
        call: crate::advantage::BaselineCall<'_, E::Memory>,
    ) -> Result<()> {
        advantage::token_baseline(self, stream, config, plan, call)
    }
    fn doubly_robust(&self, stream: &E::Stream, call: crate::advantage::DoublyRobust<'_, E::Memory>) -> Result<()> {
        advantage::doubly_robust(self, stream, call)
    }

    // ---- ema --------------------------------------------------------------------------------------------------------

    fn ema(
        &self,
        stream: &E::Stream,
        step: &crate::ema::Step,
        call: crate::ema::Call<'_, '_, E::Memory>,
    ) -> Result<()> {
        ema::ema(self, stream, step, call)
    }

    // ---- expert_ledger ----------------------------------------------------------------------------------------------

    fn expert_ledger(&self, stream: &E::Stream, call: crate::expert_ledger::Ledger<'_, E::Memory>) -> Result<()> {
        expert_ledger::ledger(self, stream, call)
    }
    fn expert_advantages(
        &self,
        stream: &E::Stream,
        call: crate::expert_ledger::Advantages<'_, E::Memory>,
    ) -> Result<()> {
        expert_ledger::advantages(self, stream, call)
    }
    fn expert_squared_norms(
        &self,
        stream: &E::Stream,
        call: crate::expert_ledger::SquaredNorms<'_, E::Memory>,
    ) -> Result<()> {
        expert_ledger::squared_norms(self, stream, call)
    }
    fn expert_clip_scale(
        &self,
        stream: &E::Stream,
        call: crate::expert_ledger::ClipScale<'_, E::Memory>,
    ) -> Result<()> {
        expert_ledger::clip_scale(self, stream, call)
    }
}
