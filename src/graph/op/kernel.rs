//! How an op runs on an NVIDIA GPU, as plain data: which text is compiled, how it is launched, what it is given.

use std::fmt;

use crate::graph::random::Key;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;

use super::{Op, Scalars};

/// Threads of every block of every kernel (`THREADS` in `kernels/common.cuh`).
pub const THREADS: u32 = 256;

/// Bytes of shared memory that kernels fit rows into: what every GPU from compute capability 8.0 on gives a block, but for a little.
pub(super) const SHARED: u64 = 96 << 10;

/// Most blocks of a kernel that strides over its elements: enough for any GPU, and what is left is walked.
const MOST_BLOCKS: u64 = 1 << 16;

/// Options of NVRTC for every kernel. Products and sums are not contracted, division and root are IEEE's, and small numbers
/// are kept, as on the CPU: what an elementwise kernel computes has the same bits there. Kernels ask for `fmaf` where they want it.
pub const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// What a kernel may depend on: the types of one call, and the numbers of the running step.
///
/// Numbers enter scalar arguments only. Text, defines, grid and pointers depend on types alone, so that a machine may ask once
/// ahead of time with any numbers to learn which modules to compile; a law test holds every op to it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Types of the inputs, in order.
    pub inputs: &'a [Type],
    /// Types of the outputs, in order.
    pub outputs: &'a [Type],
    /// Randomness of this call: (seed, step, origin).
    pub key: Key,
    /// Numbers of the step.
    pub scalars: Scalars,
}

/// How one call of an op runs on an NVIDIA GPU.
#[derive(Debug, Clone, PartialEq)]
pub enum Kernel {
    /// There is no kernel: a plan that needs the op is refused by its name.
    Missing,
    /// The machine itself does it: copies between places, order, values from and to the outside.
    Transfer,
    /// Tasks in their order, on the node's stream; none where there is nothing to do.
    Run(Vec<Task>),
}

/// One task of a [`Kernel`]. Each may read what those before it wrote: a stream keeps their order.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// A kernel of ours.
    Launch(Launch),
    /// A matrix product, for cuBLASLt or for the kernel of ours that [`Gemm::launch`] gives.
    Gemm(Gemm),
}

impl Task {
    /// Whether there is nothing to launch.
    pub fn is_empty(&self) -> bool {
        match self {
            Task::Launch(launch) => launch.is_empty(),
            Task::Gemm(gemm) => gemm.m == 0 || gemm.n == 0,
        }
    }
}

/// The launch of one kernel of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// `kernels/<stem>.cu`.
    pub stem: &'static str,
    /// The function, `extern "C"`.
    pub entry: &'static str,
    /// Macros set before the text, in this order: number formats, and what else the text is compiled for.
    pub defines: Vec<(&'static str, Define)>,
    /// Blocks; a launch with a zero here is left out.
    pub grid: [u32; 3],
    /// Bytes of dynamic shared memory. Above 48 KiB a machine must allow the function as much
    /// (`CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`); none asks for more than 97 KiB, of the 99 that every GPU from
    /// compute capability 8.0 on gives a block.
    pub shared: u32,
    /// The parameters, in order. Blocks have [`THREADS`] threads.
    pub arguments: Vec<Argument>,
}

/// What a macro stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Define {
    /// A name or an expression.
    Word(&'static str),
    /// A number.
    Number(u64),
}

impl fmt::Display for Define {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Define::Word(word) => f.write_str(word),
            Define::Number(number) => number.fmt(f),
        }
    }
}

/// A parameter of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// An address.
    Pointer(Pointer),
    /// The null pointer: what the kernel does without.
    Null,
    /// `u32`.
    U32(u32),
    /// `u64`.
    U64(u64),
    /// `float`.
    F32(f32),
    /// `double`.
    F64(f64),
}

/// A place in the memory of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// Whose memory.
    pub of: Memory,
    /// Bytes from its start.
    pub offset: u64,
}

/// The memory of one call. An input that an output overwrites is the same memory as that output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// An input.
    Input(usize),
    /// An output.
    Output(usize),
    /// The scratch that [`Op::scratch`] asks for, 256-byte aligned.
    Scratch,
}

/// `d (m, n) = alpha · a (m, k) · b (k, n)`, summed in f32 and rounded once; `+ d` before the rounding with `accumulate`.
///
/// Everything is row-major. cuBLASLt is column-major: `dᵀ = bᵀ aᵀ`, operands swapped, no data moved. It must compute in
/// f32 (`CUBLAS_COMPUTE_32F`, no TF32, no reduction in 16 bits). Formats of a and b differ where a 32-bit gradient meets a
/// 16-bit weight, which cuBLASLt does not take: that product runs on [`Gemm::launch`].
#[derive(Debug, Clone, PartialEq)]
pub struct Gemm {
    /// Rows of a and d.
    pub m: u64,
    /// Columns of b and d.
    pub n: u64,
    /// The summed length.
    pub k: u64,
    /// Left operand.
    pub a: Matrix,
    /// Right operand.
    pub b: Matrix,
    /// Result.
    pub d: Matrix,
    /// What the product is multiplied by.
    pub alpha: f32,
    /// Whether the product is added to d.
    pub accumulate: bool,
    /// A row of n numbers, of d's format, added to each row. By definition after the product was rounded; an epilogue that
    /// adds it before rounds once less.
    pub bias: Option<Pointer>,
}

/// A row-major matrix in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    /// Its first element.
    pub at: Pointer,
    /// Number format.
    pub dtype: DType,
    /// Elements from one stored row to the next.
    pub stride: u64,
    /// Whether the operand is the transpose of what is stored.
    pub transposed: bool,
}

/// Stems with the text of `kernels/<stem>.cu`, behind that of another file of kernels where one is named.
macro_rules! sources {
    ($($stem:literal $(behind $first:literal)?),* $(,)?) => {
        &[$((
            $stem,
            concat!(
                $(include_str!(concat!("../../../kernels/", $first)),)?
                include_str!(concat!("../../../kernels/", $stem, ".cu"))
            ),
        )),*]
    };
}

/// The text of `kernels/<stem>.cu`, for each stem.
#[rustfmt::skip]
const SOURCES: &[(&str, &str)] = sources![
    "activation", "adafactor", "attention" behind "attention.cuh", "attention_mma" behind "attention.cuh", "bias",
    "compress", "cross_entropy", "direction", "dropout", "elementwise", "embedding", "galore_refresh", "gemm", "guard",
    "lsp_renew", "masked_adamw", "microadam", "moe", "norm", "prepend", "quantized", "rope", "sparse", "update",
];

/// What every kernel's text begins with.
const COMMON: &str = concat!(
    include_str!("../../../kernels/common.cuh"),
    include_str!("../../../kernels/tensor.cuh")
);

/// Stems of all files of kernels.
pub fn stems() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|(stem, _)| *stem)
}

/// Input `index`, from its start.
pub(super) fn input(index: usize) -> Argument {
    at(Memory::Input(index), 0).into()
}

/// Output `index`, from its start.
pub(super) fn output(index: usize) -> Argument {
    at(Memory::Output(index), 0).into()
}

/// Scratch from byte `offset` on.
pub(super) fn scratch(offset: u64) -> Argument {
    at(Memory::Scratch, offset).into()
}

/// Byte `offset` of some memory.
pub(super) fn at(of: Memory, offset: u64) -> Pointer {
    Pointer { of, offset }
}

impl Call<'_> {
    /// The format of input `index`.
    pub(super) fn format(&self, index: usize) -> DType {
        self.inputs[index].dtype
    }

    /// Bytes of the op's scratch on a GPU.
    pub fn scratch(&self, op: &dyn Op) -> u64 {
        let backend = Backend::Cuda { capability: 80 };
        op.scratch(self.inputs, backend).0
    }
}

impl Kernel {
    /// One launch.
    pub(super) fn one(launch: Launch) -> Kernel {
        Kernel::all([launch])
    }

    /// How many times something is queued for it: its tasks but for those of no blocks; once where the machine itself does it.
    pub fn launches(&self) -> u64 {
        match self {
            Kernel::Missing | Kernel::Transfer => 1,
            Kernel::Run(tasks) => tasks.iter().filter(|task| !task.is_empty()).count() as u64,
        }
    }

    /// Some launches, in their order.
    pub(super) fn all(launches: impl IntoIterator<Item = Launch>) -> Kernel {
        Kernel::Run(launches.into_iter().map(Task::Launch).collect())
    }
}

impl Launch {
    /// A launch of no blocks and no arguments yet.
    pub(super) fn new(stem: &'static str, entry: &'static str) -> Launch {
        Launch {
            stem,
            entry,
            defines: Vec::new(),
            grid: [1; 3],
            shared: 0,
            arguments: Vec::new(),
        }
    }

    /// With macro `name` a number format.
    pub(super) fn format(self, name: &'static str, dtype: DType) -> Launch {
        self.define(name, spelling(dtype))
    }

    /// With macro `name` as `value`, whatever it stood for.
    pub(super) fn define(mut self, name: &'static str, value: impl Into<Define>) -> Launch {
        let value = value.into();
        match self.defines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.defines.push((name, value)),
        }
        self
    }

    /// With a block for each of `count` things, which the kernel strides over where they are too many.
    pub(super) fn blocks(mut self, count: u64) -> Launch {
        self.grid = [count.min(MOST_BLOCKS) as u32, 1, 1];
        self
    }

    /// With a thread for each of `count` things.
    pub(super) fn each(self, count: u64) -> Launch {
        self.blocks(count.div_ceil(u64::from(THREADS)))
    }

    /// With threads for `count` elements, of which each takes eight at a time.
    pub(super) fn elements(self, count: u64) -> Launch {
        self.each(count.div_ceil(8))
    }

    /// With a grid of its own.
    pub(super) fn grid(mut self, x: u64, y: u64, z: u64) -> Launch {
        self.grid = [x, y, z].map(|n| n as u32);
        self
    }

    /// With dynamic shared memory.
    pub(super) fn shared(mut self, bytes: u64) -> Launch {
        self.shared = bytes as u32;
        self
    }

    /// With these parameters behind those it has.
    pub(super) fn given(mut self, arguments: impl IntoIterator<Item = Argument>) -> Launch {
        self.arguments.extend(arguments);
        self
    }

    /// Whether it has no blocks, and is left out.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }

    /// What tells its module from others: stem and defines.
    pub fn module(&self) -> String {
        let defines = self.defines.iter();
        defines.fold(self.stem.to_string(), |text, (name, value)| {
            format!("{text} {name}={value}")
        })
    }

    /// The whole translation unit of its module; it includes nothing.
    ///
    /// # Panics
    /// Where the stem is not that of a file of kernels: a test asks every op.
    pub fn text(&self) -> String {
        let source = SOURCES.iter().find(|(stem, _)| *stem == self.stem);
        let (_, source) = source.unwrap_or_else(|| panic!("no kernels/{}.cu", self.stem));
        let defines = self.defines.iter();
        let defines: String = defines
            .map(|(name, value)| format!("#define {name} {value}\n"))
            .collect();
        format!("{COMMON}\n{defines}{source}")
    }
}

impl Gemm {
    /// A product into contiguous `d`.
    pub(super) fn new((m, n, k): (u64, u64, u64), a: Matrix, b: Matrix, d: Matrix) -> Gemm {
        Gemm {
            m,
            n,
            k,
            a,
            b,
            d,
            alpha: 1.0,
            accumulate: false,
            bias: None,
        }
    }

    /// The same product by our own kernel, which takes any formats and strides.
    pub fn launch(&self) -> Launch {
        const TILE: u64 = 128;
        let flag = |on: bool| Argument::U32(u32::from(on));
        Launch::new("gemm", "gemm")
            .format("A", self.a.dtype)
            .format("B", self.b.dtype)
            .format("D", self.d.dtype)
            .define("A_TRANSPOSED", u32::from(self.a.transposed))
            .define("B_TRANSPOSED", u32::from(self.b.transposed))
            .grid(self.n.div_ceil(TILE), self.m.div_ceil(TILE), 1)
            .given([self.a.at.into(), self.b.at.into(), self.d.at.into()])
            .given([self.bias.map_or(Argument::Null, Argument::Pointer)])
            .given([self.m, self.n, self.k].map(Argument::U64))
            .given([self.a.stride, self.b.stride, self.d.stride].map(Argument::U64))
            .given([self.alpha.into(), flag(self.accumulate)])
    }
}

impl Matrix {
    /// A contiguous matrix of `stride` columns at the start of some memory.
    pub(super) fn new(of: Memory, dtype: DType, stride: u64) -> Matrix {
        Matrix {
            at: at(of, 0),
            dtype,
            stride,
            transposed: false,
        }
    }

    /// All of an input.
    pub(super) fn input(call: &Call, index: usize) -> Matrix {
        let at = &call.inputs[index];
        Matrix::new(Memory::Input(index), at.dtype, at.columns())
    }

    /// All of an output.
    pub(super) fn output(call: &Call, index: usize) -> Matrix {
        let at = &call.outputs[index];
        Matrix::new(Memory::Output(index), at.dtype, at.columns())
    }

    /// Its transpose, over the same elements.
    pub(super) fn t(self) -> Matrix {
        Matrix {
            transposed: !self.transposed,
            ..self
        }
    }

    /// The part `elements` further on.
    pub(super) fn skip(mut self, elements: u64) -> Matrix {
        self.at.offset += elements * self.dtype.bytes();
        self
    }
}

/// A number format as kernels spell it.
fn spelling(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::Bf16 => "bf16",
        DType::F16 => "f16",
        DType::U32 => "u32",
        DType::U16 => "u16",
        DType::U8 => "u8",
    }
}

impl From<&'static str> for Define {
    fn from(word: &'static str) -> Define {
        Define::Word(word)
    }
}

impl From<u32> for Define {
    fn from(number: u32) -> Define {
        Define::Number(number.into())
    }
}

impl From<u64> for Define {
    fn from(number: u64) -> Define {
        Define::Number(number)
    }
}

impl From<Pointer> for Argument {
    fn from(pointer: Pointer) -> Argument {
        Argument::Pointer(pointer)
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Argument {
        Argument::U32(value)
    }
}

impl From<u64> for Argument {
    fn from(value: u64) -> Argument {
        Argument::U64(value)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Argument {
        Argument::F32(value)
    }
}

impl From<f64> for Argument {
    fn from(value: f64) -> Argument {
        Argument::F64(value)
    }
}
