//! The road from a validated call to a kernel: grids, workspaces, parameter structures, and who runs them.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "emulate")]
pub mod emulator;
pub mod executor;
#[cfg(feature = "cuda")]
pub(crate) mod images;
pub(crate) mod echo;
mod logprob;

use bytemuck::Pod;

use crate::backend::Backend;
use crate::error::Result;
use crate::memory::View;
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
}
