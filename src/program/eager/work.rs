//! What a step makes the device do: counted op by op as the interpreter runs, in whole numbers, without seconds and without a device.
//!
//! An op is a kernel that writes what it allocates; what it reads, what it computes and what it does in place is said beside it.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::tensor::{DType, Tensor};
use super::torch::Torch;

/// What is counted besides matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// FLOPs of fused attention of 16-bit operands.
    Attention,
    /// FLOPs of fused attention of 32-bit operands.
    AttentionSingle,
    /// Bytes read and written in device memory by everything but matrix products.
    Moved,
    /// Bytes read and written by the kernel that unpacks 4-bit weights.
    Unpacked,
    /// Kernels launched.
    Kernels,
    /// Of them, those that Python's model code asks for, in the forward pass or a recomputation; the rest come from the autograd engine and the
    /// optimizer.
    Called,
    /// Bytes copied between host and device.
    Link,
    /// Blocks of kernels over lists of tensors, which are launched [`Unit::BLOCKS`] at a time.
    Blocks,
}

/// Number of units.
const UNITS: usize = Unit::Blocks as usize + 1;

/// Classes of matrix products by FLOPs for a byte: whether a product is bound by arithmetic or by memory is the device's affair, so products
/// are summed only with those like them.
pub const INTENSITIES: usize = 6;
/// The largest intensity of each class but the last.
const BOUNDS: [u128; INTENSITIES - 1] = [8, 32, 96, 192, 384];

/// Matrix products of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Products {
    /// FLOPs.
    pub flops: u128,
    /// Bytes of operands and results.
    pub bytes: u128,
}

/// Amounts of each unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    units: [u128; UNITS],
    /// Products of 16-bit operands, from the least FLOPs for a byte to the most.
    pub half: [Products; INTENSITIES],
    /// Products of 32-bit operands; PyTorch does not use TF32 unless told to.
    pub single: [Products; INTENSITIES],
}

impl Unit {
    /// All units, in their order.
    pub const ALL: [Unit; UNITS] = [
        Unit::Attention,
        Unit::AttentionSingle,
        Unit::Moved,
        Unit::Unpacked,
        Unit::Kernels,
        Unit::Called,
        Unit::Link,
        Unit::Blocks,
    ];

    /// Blocks of one launch (`depth_to_max_blocks`, MultiTensorApply.cuh).
    pub const BLOCKS: u32 = 320;

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Attention => "attention_flops",
            Unit::AttentionSingle => "attention_single_flops",
            Unit::Moved => "moved_bytes",
            Unit::Unpacked => "unpacked_bytes",
            Unit::Kernels => "kernels",
            Unit::Called => "called_kernels",
            Unit::Link => "link_bytes",
            Unit::Blocks => "list_blocks",
        }
    }
}

impl Products {
    fn add(&mut self, other: Products) {
        self.flops = self.flops.saturating_add(other.flops);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    fn along(self, long: Products, steps: u128) -> Products {
        Products {
            flops: along(self.flops, long.flops, steps),
            bytes: along(self.bytes, long.bytes, steps),
        }
    }
}

/// An amount and `steps` times what `long` has more.
fn along(short: u128, long: u128, steps: u128) -> u128 {
    short.saturating_add(long.saturating_sub(short).saturating_mul(steps))
}

impl Work {
    /// How much there is of a unit.
    pub fn of(&self, unit: Unit) -> u128 {
        self.units[unit as usize]
    }

    /// FLOPs of all kinds.
    pub fn flops(&self) -> u128 {
        let products = self.half.iter().chain(&self.single);
        let fused = self.of(Unit::Attention) + self.of(Unit::AttentionSingle);
        fused + products.map(|p| p.flops).sum::<u128>()
    }

    /// Adds so much of a unit.
    pub fn add(&mut self, unit: Unit, amount: u128) {
        let sum = &mut self.units[unit as usize];
        *sum = sum.saturating_add(amount);
    }

    /// Adds matrix products alike, of 16-bit or of 32-bit operands.
    pub fn multiply(&mut self, half: bool, products: Products) {
        let intensity = products.flops / products.bytes.max(1);
        let class = BOUNDS.iter().filter(|most| intensity > **most).count();
        let kind = if half {
            &mut self.half
        } else {
            &mut self.single
        };
        kind[class].add(products);
    }

    /// Both together.
    pub fn plus(mut self, other: &Work) -> Work {
        Unit::ALL.iter().for_each(|&u| self.add(u, other.of(u)));
        for class in 0..INTENSITIES {
            self.half[class].add(other.half[class]);
            self.single[class].add(other.single[class]);
        }
        self
    }

    /// `self` and `steps` times what `long` has more.
    pub(super) fn along(&self, long: &Work, steps: u128) -> Work {
        let mut made = *self;
        for (at, amount) in made.units.iter_mut().enumerate() {
            *amount = along(self.units[at], long.units[at], steps);
        }
        for class in 0..INTENSITIES {
            made.half[class] = self.half[class].along(long.half[class], steps);
            made.single[class] = self.single[class].along(long.single[class], steps);
        }
        made
    }
}

impl Serialize for Work {
    /// Sums over the classes; amounts beyond 64 bits lose their last digits.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let sum = |of: &[Products], get: fn(&Products) -> u128| of.iter().map(get).sum::<u128>();
        let products = [
            ("half_flops", sum(&self.half, |p| p.flops)),
            ("half_bytes", sum(&self.half, |p| p.bytes)),
            ("single_flops", sum(&self.single, |p| p.flops)),
            ("single_bytes", sum(&self.single, |p| p.bytes)),
        ];
        let units = Unit::ALL.map(|unit| (unit.name(), self.of(unit)));
        let mut map = to.serialize_map(Some(UNITS + products.len()))?;
        for (name, amount) in products.into_iter().chain(units) {
            match u64::try_from(amount) {
                Ok(amount) => map.serialize_entry(name, &amount)?,
                Err(_) => map.serialize_entry(name, &(amount as f64))?,
            }
        }
        map.end()
    }
}

/// Bytes of a tensor's own elements: what is expanded is read once.
pub fn bytes(of: &Tensor) -> u64 {
    let both = of.shape.all().iter().zip(of.strides.all());
    let own = both.map(|(size, stride)| if *stride == 0 { 1 } else { *size });
    own.product::<u64>() * of.dtype.bytes()
}

impl Torch {
    /// The running op reads these.
    pub(super) fn reads(&self, tensors: &[&Tensor]) {
        self.moves(tensors.iter().map(|t| bytes(t)).sum());
    }

    /// The running op moves so many bytes beside what it allocates.
    pub(super) fn moves(&self, bytes: u64) {
        self.tape().work(Unit::Moved, bytes.into());
    }

    /// The kernel that unpacks 4-bit weights moves so many bytes.
    pub(super) fn unpacks_bytes(&self, bytes: u64) {
        self.tape().work(Unit::Unpacked, bytes.into());
    }

    /// A kernel that allocates nothing and moves so many bytes.
    pub(super) fn in_place(&self, bytes: u64) {
        self.launches(1);
        self.moves(bytes);
    }

    /// So many more kernels than ops are named.
    pub(super) fn launches(&self, kernels: u64) {
        self.tape().launch(kernels);
    }

    /// The running op multiplies matrices of (rows, inner) and (inner, columns), `batch` times; its operands and its result are counted with it.
    pub(super) fn multiplies(&self, dtype: DType, [batch, rows, inner, columns]: [u64; 4]) {
        let elements = product(&[batch, rows, inner])
            + product(&[batch, inner, columns])
            + product(&[batch, rows, columns]);
        let products = Products {
            flops: 2 * product(&[batch, rows, inner, columns]),
            bytes: elements * u128::from(dtype.bytes()),
        };
        self.tape().multiply(dtype.bytes() == 2, products);
    }

    /// The running op is fused attention: `products` matrix products of queries (B, heads, T, D) with all keys, half of each where it is causal.
    pub(super) fn attends(&self, q: &Tensor, keys: u64, products: u128, causal: bool) {
        let all = 2 * product(q.shape.all()) * u128::from(keys) * products;
        let unit = match q.dtype.bytes() {
            2 => Unit::Attention,
            _ => Unit::AttentionSingle,
        };
        self.tape().work(unit, if causal { all / 2 } else { all });
    }

    /// So many blocks of kernels over lists are launched.
    pub(super) fn blocks(&self, blocks: u64) {
        self.tape().work(Unit::Blocks, blocks.into());
    }

    /// So many bytes cross the link between host and device.
    pub(super) fn crosses(&self, bytes: u64) {
        self.tape().work(Unit::Link, bytes.into());
    }
}

fn product(of: &[u64]) -> u128 {
    of.iter().map(|&n| u128::from(n)).product()
}
