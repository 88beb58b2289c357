//! Host files and host examples for the other tests.

use super::super::*;

pub(super) const GIB: u64 = 1 << 30;

/// A CPU of 100 GB/s, and GPUs of 1 TB/s with so much memory, no reserve and no overhead, on links of 50 GB/s.
pub(super) fn host(memory: u64, gpus: &[u64]) -> Host {
    let gpu = |(number, free): (usize, &u64)| Gpu {
        name: format!("card {number}"),
        free: *free,
        reserve: 0,
        overhead: 0,
        rates: Rates { read: 1e12, ops: 100e12 },
        link: 50e9,
    };
    Host {
        name: "test".into(),
        memory,
        cores: 8,
        cpu: Rates { read: 100e9, ops: 10e12 },
        gpus: gpus.iter().enumerate().map(gpu).collect(),
    }
}

const FILE: &str = r#"
name = "a"
memory_gib = 64.0
[cpu]
cores = 8
read_gb_per_s = 40.0
int8_tera_ops = 2.0
[[gpu]]
name = "card"
memory_gib = 24.0
read_gb_per_s = 1008.0
int8_tera_ops = 660.0
link_gb_per_s = 25.0
"#;

#[test]
fn host_files_are_read() {
    let host = Host::parse(FILE).unwrap();
    assert_eq!((host.memory, host.cores, host.cpu), (64 * GIB, 8, Rates { read: 40e9, ops: 2e12 }));
    let gpu = &host.gpus[0];
    assert_eq!((gpu.free, gpu.overhead, gpu.link), (24 * GIB, 500 << 20, 25e9));
    assert_eq!(gpu.reserve, (24.0 * GIB as f64 * 0.1) as u64, "a tenth where the file does not say");
    let fixed = Host::parse(&format!("{FILE}reserve_mib = 1024\nfree_gib = 20.0\n")).unwrap();
    assert_eq!((fixed.gpus[0].reserve, fixed.gpus[0].free), (GIB, 20 * GIB));
}

#[test]
fn mistakes_in_host_files_are_named() {
    for (text, part) in [
        (FILE.replace("memory_gib = 64.0", "memory_gib = -1.0"), "memory_gib: -1"),
        (FILE.replace("read_gb_per_s = 1008.0", "read_gb_per_s = 0.0"), "gpu[0].read_gb_per_s"),
        (FILE.replace("cores", "cores_of_it"), "unknown field"),
        (format!("{FILE}reserve = 0.99\n"), "no share"),
        (format!("{FILE}reserve = 0.1\nreserve_mib = 3\n"), "not both"),
        (format!("{FILE}free_gib = 25.0\n"), "more than the GPU's memory"),
        (FILE.replace("name = \"a\"", ""), "missing field"),
        (FILE.replace("64.0", "nan"), "memory_gib"),
        (FILE.replace("24.0", "1e300"), "gpu[0].memory_gib"),
    ] {
        let error = Host::parse(&text).unwrap_err();
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn devices_have_names() {
    for device in [Device::Cpu, Device::Gpu(0), Device::Gpu(12)] {
        assert_eq!(device.to_string().parse(), Ok(device));
    }
    for text in ["gpu", "gpu-1", "GPU0", "cuda:0", "", "gpu99999999999999999999"] {
        assert!(text.parse::<Device>().is_err(), "{text}");
    }
}
