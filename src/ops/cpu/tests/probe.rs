//! The probes run in every tier and yield rates.

use super::{cpu, tiers};
use std::time::Duration;

#[test]
fn every_tier_has_its_limits() {
    let memory = vec![1u8; (4 << 20) * 3 + 1000];
    for isa in tiers() {
        for threads in [1, 2] {
            let cpu = cpu(isa, threads);
            let read = cpu.probe_read(&memory);
            let int8 = cpu.probe_int8(Duration::from_millis(2));
            assert!(read.is_finite() && read > 0.0, "{isa:?}: {read} GB/s");
            assert!(int8.gops.is_finite() && int8.gops > 0.0, "{isa:?}: {int8:?}");
        }
    }
}

#[test]
fn a_profile_tells_what_a_step_did() {
    let cpu = super::cpu(super::Isa::Scalar, 1);
    let mut x = vec![1.0; 64];
    cpu.add(&mut x, &[2.0; 64]);
    assert!(cpu.take_profile().is_empty(), "noted although switched off");
    cpu.profile(true);
    cpu.add(&mut x, &[2.0; 64]);
    let weight = super::tensor(crate::quant::DType::Q8_0, 2, 64, &[0.5; 128]);
    let mut out = [0.0; 2];
    cpu.matmul(
        &x,
        &mut [crate::ops::MatMul { weight: &weight, bias: None, out: &mut out }],
        &mut super::super::Scratch::new(),
    );
    cpu.profile(false);
    cpu.add(&mut x, &[2.0; 64]);
    let profile = cpu.take_profile();
    assert_eq!(profile.len(), 2);
    let product = profile.iter().find(|entry| entry.work.op == "matmul").unwrap();
    assert_eq!((product.calls, product.work.types.as_str(), product.work.operations), (1, "Q8_0", 2 * 2 * 64));
    assert_eq!(product.work.bytes, 2 * 2 * 34 + 2 * 4, "two rows of two blocks, and two results");
}
