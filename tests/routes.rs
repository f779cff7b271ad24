//! The host's side of route replay: wire formats, damage, layers, packing, parallel slices, tapes on every backend, the history.

mod common;

#[path = "routes/allocator.rs"]
mod allocator;
#[path = "routes/damage.rs"]
mod damage;
#[path = "routes/decoders.rs"]
mod decoders;
#[path = "routes/example.rs"]
mod example;
#[path = "routes/fixture.rs"]
mod fixture;
#[path = "routes/history.rs"]
mod history;
#[path = "routes/layers.rs"]
mod layers;
#[path = "routes/packing.rs"]
mod packing;
#[allow(dead_code)] // it has a main function of its own
#[path = "../examples/router_layer.rs"]
mod router_layer;
#[path = "routes/slices.rs"]
mod slices;
#[path = "routes/tape.rs"]
mod tape;
