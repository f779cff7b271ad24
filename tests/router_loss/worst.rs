//! How near the suites come to their tolerances: runs each once more, and prints what they saw.

use moerl::Backend;

use crate::common::report;

crate::on_every_backend!(
    #[ignore = "prints what the suites see: cargo test worst -- --ignored --nocapture"]
    worst_of_every_group,
);

fn worst_of_every_group<B: Backend>(backend: &B) {
    crate::agreement::every_suite(backend);
    crate::meaning::every_suite(backend);
    report::print("gate", backend.name());
}
