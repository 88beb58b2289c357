//! Counter-based random numbers: a number is a pure function of (seed, position), so a sequence's text depends neither
//! on its neighbours in the batch nor on how often others drew. Called by the sampler alone.

/// A number in `[0, 1)` with 53 random bits, keyed by `seed` and `position` (tokens drawn before).
pub fn uniform(seed: u64, position: u64) -> f64 {
    let (bits, _) = philox2x64(position, 0, seed);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Philox 2x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
fn philox2x64(mut low: u64, mut high: u64, mut key: u64) -> (u64, u64) {
    const MULTIPLIER: u64 = 0xD2B7_4407_B1CE_6E93;
    const WEYL: u64 = 0x9E37_79B9_7F4A_7C15;
    for _ in 0..10 {
        let product = u128::from(low) * u128::from(MULTIPLIER);
        low = (product >> 64) as u64 ^ key ^ high;
        high = product as u64;
        key = key.wrapping_add(WEYL);
    }
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(philox2x64(0, 0, 0), (0xca00_a045_9843_d731, 0x66c2_4222_c9a8_45b5));
        assert_eq!(philox2x64(u64::MAX, u64::MAX, u64::MAX), (0x65b0_21d6_0cd8_310f, 0x4d02_f322_2f86_df20));
    }

    #[test]
    fn numbers_lie_in_the_unit_interval_and_differ_by_seed_and_position() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..100 {
            for position in 0..100 {
                let value = uniform(seed, position);
                assert!((0.0..1.0).contains(&value));
                assert!(seen.insert(value.to_bits()), "repeats at seed {seed}, position {position}");
            }
        }
    }
}
