//! Hands out a file's tensors by name, each checked for shape and type, and knows which ones nobody asked for.

use super::{Error, Linear};
use crate::gguf::{File, TensorInfo};
use crate::quant::DType;
use std::collections::HashMap;

/// Tensors not handed out yet.
pub(super) struct Binder<'a> {
    tensors: HashMap<&'a str, &'a TensorInfo>,
    file: &'a File,
}

/// Whether a matrix has a bias.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    /// Taken where the file has it.
    Optional,
    /// Must be there.
    Required,
}

impl<'a> Binder<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Binder { tensors: file.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(), file }
    }

    /// A matrix `[rows, cols]` of any type that has a decoder.
    pub(super) fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<TensorInfo, Error> {
        self.optional_matrix(name, rows, cols)?.ok_or_else(|| missing(name))
    }

    /// As [`Binder::matrix`], `None` where the file has no such tensor.
    pub(super) fn optional_matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<TensorInfo>, Error> {
        let Some(tensor) = self.scaled_matrix(name, rows, cols)? else { return Ok(None) };
        // Left out it would be a silent error: the weights are off by that factor.
        if let Some(stem) = name.strip_suffix(".weight")
            && let Some(scale) = scale_names(stem).iter().find_map(|scale| self.tensors.get(scale.as_str()))
        {
            return Err(not_applied(scale, &tensor));
        }
        Ok(Some(tensor))
    }

    /// A matrix whose factor, where it has one, is taken besides.
    fn scaled_matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Option<TensorInfo>, Error> {
        let Some(tensor) = self.take(name, &[cols as u64, rows as u64])? else { return Ok(None) };
        if !tensor.dtype.is_supported() {
            return Err(undecodable(&tensor));
        }
        Ok(Some(tensor))
    }

    /// The factors of `matrices` matrices. Those for activations of another engine (`.input_scale`) have no meaning here.
    fn scale(&mut self, name: &str, matrices: usize) -> Result<Option<TensorInfo>, Error> {
        self.tensors.remove(format!("{name}.input_scale").as_str());
        for name in scale_names(name) {
            if let Some(scale) = self.optional_vector(&name, matrices)? {
                return Ok(Some(scale));
            }
        }
        Ok(None)
    }

    /// An F32 vector: a norm's weight or a bias.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<TensorInfo, Error> {
        self.optional_vector(name, len)?.ok_or_else(|| missing(name))
    }

    /// As [`Binder::vector`], `None` where the file has no such tensor.
    pub(super) fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<TensorInfo>, Error> {
        let Some(tensor) = self.take(name, &[len as u64])? else { return Ok(None) };
        if tensor.dtype != DType::F32 {
            return Err(wrong_type(&tensor, NOT_F32));
        }
        Ok(Some(tensor))
    }

    /// An F32 matrix `[rows, cols]` that is no product's weight.
    pub(super) fn float_matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<TensorInfo, Error> {
        let tensor = self.take(name, &[cols as u64, rows as u64])?.ok_or_else(|| missing(name))?;
        if tensor.dtype != DType::F32 {
            return Err(wrong_type(&tensor, NOT_F32));
        }
        Ok(tensor)
    }

    /// `{name}.weight` `[rows, cols]` with `{name}.bias` `[rows]` and `{name}.scale` `[1]`.
    pub(super) fn linear(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
        bias: Bias,
    ) -> Result<Linear<TensorInfo>, Error> {
        let weight_name = format!("{name}.weight");
        let weight = self.scaled_matrix(&weight_name, rows, cols)?.ok_or_else(|| missing(&weight_name))?;
        let scale = self.scale(name, 1)?;
        let bias_name = format!("{name}.bias");
        let found = self.optional_vector(&bias_name, rows)?;
        if found.is_none() && bias == Bias::Required {
            return Err(missing(&bias_name));
        }
        Ok(Linear { weight, bias: found, scale })
    }

    /// `{name}.weight` `[Σ rows, cols]` and its bias, where the file has one, cut to matrices that stand one below the
    /// other, each by its name within and its rows. Rows are contiguous, so a part is a tensor like any other.
    pub(super) fn fused<const N: usize>(
        &mut self,
        name: &str,
        parts: [(&str, usize); N],
        cols: usize,
    ) -> Result<[Linear<TensorInfo>; N], Error> {
        let all = parts.iter().fold(0usize, |sum, (_, rows)| sum.saturating_add(*rows));
        let whole = self.linear(name, all, cols, Bias::Optional)?;
        let mut first = 0;
        Ok(parts.map(|(part, rows)| {
            // Exact: a tensor's size is that of its rows.
            let cut = |tensor: &TensorInfo, kind: &str, shape: Vec<u64>| {
                let row_bytes = tensor.size / all as u64;
                let (offset, size) = (tensor.offset + first as u64 * row_bytes, rows as u64 * row_bytes);
                TensorInfo { name: format!("{name}.{part}.{kind}"), shape, offset, size, ..tensor.clone() }
            };
            let weight = cut(&whole.weight, "weight", vec![cols as u64, rows as u64]);
            let bias = whole.bias.as_ref().map(|bias| cut(bias, "bias", vec![rows as u64]));
            first += rows;
            Linear { weight, bias, scale: whole.scale.clone() }
        }))
    }

    /// `{name}.weight`, `matrices` of `[rows, cols]`, with `{name}.bias` `[matrices, rows]` where the file has it.
    pub(super) fn stack(
        &mut self,
        name: &str,
        matrices: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Linear<TensorInfo>, Error> {
        self.optional_stack(name, matrices, rows, cols)?.ok_or_else(|| missing(&format!("{name}.weight")))
    }

    /// The matrices alone; a file that has factors beside them is refused.
    pub(super) fn plain_stack(
        &mut self,
        name: &str,
        matrices: usize,
        rows: usize,
        cols: usize,
    ) -> Result<TensorInfo, Error> {
        let Linear { weight, scale, .. } = self.stack(name, matrices, rows, cols)?;
        match scale {
            None => Ok(weight),
            Some(scale) => Err(not_applied(&scale, &weight)),
        }
    }

    /// As [`Binder::stack`], `None` where the file has no such weight.
    pub(super) fn optional_stack(
        &mut self,
        name: &str,
        matrices: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Linear<TensorInfo>>, Error> {
        let [matrices, rows, cols] = [matrices, rows, cols].map(|n| n as u64);
        let Some(weight) = self.take(&format!("{name}.weight"), &[cols, rows, matrices])? else { return Ok(None) };
        if !weight.dtype.is_supported() {
            return Err(undecodable(&weight));
        }
        let bias = self.take(&format!("{name}.bias"), &[rows, matrices])?;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.dtype != DType::F32) {
            return Err(wrong_type(bias, NOT_F32));
        }
        let scale = self.scale(name, matrices as usize)?;
        Ok(Some(Linear { weight, bias, scale }))
    }

    /// The tensor of that name, its shape checked. Trailing dimensions of 1 do not count.
    fn take(&mut self, name: &str, expected: &[u64]) -> Result<Option<TensorInfo>, Error> {
        let Some(tensor) = self.tensors.remove(name) else { return Ok(None) };
        let trimmed = |shape: &[u64]| shape.iter().rposition(|&dim| dim != 1).map_or(0, |last| last + 1);
        if tensor.shape.is_empty() || tensor.shape[..trimmed(&tensor.shape)] != expected[..trimmed(expected)] {
            return Err(Error::Shape { tensor: name.into(), expected: expected.to_vec(), found: tensor.shape.clone() });
        }
        Ok(Some(tensor.clone()))
    }

    /// Names nobody asked for, in file order.
    pub(super) fn unused(&self) -> Vec<String> {
        let tensors = self.file.tensors.iter();
        tensors
            .filter(|tensor| self.tensors.contains_key(tensor.name.as_str()))
            .map(|tensor| tensor.name.clone())
            .collect()
    }
}

/// What files call the factor of `{name}.weight`.
fn scale_names(name: &str) -> [String; 2] {
    [format!("{name}.scale"), format!("{name}.weight.scale")]
}

fn missing(name: &str) -> Error {
    Error::MissingTensor { tensor: name.into() }
}

const NOT_F32: &str = "norms, biases, factors and convolutions must be F32";

fn not_applied(factor: &TensorInfo, weight: &TensorInfo) -> Error {
    Error::Factor { tensor: factor.name.clone(), weight: weight.name.clone(), dtype: weight.dtype }
}

fn undecodable(tensor: &TensorInfo) -> Error {
    wrong_type(tensor, "this build has no decoder for it; choose another quantisation")
}

fn wrong_type(tensor: &TensorInfo, problem: &'static str) -> Error {
    Error::Type { tensor: tensor.name.clone(), dtype: tensor.dtype, problem }
}
