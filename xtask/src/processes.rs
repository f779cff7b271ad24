//! Test binaries as many small processes, as many at a time as there are cores.
//!
//! Under ThreadSanitizer what a test costs grows with every thread, emulated ones among them, that its process has ever had: a process of its own for
//! a module's tests makes them twice as fast as one for the whole binary, and no long test keeps the other cores waiting for its binary to end.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, output};

/// Tests of one process, at most. Every process has its fibers to make, which takes up to a second.
const MOST: usize = 12;

/// What a sanitizer has nothing to look for in: the reference is plain Rust, and a GPU's code is not instrumented.
const LEFT_OUT: [&str; 4] = ["--skip", "reference::", "--skip", "cuda::"];

/// One process: some tests of one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    binary: PathBuf,
    tests: Vec<String>,
}

/// Everything that the binaries have.
pub fn list(workspace: &Workspace, binaries: &[PathBuf]) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for binary in binaries {
        let mut command = workspace.command(binary);
        command.args(["--list", "--format", "terse"]).args(LEFT_OUT).env("CARGO_MANIFEST_DIR", &workspace.root);
        jobs.extend(divide(binary, &output(&mut command)?));
    }
    // The longest first, which are those that try every schedule: no core is to wait for one at the end.
    jobs.sort_by_key(|job| !name(job).contains("emulated"));
    Ok(jobs)
}

/// The jobs of a binary from what it answers to `--list --format terse`.
fn divide(binary: &Path, listed: &str) -> Vec<Job> {
    let tests: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let modules = tests.chunk_by(|a, b| module(a) == module(b));
    let parts = modules.flat_map(|tests| tests.chunks(MOST));
    parts
        .map(|tests| Job { binary: binary.to_owned(), tests: tests.iter().map(|&test| test.to_owned()).collect() })
        .collect()
}

/// `gate` of `gate::emulator::one_row`; empty for a test at the root.
fn module(test: &str) -> &str {
    test.split_once("::").map_or("", |(module, _)| module)
}

/// `gate-0123456789abcdef many`.
fn name(job: &Job) -> String {
    let binary = job.binary.file_name().unwrap_or_default().to_string_lossy();
    format!("{binary} {}", module(&job.tests[0]))
}

/// Runs the jobs; `start` makes the command that runs a binary. Fails at the end if one has failed, and if there is none.
pub fn run_all(jobs: Vec<Job>, start: impl Fn(&Path) -> Command + Sync) -> Result<()> {
    if jobs.is_empty() {
        bail!("there is no test to run");
    }
    // Every job is run, whatever became of those before.
    let results = in_parallel(&jobs, |job| Ok(run(job, start(&job.binary))))?;
    results.into_iter().collect()
}

/// `work` on every item, as many at a time as there are cores; the results in the order of the items, or the first error.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let workers = std::thread::available_parallelism()?.get().min(items.len());
    let queue = Mutex::new(items.iter().enumerate());
    let next = || queue.lock().expect("no worker panics").next();
    let worker =
        || -> Vec<(usize, Result<R>)> { std::iter::from_fn(next).map(|(place, item)| (place, work(item))).collect() };
    let mut results: Vec<(usize, Result<R>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no worker panics")).collect()
    });
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Runs one job and shows a line about it, or all that it wrote if it failed.
fn run(job: &Job, mut command: Command) -> Result<()> {
    let begin = Instant::now();
    command.args(["--test-threads=1", "--exact"]).args(&job.tests).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {}", name(job)))?;
    let seconds = begin.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        let verdict = said.lines().rfind(|line| line.starts_with("test result")).unwrap_or("no tests");
        println!("{seconds:6.1} s  {}: {verdict}", name(job));
        return Ok(());
    }
    println!("{seconds:6.1} s  {}: {}\n{said}{}", name(job), output.status, String::from_utf8_lossy(&output.stderr));
    bail!("{}: {}", name(job), output.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_test_at_all_is_no_success() {
        assert!(run_all(Vec::new(), |_| Command::new("true")).is_err());
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..40).collect();
        let found = in_parallel(&items, |&item| {
            std::thread::sleep(std::time::Duration::from_micros(100 * (40 - item)));
            Ok(2 * item)
        });
        assert_eq!(found.unwrap(), (0..40).map(|item| 2 * item).collect::<Vec<_>>());
        assert!(in_parallel(&items, |&item| if item == 7 { bail!("seven") } else { Ok(()) }).is_err());
        assert!(in_parallel(&[0; 0], |_| Ok(())).unwrap().is_empty());
    }

    #[test]
    fn a_binary_is_divided_by_module_and_number() {
        let many: String = (0..MOST + 1).map(|i| format!("many::emulator::test_{i}: test\n")).collect();
        let jobs =
            divide(Path::new("gate-0"), &format!("{many}one::alone: test\nat_the_root: test\na_bench: benchmark\n"));
        let found: Vec<(String, usize)> = jobs.iter().map(|job| (name(job), job.tests.len())).collect();
        let expected = [("gate-0 many", MOST), ("gate-0 many", 1), ("gate-0 one", 1), ("gate-0 ", 1)];
        assert_eq!(found, expected.map(|(name, tests)| (name.to_owned(), tests)));
    }
}
