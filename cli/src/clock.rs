//! Time spent in operations, without the copies around them.

use std::time::{Duration, Instant};

use moerl::{Backend, Result};

/// Adds up the time of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// So far.
    pub spent: Duration,
}

impl Clock {
    /// Adds another clock's time.
    pub fn add(&mut self, other: Clock) {
        self.spent += other.spent;
    }

    /// Does `work`, which queues operations on `stream`, and waits for them.
    ///
    /// # Errors
    /// The work's.
    pub fn time<B: Backend>(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        backend.synchronize(stream)?;
        let start = Instant::now();
        work()?;
        backend.synchronize(stream)?;
        self.spent += start.elapsed();
        Ok(())
    }
}
