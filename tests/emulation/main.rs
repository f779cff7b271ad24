//! The emulator's own tests: each helper of device.cuh against what CUDA defines, kernels broken on purpose, the traffic meter.
#![cfg(feature = "emulate")]

mod arithmetic;
mod broken;
mod broken_gate;
mod harness;
mod logprob;
mod meter;
mod primitives;
mod schedules;
