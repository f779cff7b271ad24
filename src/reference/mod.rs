//! The oracle: plain loops in f64, one file per noun, written from the formulas alone.

mod advantage;
mod correction;
mod covariance;
mod ema;
mod expert_ledger;
mod gate;
mod linear_logprob;
mod logprob;
mod objective;
mod route_change;
mod router_loss;

use bytemuck::Pod;

use crate::backend::{Backend, Buffer};
use crate::error::Result;
use crate::memory::{Host, View, ViewMut};
use crate::objective::{Batch, Config, Output, Phases, Plan};

/// The CPU reference. Every operation in plain f64 loops; results are rounded once to the output's type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// An owned array in ordinary memory.
#[derive(Clone, Debug)]
pub struct HostBuffer<T>(Vec<T>);

impl<T: Pod> Buffer<T, Host> for HostBuffer<T> {
    fn view(&self) -> View<'_, T, Host> {
        (&self.0).into()
    }
    fn view_mut(&mut self) -> ViewMut<'_, T, Host> {
        (&mut self.0).into()
    }
}

impl Backend for Reference {
    type Memory = Host;
    type Stream = ();
    type Buffer<T: Pod + Send + Sync> = HostBuffer<T>;

    fn name(&self) -> &'static str {
        "reference"
    }
    fn stream(&self) -> Result<()> {
        Ok(())
    }
    fn synchronize(&self, (): &()) -> Result<()> {
        Ok(())
    }
    fn allocate<T: Pod + Send + Sync>(&self, (): &(), len: usize) -> Result<HostBuffer<T>> {
        Ok(HostBuffer(vec![T::zeroed(); len]))
    }
    fn upload<T: Pod + Send + Sync>(&self, (): &(), data: &[T]) -> Result<HostBuffer<T>> {
        Ok(HostBuffer(data.to_vec()))
    }
    fn fill<T: Pod>(&self, (): &(), mut array: ViewMut<'_, T, Host>, byte: u8) -> Result<()> {
        bytemuck::cast_slice_mut::<T, u8>(array.as_mut_slice()).fill(byte);
        Ok(())
    }
    fn download<T: Pod + Send + Sync>(&self, (): &(), array: View<'_, T, Host>) -> Result<Vec<T>> {
        Ok(array.as_slice().to_vec())
    }

    // ---- logprob ----------------------------------------------------------------------------------------------------

    fn logprob_forward(
        &self,
        (): &(),
        config: &crate::logprob::Config,
        call: crate::logprob::Forward<'_, Host>,
    ) -> Result<()> {
        logprob::forward(config, call)
    }
    fn logprob_backward(
        &self,
        (): &(),
        config: &crate::logprob::Config,
        call: crate::logprob::Backward<'_, Host>,
    ) -> Result<()> {
        logprob::backward(config, call)
    }
    fn logprob_partial(
        &self,
        (): &(),
        config: &crate::logprob::Config,
        call: crate::logprob::PartialCall<'_, Host>,
    ) -> Result<()> {
        logprob::partial(config, call)
    }
    fn logprob_combine(
        &self,
        (): &(),
        config: &crate::logprob::Config,
        call: crate::logprob::Combine<'_, Host>,
    ) -> Result<()> {
        logprob::combine(config, call)
    }

    // ---- linear_logprob ---------------------------------------------------------------------------------------------

    fn linear_logprob_forward<'a>(
        &self,
        (): &(),
        config: &crate::linear_logprob::Config,
        call: crate::logprob::Forward<'a, Host, crate::linear_logprob::Projection<'a, Host>>,
    ) -> Result<()> {
        linear_logprob::forward(config, call)
    }
    fn linear_logprob_partial<'a>(
        &self,
        (): &(),
        config: &crate::linear_logprob::Config,
        call: crate::logprob::PartialCall<'a, Host, crate::linear_logprob::Projection<'a, Host>>,
    ) -> Result<()> {
        linear_logprob::partial(config, call)
    }
    fn linear_logprob_backward<'a>(
        &self,
        (): &(),
        config: &crate::linear_logprob::Config,
        call: crate::logprob::Backward<'a, Host, crate::linear_logprob::Gradients<'a, Host>>,
    ) -> Result<()> {
        linear_logprob::backward(config, call)
    }

    // ---- gate -------------------------------------------------------------------------------------------------------

    fn gate_forward(&self, (): &(), config: &crate::gate::Config, call: crate::gate::Forward<'_, Host>) -> Result<()> {
        gate::forward(config, call)
    }
    fn gate_backward(
        &self,
        (): &(),
        config: &crate::gate::Config,
        call: crate::gate::Backward<'_, Host>,
    ) -> Result<()> {
        gate::backward(config, call)
    }
    fn gate_router_shift(&self, (): &(), call: crate::gate::ShiftFinish<'_, Host>) -> Result<()> {
        gate::router_shift(call)
    }

    // ---- router_loss ------------------------------------------------------------------------------------------------

    fn router_loss_partial(
        &self,
        (): &(),
        gate: &crate::gate::Config,
        config: &crate::router_loss::Config,
        plan: &crate::router_loss::Plan<Reference>,
        call: crate::router_loss::Partial<'_, Host>,
    ) -> Result<()> {
        router_loss::partial(gate, config, plan, call)
    }
    fn router_loss_finish(
        &self,
        (): &(),
        gate: &crate::gate::Config,
        config: &crate::router_loss::Config,
        plan: &crate::router_loss::Plan<Reference>,
        call: crate::router_loss::Finish<'_, Host>,
    ) -> Result<()> {
        router_loss::finish(gate, config, plan, call)
    }
    fn router_loss_backward(
        &self,
        (): &(),
        gate: &crate::gate::Config,
        call: crate::router_loss::Backward<'_, Host>,
    ) -> Result<()> {
        router_loss::backward(gate, call)
    }
    fn router_bias_update(&self, (): &(), call: crate::router_loss::BiasUpdate<'_, Host>) -> Result<()> {
        router_loss::bias_update(call)
    }

    // ---- objective --------------------------------------------------------------------------------------------------

    fn objective(
        &self,
        (): &(),
        config: &Config,
        plan: &Plan<Reference>,
        batch: Batch<'_, Host>,
        output: Output<'_, Host>,
    ) -> Result<()> {
        objective::one_call(config, plan, batch, output)
    }
    fn objective_partial(
        &self,
        (): &(),
        config: &Config,
        plan: &Plan<Reference>,
        batch: Batch<'_, Host>,
        phases: Phases<'_, Host>,
        output: Output<'_, Host>,
    ) -> Result<()> {
        objective::partial(config, plan, batch, phases, output)
    }
    fn objective_finish(
        &self,
        (): &(),
        config: &Config,
        plan: &Plan<Reference>,
        batch: Batch<'_, Host>,
        phases: Phases<'_, Host>,
        output: Output<'_, Host>,
    ) -> Result<()> {
        objective::finish(config, plan, batch, phases, output)
    }
    fn objective_apply(
        &self,
        (): &(),
        config: &Config,
        plan: &Plan<Reference>,
        batch: Batch<'_, Host>,
        phases: Phases<'_, Host>,
        output: Output<'_, Host>,
    ) -> Result<()> {
        objective::apply(config, plan, batch, phases, output)
    }

    // ---- correction -------------------------------------------------------------------------------------------------

    fn correction(
        &self,
        (): &(),
        config: &crate::correction::Config,
        plans: crate::correction::Plans<'_, Reference>,
        batch: crate::correction::Batch<'_, Host>,
        output: crate::correction::Output<'_, Host>,
    ) -> Result<()> {
        correction::one_call(config, plans, batch, output)
    }
    fn correction_partial(
        &self,
        (): &(),
        config: &crate::correction::Config,
        plans: crate::correction::Plans<'_, Reference>,
        batch: crate::correction::Batch<'_, Host>,
        phases: crate::correction::Phases<'_, Host>,
        output: crate::correction::Output<'_, Host>,
    ) -> Result<()> {
        correction::partial(config, plans, batch, phases, output)
    }
    fn correction_finish(
        &self,
        (): &(),
        config: &crate::correction::Config,
        plans: crate::correction::Plans<'_, Reference>,
        batch: crate::correction::Batch<'_, Host>,
        phases: crate::correction::Phases<'_, Host>,
        output: crate::correction::Output<'_, Host>,
    ) -> Result<()> {
        correction::finish(config, plans, batch, phases, output)
    }
    fn correction_apply(
        &self,
        (): &(),
        config: &crate::correction::Config,
        plans: crate::correction::Plans<'_, Reference>,
        batch: crate::correction::Batch<'_, Host>,
        phases: crate::correction::Phases<'_, Host>,
        output: crate::correction::Output<'_, Host>,
    ) -> Result<()> {
        correction::apply(config, plans, batch, phases, output)
    }

    // ---- route change -----------------------------------------------------------------------------------------------

    fn route_change(&self, (): &(), call: crate::route_change::Call<'_, Host>) -> Result<()> {
        route_change::route_change(call)
    }

    // ---- covariance -------------------------------------------------------------------------------------------------

    fn covariance(
        &self,
        _stream: &(),
        config: &crate::covariance::Config,
        call: crate::covariance::Call<'_, Host>,
    ) -> Result<()> {
        covariance::covariance(config, call)
    }

    // ---- advantage --------------------------------------------------------------------------------------------------

    fn group_advantages(
        &self,
        (): &(),
        config: &crate::advantage::Config,
        groups: &crate::advantage::GroupPlan<Reference>,
        call: crate::advantage::Call<'_, Host>,
    ) -> Result<()> {
        advantage::group_advantages(config, groups, call)
    }
    fn batch_moments(
        &self,
        (): &(),
        pass: crate::advantage::Pass,
        call: crate::advantage::Moments<'_, Host>,
    ) -> Result<()> {
        advantage::batch_moments(pass, call)
    }
    fn batch_whiten(
        &self,
        (): &(),
        config: &crate::advantage::Whitening,
        call: crate::advantage::Whiten<'_, Host>,
    ) -> Result<()> {
        advantage::batch_whiten(config, call)
    }
    fn count_tokens(
        &self,
        (): &(),
        plan: &Plan<Reference>,
        call: crate::advantage::CountTokens<'_, Host>,
    ) -> Result<()> {
        advantage::count_tokens(plan, call)
    }
    fn token_advantages(
        &self,
        (): &(),
        config: &crate::advantage::TokenEstimator,
        plan: &Plan<Reference>,
        call: crate::advantage::TokenCall<'_, Host>,
    ) -> Result<()> {
        advantage::token_advantages(config, plan, call)
    }
    fn token_baseline(
        &self,
        (): &(),
        config: &crate::advantage::TokenBaseline,
        plan: &crate::advantage::BaselinePlan<Reference>,
        call: crate::advantage::BaselineCall<'_, Host>,
    ) -> Result<()> {
        advantage::token_baseline(config, plan, call)
    }
    fn doubly_robust(&self, (): &(), call: crate::advantage::DoublyRobust<'_, Host>) -> Result<()> {
        advantage::doubly_robust(call)
    }

    // ---- ema --------------------------------------------------------------------------------------------------------

    fn ema(&self, (): &(), step: &crate::ema::Step, call: crate::ema::Call<'_, '_, Host>) -> Result<()> {
        ema::ema(step, call)
    }

    // ---- expert_ledger ----------------------------------------------------------------------------------------------

    fn expert_ledger(&self, (): &(), call: crate::expert_ledger::Ledger<'_, Host>) -> Result<()> {
        expert_ledger::ledger(call)
    }
    fn expert_advantages(&self, (): &(), call: crate::expert_ledger::Advantages<'_, Host>) -> Result<()> {
        expert_ledger::advantages(call)
    }
    fn expert_squared_norms(&self, (): &(), call: crate::expert_ledger::SquaredNorms<'_, Host>) -> Result<()> {
        expert_ledger::squared_norms(call)
    }
    fn expert_clip_scale(&self, (): &(), call: crate::expert_ledger::ClipScale<'_, Host>) -> Result<()> {
        expert_ledger::clip_scale(call)
    }
}
