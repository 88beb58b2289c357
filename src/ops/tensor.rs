//! A weight as it lies in memory: shape, type and a share of the storage. Made by `load`, read by every operation.

use super::Error;
use crate::quant::packed::{Cut, LARGEST_BLOCK, ROWS};
use crate::quant::{self, DType, Layout};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A weight `[rows, cols]` as it lies in memory: row after row as in GGUF, or packed. A vector is one row. Cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    /// Name in the file, for errors and profiles.
    pub name: Arc<str>,
    /// Element type.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Order of the bytes.
    pub layout: Layout,
    storage: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
    row_bytes: usize,
    /// For each of the matrices that stand one below the other; they are equally high.
    factors: Option<Arc<[f32]>>,
}

impl Tensor {
    /// A plain tensor over bytes `range` of `storage`, which must keep its bytes at one address for as long as it lives.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a type without kernels, [`Error::Blocks`] and [`Error::Bytes`] when type, shape and
    /// range do not fit, [`Error::Misaligned`] for F32 data that is not aligned to 4 bytes.
    pub fn new(
        name: impl Into<Arc<str>>,
        dtype: DType,
        rows: usize,
        cols: usize,
        storage: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Result<Tensor, Error> {
        let name: Arc<str> = name.into();
        if !dtype.is_supported() || dtype == DType::Q8_K {
            return Err(Error::Unsupported { name: name.to_string(), dtype });
        }
        let blocks = || Error::Blocks { name: name.to_string(), dtype, rows, cols, block: dtype.block_len() };
        let row_bytes = dtype.row_bytes(cols).ok_or_else(blocks)?;
        let needed = row_bytes.checked_mul(rows).ok_or_else(blocks)?;
        let bytes = (*storage).as_ref();
        let Some(own) = bytes.get(range.clone()).filter(|own| own.len() == needed) else {
            let stored = bytes.len();
            return Err(Error::Bytes { name: name.to_string(), dtype, rows, cols, needed, range, stored });
        };
        let address = own.as_ptr() as usize;
        if dtype == DType::F32 && !address.is_multiple_of(align_of::<f32>()) {
            return Err(Error::Misaligned { name: name.to_string(), address });
        }
        Ok(Tensor { name, dtype, rows, cols, layout: Layout::Plain, storage, range, row_bytes, factors: None })
    }

    /// The same bytes taken as packed ([`quant::packed`]), which is as many.
    ///
    /// # Errors
    /// [`Error::NotPacked`] for a type without blocks.
    pub fn packed(self) -> Result<Tensor, Error> {
        match Cut::of(self.dtype) {
            Some(_) => Ok(Tensor { layout: Layout::Packed, ..self }),
            None => Err(Error::NotPacked { name: self.name.to_string(), dtype: self.dtype }),
        }
    }

    /// The same weight, of as many equally high matrices as there are `factors`, each multiplied by its own.
    ///
    /// # Errors
    /// [`Error::Factors`] when the rows are no multiple of their number.
    pub fn scaled(self, factors: &[f32]) -> Result<Tensor, Error> {
        if factors.is_empty() || !self.rows.is_multiple_of(factors.len()) {
            return Err(Error::Factors { name: self.name.to_string(), rows: self.rows, factors: factors.len() });
        }
        Ok(Tensor { factors: Some(factors.into()), ..self })
    }

    /// What row `i` is multiplied by besides what its bytes say.
    pub fn factor(&self, i: usize) -> f32 {
        self.factors.as_ref().map_or(1.0, |factors| factors[i / (self.rows / factors.len())])
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &(*self.storage).as_ref()[self.range.clone()]
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// How the blocks of row `i` are cut when they lie in a panel; the last rows of a packed matrix do not.
    pub(crate) fn cut(&self, i: usize) -> Option<Cut> {
        let in_panel = self.layout == Layout::Packed && i < self.rows / ROWS * ROWS;
        in_panel.then(|| Cut::of(self.dtype)).flatten()
    }

    /// Decodes row `i` to F32, `out` `[cols]`, its factor included. Any layout; allocates nothing.
    pub fn decode_row(&self, i: usize, out: &mut [f32]) {
        self.decode_plain_row(i, out);
        if self.factors.is_some() {
            let factor = self.factor(i);
            out.iter_mut().for_each(|x| *x *= factor);
        }
    }

    fn decode_plain_row(&self, i: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "{}: out is not [{}]", self.name, self.cols);
        let Some(cut) = self.cut(i) else {
            return quant::dequantize(self.dtype, &self.bytes()[i * self.row_bytes..][..self.row_bytes], out);
        };
        let panel = &self.bytes()[i / ROWS * ROWS * self.row_bytes..][..ROWS * self.row_bytes];
        let mut block = [0; LARGEST_BLOCK];
        for (b, out) in out.chunks_exact_mut(cut.len).enumerate() {
            cut.block(panel, b, i % ROWS, &mut block[..cut.bytes]);
            quant::dequantize(self.dtype, &block[..cut.bytes], out);
        }
    }

    /// The elements of an F32 tensor.
    ///
    /// # Errors
    /// [`Error::NotF32`] for another type.
    pub fn as_f32(&self) -> Result<&[f32], Error> {
        if self.dtype != DType::F32 {
            return Err(Error::NotF32 { name: self.name.to_string(), dtype: self.dtype });
        }
        let (head, elements, tail) = aligned_f32(self.bytes());
        if !head.is_empty() || !tail.is_empty() {
            return Err(Error::Misaligned { name: self.name.to_string(), address: self.bytes().as_ptr() as usize });
        }
        Ok(elements)
    }

    /// The elements as F32, decoded where the type is another. For vectors (norms, biases), not for matrices.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match self.as_f32() {
            Ok(elements) => Cow::Borrowed(elements),
            Err(_) => {
                let mut out = vec![0.0; self.rows * self.cols];
                out.chunks_exact_mut(self.cols.max(1)).enumerate().for_each(|(i, row)| self.decode_row(i, row));
                Cow::Owned(out)
            }
        }
    }
}

/// Views bytes as F32; what is not aligned is left over in the first and last part.
fn aligned_f32(bytes: &[u8]) -> (&[u8], &[f32], &[u8]) {
    super::cpu::bytes_as_f32(bytes)
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}x{} {}", self.name, self.rows, self.cols, self.dtype)
    }
}
