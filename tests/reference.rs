//! A reference interpreter: every storage a vector of its own, every node run in order. No placement, no streams.

use memfit::error::Result;
use memfit::graph::Step;
use memfit::graph::op::{Io, Port, Scalars, View, ViewMut};
use memfit::graph::random::Key;
use memfit::graph::tensor::{TensorId, Type};
use memfit::spec::job::Backend;

/// An outside that has nothing and takes everything.
pub struct Silent;

impl Port for Silent {
    fn read(&self, _: &str, _: u64, into: &mut [u8]) -> Result<()> {
        into.fill(0);
        Ok(())
    }
    fn write(&self, _: &str, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// A step with the bytes of all its storages (as u64 words, so that every element is aligned).
pub struct Evaluator {
    pub step: Step,
    bytes: Vec<Vec<u64>>,
    pub seed: u64,
    pub scalars: Scalars,
    pub port: Box<dyn Port>,
}

impl Evaluator {
    pub fn new(step: Step) -> Evaluator {
        let bytes = step
            .storages
            .iter()
            .map(|s| vec![u64::MAX; s.bytes.0.div_ceil(8) as usize])
            .collect();
        Evaluator {
            step,
            bytes,
            seed: 1,
            scalars: Scalars {
                step: 1,
                micro: 0,
                rate: 1e-3,
            },
            port: Box::new(Silent),
        }
    }

    pub fn raw(&mut self, id: TensorId) -> &mut [u8] {
        let tensor = self.step.tensor(id);
        let (from, len) = (tensor.offset as usize, tensor.at.bytes().0 as usize);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.bytes[tensor.storage.0 as usize]);
        &mut bytes[from..from + len]
    }

    pub fn set<T: bytemuck::Pod>(&mut self, id: TensorId, values: &[T]) {
        self.raw(id).copy_from_slice(bytemuck::cast_slice(values));
    }

    pub fn get<T: bytemuck::Pod>(&mut self, id: TensorId) -> Vec<T> {
        bytemuck::cast_slice(self.raw(id)).to_vec()
    }

    /// Runs nodes `range` in order.
    pub fn run(&mut self, range: std::ops::Range<usize>) -> Result<()> {
        range.into_iter().try_for_each(|index| self.node(index))
    }

    fn types(&self, values: &[TensorId]) -> Vec<Type> {
        values
            .iter()
            .map(|&v| self.step.type_of(v).clone())
            .collect()
    }

    /// A copy of a value, aligned for any element.
    fn words(&mut self, id: TensorId) -> Vec<u64> {
        let bytes = self.raw(id);
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        words
    }

    fn node(&mut self, index: usize) -> Result<()> {
        let node = self.step.nodes[index].clone();
        let alias = self.step.overwrites(&node);
        let (types_in, types_out) = (self.types(&node.inputs), self.types(&node.outputs));
        let mut ins = Vec::new();
        for (i, &id) in node.inputs.iter().enumerate() {
            let kept = !alias.contains(&Some(i));
            ins.push(if kept { self.words(id) } else { Vec::new() });
        }
        let mut outs: Vec<Vec<u64>> = node.outputs.iter().map(|&id| self.words(id)).collect();
        let backend = Backend::Cpu { threads: 2 };
        let scratch = node.op.scratch(&types_in, backend).0 as usize;
        let mut arbitrary = vec![u64::MAX; scratch.div_ceil(8) + 8];
        let skip = arbitrary.as_ptr().align_offset(64);
        let inputs = types_in.iter().zip(&ins).map(|(at, words)| {
            let bytes: &[u8] = bytemuck::cast_slice(words);
            let bytes = &bytes[..bytes.len().min(at.bytes().0 as usize)];
            View { at, bytes }
        });
        let outputs = types_out.iter().zip(&mut outs).map(|(at, words)| ViewMut {
            at,
            bytes: &mut bytemuck::cast_slice_mut(words)[..at.bytes().0 as usize],
        });
        let mut io = Io {
            inputs: inputs.collect(),
            outputs: outputs.collect(),
            scratch: &mut bytemuck::cast_slice_mut(&mut arbitrary[skip..])[..scratch],
            key: Key::new(self.seed, self.scalars.step, &node.origin),
            scalars: self.scalars,
            port: &*self.port,
        };
        node.op.cpu(&mut io)?;
        for (&id, words) in node.outputs.iter().zip(&outs) {
            let into = self.raw(id);
            let len = into.len();
            into.copy_from_slice(&bytemuck::cast_slice(words)[..len]);
        }
        Ok(())
    }
}
