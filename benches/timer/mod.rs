//! How long calls take: by the events of a device's stream, or by the clock.

use std::time::{Duration, Instant};

use moerl::{Backend, Result};

/// The device's time, or the clock's, of `calls`.
pub trait Timer<B: Backend> {
    fn time(&self, backend: &B, stream: &B::Stream, calls: &mut dyn FnMut() -> Result<()>) -> Result<Duration>;
}

pub struct Clock;

impl<B: Backend> Timer<B> for Clock {
    fn time(&self, backend: &B, stream: &B::Stream, calls: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let start = Instant::now();
        calls()?;
        backend.synchronize(stream)?;
        Ok(start.elapsed())
    }
}

#[cfg(feature = "cuda")]
pub struct Events;

#[cfg(feature = "cuda")]
impl Timer<moerl::Cuda> for Events {
    fn time(
        &self,
        gpu: &moerl::Cuda,
        stream: &<moerl::Cuda as Backend>::Stream,
        calls: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Duration> {
        let (start, end) = (gpu.event()?, gpu.event()?);
        start.record(stream)?;
        calls()?;
        end.record(stream)?;
        end.synchronize()?;
        Ok(Duration::from_secs_f64(f64::from(end.milliseconds_since(&start)?) * 1e-3))
    }
}
