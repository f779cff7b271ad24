//! How near each group of tests comes to its tolerances: runs every suite once more, and prints what they saw.

use moerl::Backend;

use crate::common::report;

crate::on_every_backend!(
    #[ignore = "prints what the suites see: cargo test worst -- --ignored --nocapture"]
    worst_of_every_group,
);

fn worst_of_every_group<B: Backend>(backend: &B) {
    crate::agreement::every_suite(backend);
    crate::backward::every_suite(backend);
    crate::many::every_suite(backend);
    crate::outputs::every_suite(backend);
    crate::recompute::every_suite(backend);
    crate::replay::every_suite(backend);
    crate::rows::every_suite(backend);
    crate::selection::every_suite(backend);
    crate::telemetry::every_suite(backend);
    crate::weights::every_suite(backend);
    report::print("gate", backend.name());
}
