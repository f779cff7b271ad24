//! Recorded work: a CUDA graph.

use std::sync::Arc;

use crate::device::cuda::context::Context;
use crate::device::cuda::driver::Handle;
use crate::device::cuda::modules::Modules;
use crate::device::cuda::stream::Stream;
use crate::error::Result;

/// Calls on other threads that a capture forbids do not concern this one.
const THREAD_LOCAL: u32 = 1;

/// Work recorded from a stream, to be launched again and again at the cost of one launch.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    graph: Handle,
    executable: Handle,
    /// The recorded kernels live in these.
    _modules: Arc<Modules>,
}

// SAFETY: the driver allows one thread at a time to use a graph, and any one: `&self` methods need the caller's promise anyway.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` queues on `stream`.
    pub(super) fn capture(modules: &Arc<Modules>, stream: &Stream, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        // Nothing can be loaded while a stream is being recorded.
        modules.load_all()?;
        let context = &stream.context;
        let driver = context.driver;
        let _entered = context.enter()?;
        // SAFETY: the stream is alive.
        let status = unsafe { (driver.capture_begin)(stream.handle, THREAD_LOCAL) };
        driver.check("cuStreamBeginCapture", status)?;
        let recording = Recording { stream, ended: false };
        let done = work();
        let recorded = recording.end().map(|graph| Recorded { context: context.clone(), graph });
        // A failed call is the cause, the failed end of the capture its consequence.
        done?;
        let graph = recorded?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: `executable` is valid for the handle that the driver stores; the graph is alive.
        let status = unsafe { (driver.graph_instantiate)(&mut executable, graph.graph, 0) };
        driver.check("cuGraphInstantiate", status)?;
        Ok(Graph { context: context.clone(), graph: graph.keep(), executable, _modules: modules.clone() })
    }

    /// Queues the recorded work on `stream`.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver).
    ///
    /// # Safety
    /// Every array that the recorded calls were given must still be there, and be lent to this launch as it was to those calls; no
    /// other launch of this graph may be queued from another thread at the same time.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: graph and stream are alive; the caller vouches for the memory.
        let status = unsafe { (self.context.driver.graph_launch)(self.executable, stream.handle) };
        self.context.driver.check("cuGraphLaunch", status)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: both were made in `capture` and are destroyed once; the driver finishes queued launches first.
        unsafe {
            (self.context.driver.graph_executable_destroy)(self.executable);
            (self.context.driver.graph_destroy)(self.graph);
        }
    }
}

/// A capture under way: ended in any case, also when the recorded work panics.
struct Recording<'a> {
    stream: &'a Stream,
    ended: bool,
}

impl Recording<'_> {
    fn end(mut self) -> Result<Handle> {
        self.ended = true;
        let driver = self.stream.context.driver;
        let mut graph = std::ptr::null_mut();
        // SAFETY: `graph` is valid for the handle that the driver stores; this thread began the capture.
        let status = unsafe { (driver.capture_end)(self.stream.handle, &mut graph) };
        driver.check("cuStreamEndCapture", status)?;
        Ok(graph)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let driver = self.stream.context.driver;
            let mut graph = std::ptr::null_mut();
            // SAFETY: as in `end`; a graph that comes out is destroyed at once.
            unsafe {
                if (driver.capture_end)(self.stream.handle, &mut graph) == super::driver::SUCCESS && !graph.is_null() {
                    (driver.graph_destroy)(graph);
                }
            }
        }
    }
}

/// A graph without its executable form.
struct Recorded {
    context: Arc<Context>,
    graph: Handle,
}

impl Recorded {
    fn keep(mut self) -> Handle {
        std::mem::replace(&mut self.graph, std::ptr::null_mut())
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.graph.is_null() {
            // SAFETY: ended in `capture`, and kept by nobody.
            unsafe { (self.context.driver.graph_destroy)(self.graph) };
        }
    }
}
