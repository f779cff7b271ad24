//! The golden vectors of released trainers and routers, through the same code as `moerl check`, on every backend.

mod common;

use common::data;
use moerl_cli::arguments::{BackendName, Check, Family};
use moerl_cli::backend::Chosen;
use moerl_cli::check::{Record, Vectors, Verdict};

/// A backend for a test; none, with the reason printed, where there is no device and `MOERL_REQUIRE_GPU=1` does not ask for one.
fn open(name: BackendName) -> Option<Chosen> {
    match Chosen::open(name) {
        Ok(chosen) => Some(chosen),
        Err(reason) if std::env::var_os("MOERL_REQUIRE_GPU").is_some_and(|v| v == "1") => {
            panic!("MOERL_REQUIRE_GPU is set, but: {reason}")
        }
        Err(reason) => {
            println!("skipped on {name:?}: {reason}");
            None
        }
    }
}

fn records(backend: &Chosen, family: Family) -> Vec<Record> {
    records_of(backend, family, "*")
}

fn records_of(backend: &Chosen, family: Family, only: &str) -> Vec<Record> {
    let folder = data("step.safetensors").parent().unwrap().to_owned();
    let only = Some(only.to_owned());
    let options = Check { folder, family: Some(family), only, json: false, backend: BackendName::Auto };
    backend.run(Vectors { options: &options }).unwrap()
}

/// Asserts that nothing failed, that every case in scope passed, and that what is in scope is `count` cases; returns the rest.
fn assert_passes(records: &[Record], count: usize, in_scope: impl Fn(&Record) -> bool) -> Vec<&Record> {
    let failed: Vec<&Record> = records.iter().filter(|r| matches!(r.verdict, Verdict::Fail(_))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let (scope, rest): (Vec<&Record>, Vec<&Record>) = records.iter().partition(|record| in_scope(record));
    let missed: Vec<&&Record> = scope.iter().filter(|r| !matches!(r.verdict, Verdict::Pass(_))).collect();
    assert!(missed.is_empty(), "{missed:#?}");
    assert_eq!(scope.len(), count);
    rest
}

fn step_files_agree(backend: &Chosen) {
    let records = records(backend, Family::Step);
    assert_passes(&records, 6, |_| true);
}

fn log_probabilities_agree(backend: &Chosen) {
    assert_passes(&records(backend, Family::Logprob), 18, |_| true);
}

fn routers_agree(backend: &Chosen) {
    assert_passes(&records(backend, Family::Gate), 26, |_| true);
}

fn objectives_agree(backend: &Chosen) {
    let records = records(backend, Family::Objective);
    // Losses, divergences, corrections and published formulas: all of them. Advantages have a test of their own.
    assert_passes(&records, 322 - 22, |record| !record.id.contains("/verl_adv_"));
    assert_eq!(records.len(), 322);
}

fn advantages_agree(backend: &Chosen) {
    let records = records_of(backend, Family::Objective, "*/verl_adv_*");
    // Both batches have masks with gaps, by which verl's plain baseline shifts the members of a group against each other.
    let plain = |record: &Record| record.id.contains("/verl_adv_optimal_token_baseline");
    let rest = assert_passes(&records, 16, |record| !plain(record));
    assert_eq!(rest.len(), 6);
    for record in rest {
        assert!(matches!(&record.verdict, Verdict::Differs(why) if why.contains("padded column")), "{record:#?}");
    }
}

macro_rules! on {
    ($($backend:ident = $name:expr;)*) => {
        $(mod $backend {
            use super::*;

            #[test]
            fn step_files_agree() {
                open($name).iter().for_each(super::step_files_agree);
            }
            #[test]
            fn log_probabilities_agree() {
                open($name).iter().for_each(super::log_probabilities_agree);
            }
            #[test]
            fn routers_agree() {
                open($name).iter().for_each(super::routers_agree);
            }
            #[test]
            fn objectives_agree() {
                open($name).iter().for_each(super::objectives_agree);
            }
            #[test]
            fn advantages_agree() {
                open($name).iter().for_each(super::advantages_agree);
            }
        })*
    };
}
on! { reference = BackendName::Reference; }
#[cfg(feature = "emulate")]
on! { emulator = BackendName::Emulator; }
#[cfg(feature = "cuda")]
on! { cuda = BackendName::Cuda; }
