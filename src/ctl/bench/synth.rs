//! A model of a true shape with random weights: the header of a GGUF that is on no disk, and its data on demand. Loading
//! takes the same way as from a file; writing it out gives a file that other engines read.

use super::Error;
use super::recipe::{Noise, Quant};
use super::shapes::Scaled;
use crate::gguf::write::Builder;
use crate::gguf::{self, Value};
use crate::load::Source;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Bytes made and written at a time.
const CHUNK: usize = 8 << 20;

/// A file that could be.
pub struct Synthetic {
    /// Shape and recipe.
    pub label: String,
    header: Vec<u8>,
    file: gguf::File,
    tensors: Arc<[Piece]>,
}

/// A tensor's place in the file and its data.
struct Piece {
    start: u64,
    end: u64,
    seed: u64,
    noise: Noise,
}

impl Synthetic {
    /// Lays the file out. Makes no weight yet.
    ///
    /// # Errors
    /// [`Error::NoArchitecture`] where this build cannot run the shape.
    pub fn new(sized: &Scaled, quant: Quant) -> Result<Synthetic, Error> {
        sized.check()?;
        let mut builder = Builder::new();
        for (key, value) in sized.metadata(&quant.to_string()) {
            builder = builder.key(key, value);
        }
        builder = builder.key("general.file_type", Value::U32(quant.file_type));
        let (mut sizes, mut noises) = (Vec::new(), Vec::new());
        for tensor in sized.tensors() {
            let cols = tensor.dims.first().copied().unwrap_or(1);
            let dtype = quant.dtype(tensor.role, tensor.layer, sized.layers, cols);
            let elements: u64 = tensor.dims.iter().product();
            sizes.push(elements / dtype.block_len() as u64 * dtype.block_bytes() as u64);
            noises.push(Noise::new(tensor.role, dtype, cols));
            builder = builder.tensor(&tensor.name, &tensor.dims, dtype, Vec::new());
        }
        let header = builder.build_header(&sizes);
        let total = header.len() as u64 + sizes.iter().map(|size| size.next_multiple_of(32)).sum::<u64>();
        let file = gguf::File::parse(&header, total)?;
        let piece = |(index, (info, noise)): (usize, (&gguf::TensorInfo, Noise))| Piece {
            start: info.offset,
            end: info.offset + info.size,
            // Far apart, so that no tensor repeats a part of another one.
            seed: (index as u64) << 40,
            noise,
        };
        let tensors = file.tensors.iter().zip(noises).enumerate().map(piece).collect();
        Ok(Synthetic { label: format!("{} {quant}", sized.label()), header, file, tensors })
    }

    /// Header and data in all, in bytes.
    pub fn bytes(&self) -> u64 {
        self.tensors.last().map_or(0, |piece| piece.end.next_multiple_of(32))
    }

    /// The header alone: all that planning and inspecting read.
    #[cfg(test)]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// For the loader.
    pub fn source(&self) -> Source {
        let tensors = Arc::clone(&self.tensors);
        Source::made(&self.label, self.file.clone(), Arc::new(move |offset, out| fill(&tensors, offset, out)))
    }

    /// Writes to `out`, the empty file `path`; `progress` gets the bytes written and in all.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write(&self, mut out: File, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), Error> {
        let failed = |source| Error::Write { path: path.to_path_buf(), source };
        out.write_all(&self.header).map_err(failed)?;
        let (mut at, end) = (self.header.len() as u64, self.bytes());
        let mut chunk = vec![0; CHUNK];
        while at < end {
            let len = (end - at).min(CHUNK as u64) as usize;
            fill(&self.tensors, at, &mut chunk[..len]);
            out.write_all(&chunk[..len]).map_err(failed)?;
            at += len as u64;
            progress(at, end);
        }
        // What is read past the page cache must have reached the disk.
        out.sync_all().map_err(failed)
    }
}

/// The bytes of the file from `offset` on; between tensors there are zeros.
fn fill(tensors: &[Piece], offset: u64, out: &mut [u8]) {
    let end = offset + out.len() as u64;
    let first = tensors.partition_point(|piece| piece.end <= offset);
    let mut at = offset;
    for piece in tensors[first..].iter().take_while(|piece| piece.start < end) {
        let (from, to) = (piece.start.max(offset), piece.end.min(end));
        out[(at - offset) as usize..(from - offset) as usize].fill(0);
        piece.noise.fill(piece.seed, from - piece.start, &mut out[(from - offset) as usize..(to - offset) as usize]);
        at = to;
    }
    out[(at - offset) as usize..].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::bench::shapes::SHAPES;
    use crate::model::{Architecture, FeedForward};
    use crate::quant::Layout;

    /// Each block's kinds: dense ones first, then those with experts.
    #[test]
    fn shapes_of_architectures_that_run_are_bound() {
        for shape in SHAPES.iter().filter(|shape| Architecture::from_name(shape.arch).is_some()) {
            for (layers, quant) in
                [(shape.layers.min(4), "mxfp4"), (shape.layers.min(4), "q4_k_m"), (shape.layers, "q4_k_m")]
            {
                let made = Synthetic::new(&Scaled { shape, layers }, quant.parse().unwrap()).unwrap();
                let model = made.source().bind().unwrap_or_else(|error| panic!("{}: {error}", made.label));
                assert_eq!((model.layers.len(), model.ignored.len()), (layers, 0), "{}", made.label);
            }
        }
        let made = Synthetic::new(&"deepseek-r1:4".parse().unwrap(), "q4_k_m".parse().unwrap()).unwrap();
        let numbers = made.source().bind().unwrap().hparams;
        assert_eq!(numbers.kv_bytes_per_token(crate::quant::DType::F16), 4 * 576 * 2);
    }

    #[test]
    fn the_file_on_disk_is_the_one_in_memory() {
        let made = Synthetic::new(&"tiny".parse().unwrap(), "q4_k_m".parse().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        made.write(File::create(&path).unwrap(), &path, &mut |_, _| ()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), made.bytes());
        let (disk, memory) = (Source::open(&path).unwrap(), made.source());
        assert_eq!(disk.header.tensors, memory.header.tensors);
        let load =
            |source: &Source| source.load(source.bind().unwrap(), &|_, _, _| Layout::Plain, &mut |_| ()).unwrap();
        let (disk, memory) = (load(&disk), load(&memory));
        for (a, b) in disk.tensors().into_iter().zip(memory.tensors()) {
            assert!(a.bytes() == b.bytes() && a.dtype == b.dtype, "{} differs", a.name);
        }
        let norm = memory.output_norm.as_f32().unwrap();
        assert!(norm.iter().all(|&weight| weight == 1.0));
        let FeedForward::Dense(ffn) = &memory.layers[0].ffn else { panic!("the tiny shape is dense") };
        assert_ne!(ffn.up.weight.bytes(), ffn.gate.weight.bytes());
    }
}
