//! Which instruction sets this host has, less those the configuration switches off. Decides the tier; `table` maps a
//! tier to kernels.

use super::Error;

/// Tiers of kernels, each including the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// Any host.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ.
    Avx512,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX-512 with VNNI and BF16.
    Avx512Bf16,
}

/// All tiers, weakest first.
pub(crate) const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16];

impl Isa {
    /// Name in settings, `doctor` and bench rows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// True where the host runs this tier's instructions.
    pub(crate) fn on_host(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Isa::Scalar => true,
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            Isa::Avx512 => {
                Isa::Avx2.on_host()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            Isa::Avx512Vnni => Isa::Avx512.on_host() && is_x86_feature_detected!("avx512vnni"),
            Isa::Avx512Bf16 => Isa::Avx512Vnni.on_host() && is_x86_feature_detected!("avx512bf16"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Isa::Scalar;
    }

    /// The best tier of the host below the first one that is disabled: a tier includes those before it.
    ///
    /// # Errors
    /// [`Error::Setting`] for a name that is none of [`ALL`], or `scalar`, which cannot be disabled.
    pub(crate) fn detect(disabled: &[String]) -> Result<Isa, Error> {
        for name in disabled {
            if !ALL[1..].iter().any(|isa| isa.name() == name.as_str()) {
                return Err(Error::Setting(format!(
                    "unknown instruction set `{name}`; avx2, avx512, avx512vnni and avx512bf16 can be disabled"
                )));
            }
        }
        let usable = |isa: &&Isa| isa.on_host() && !disabled.iter().any(|name| name == isa.name());
        Ok(ALL.iter().take_while(usable).last().copied().unwrap_or(Isa::Scalar))
    }
}
