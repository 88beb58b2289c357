//! NumPy's file format, version 1.0: as much of it as a matrix of F32 needs.

use std::io::{self, Write};

/// Writes the header of a row-major little-endian float32 `[rows, cols]`; the elements follow through [`write_f32`].
pub(super) fn write_header(out: &mut impl Write, rows: usize, cols: usize) -> io::Result<()> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    // Magic, version and length take ten bytes; data starts at a multiple of 64, and a newline ends the header.
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&(header.len() as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())
}

/// Writes elements.
pub(super) fn write_f32(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    for value in values {
        out.write_all(&value.to_le_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_numpys() {
        let mut out = Vec::new();
        write_header(&mut out, 3, 151_936).unwrap();
        write_f32(&mut out, &[1.5]).unwrap();
        assert_eq!(&out[..8], b"\x93NUMPY\x01\x00");
        let length = usize::from(u16::from_le_bytes([out[8], out[9]]));
        assert_eq!((10 + length) % 64, 0);
        let header = std::str::from_utf8(&out[10..10 + length]).unwrap();
        assert!(header.contains("'shape': (3, 151936)") && header.ends_with('\n'));
        assert_eq!(out[10 + length..], 1.5f32.to_le_bytes());
    }
}
