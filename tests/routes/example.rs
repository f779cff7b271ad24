//! The example, on every backend: what it prints is true.

use moerl::Backend;

use crate::router_layer;

crate::on_every_backend!(a_layer_replays_what_it_recorded_through_recomputation_in_any_order);

fn a_layer_replays_what_it_recorded_through_recomputation_in_any_order<B: Backend>(backend: &B) {
    let passes = router_layer::run(backend).unwrap();
    assert_eq!(passes.len(), 4);
    for pass in &passes {
        assert!(pass.as_recorded && pass.same_recompute && pass.same_backward, "{pass:?}");
        // The new policy would have chosen otherwise: the replay was not idle.
        assert!(pass.changed > 0 && pass.gradient_norm > 0.0, "{pass:?}");
    }
}
