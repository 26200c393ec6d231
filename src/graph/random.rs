//! Counter-based randomness: a value is a pure function of (seed, step, origin, index), so clones draw the same.

/// What a stream of random numbers is a function of, besides the element's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Key(pub u64);

impl Key {
    /// The key of `origin` at `step` of the job seeded with `seed`.
    pub fn new(seed: u64, step: u64, origin: &str) -> Key {
        // FNV-1a over the origin's bytes; its text is stable across programs where ids are not.
        let text = origin.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        Key(mix(mix(seed ^ 0x9e37_79b9_7f4a_7c15)
            .wrapping_add(mix(step))
            ^ text))
    }

    /// The key of part `index` of this stream: a stream of its own.
    pub fn part(self, index: u64) -> Key {
        Key(mix(self.0 ^ mix(index.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// 64 uniform bits for element `index`.
    #[inline]
    pub fn bits(self, index: u64) -> u64 {
        mix(self
            .0
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Uniform in [0, 1) with 24 bits.
    #[inline]
    pub fn uniform(self, index: u64) -> f32 {
        (self.bits(index) >> 40) as f32 * (1.0 / (1u64 << 24) as f32)
    }

    /// Standard normal (Box and Muller 1958), from the two halves of one draw.
    pub fn normal(self, index: u64) -> f32 {
        let bits = self.bits(index);
        let u = ((bits >> 32) as f64 + 1.0) / 4_294_967_297.0;
        let v = (bits & 0xffff_ffff) as f64 / 4_294_967_296.0;
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }
}

/// The finalizer of SplitMix64 (Steele et al. 2014).
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
