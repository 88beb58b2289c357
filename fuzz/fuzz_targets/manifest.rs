//! What an image of weights says about itself: bytes that come from a service manager, or from a worker. The input is the
//! JSON text, a line feed, and the headers of the files; sums are put right, so that what they guard is reached, too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omni_inferd::gguf::File;
use omni_inferd::vault::{Manifest, manifest_bytes, parse_manifest};
use sha2::{Digest, Sha256};

fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (json, headers) = (&bytes[..split], bytes.get(split + 1..).unwrap_or_default());
    look(&manifest_bytes(json, &[headers.to_vec()]));
    let Ok(mut manifest) = serde_json::from_slice::<Manifest>(json) else { return };
    let files = manifest.files.len().max(1);
    let parts: Vec<Vec<u8>> = headers.chunks(headers.len().div_ceil(files).max(1)).map(<[u8]>::to_vec).collect();
    for (number, file) in manifest.files.iter_mut().enumerate() {
        let part = parts.get(number).map(Vec::as_slice).unwrap_or_default();
        file.header_bytes = part.len() as u64;
        file.header_sha256 = Sha256::digest(part).iter().map(|byte| format!("{byte:02x}")).collect();
    }
    let json = serde_json::to_vec(&manifest).unwrap();
    look(&manifest_bytes(&json, &parts));
});

fn look(bytes: &[u8]) {
    let Ok((id, manifest, headers)) = parse_manifest(bytes) else { return };
    assert_eq!((id.len(), headers.len()), (16, manifest.files.len()));
    for tensor in &manifest.tensors {
        let pieces = manifest.pieces(tensor.start, tensor.bytes);
        assert_eq!(pieces.iter().map(|piece| piece.2).sum::<u64>(), tensor.bytes);
        for (segment, at, length) in pieces {
            assert!(at.checked_add(length).unwrap() <= manifest.segments[segment].bytes);
        }
    }
    let files = headers.iter().zip(&manifest.files).map(|(header, file)| File::parse(header, file.bytes));
    if let Ok(files) = files.collect::<Result<Vec<_>, _>>() {
        let _ = File::merge(files);
    }
}
