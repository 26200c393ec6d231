//! A reference interpreter: every storage a vector of its own, every node run in order. No placement, no streams.

use memfit::error::Result;
use memfit::graph::Step;
use memfit::graph::op::{Io, Port, Scalars, View, ViewMut};
use memfit::graph::random::Key;
use memfit::graph::tensor::TensorId;
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
        for index in range {
            let node = self.step.nodes[index].clone();
            let alias = self.step.overwrites(&node);
            let types_in: Vec<_> = node
                .inputs
                .iter()
                .map(|&i| self.step.type_of(i).clone())
                .collect();
            let types_out: Vec<_> = node
                .outputs
                .iter()
                .map(|&i| self.step.type_of(i).clone())
                .collect();
            let ins: Vec<Vec<u64>> = node
                .inputs
                .iter()
                .enumerate()
                .map(|(i, &id)| {
                    let mut words = Vec::new();
                    if !alias.contains(&Some(i)) {
                        let bytes = self.raw(id).to_vec();
                        words = vec![0u64; bytes.len().div_ceil(8)];
                        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()]
                            .copy_from_slice(&bytes);
                    }
                    words
                })
                .collect();
            let mut outs: Vec<Vec<u64>> = node
                .outputs
                .iter()
                .map(|&id| {
                    let bytes = self.raw(id).to_vec();
                    let mut words = vec![0u64; bytes.len().div_ceil(8)];
                    bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()]
                        .copy_from_slice(&bytes);
                    words
                })
                .collect();
            let mut scratch = vec![
                u64::MAX;
                node.op
                    .scratch(&types_in, Backend::Cpu { threads: 2 })
                    .0
                    .div_ceil(8) as usize
                    + 8
            ];
            let skip = scratch.as_ptr().align_offset(64);
            let len = node.op.scratch(&types_in, Backend::Cpu { threads: 2 }).0 as usize;
            let mut io = Io {
                inputs: types_in
                    .iter()
                    .zip(&ins)
                    .map(|(at, w)| View {
                        at,
                        bytes: &bytemuck::cast_slice(w)[..if w.is_empty() {
                            0
                        } else {
                            at.bytes().0 as usize
                        }],
                    })
                    .collect(),
                outputs: types_out
                    .iter()
                    .zip(&mut outs)
                    .map(|(at, w)| ViewMut {
                        at,
                        bytes: &mut bytemuck::cast_slice_mut(w)[..at.bytes().0 as usize],
                    })
                    .collect(),
                scratch: &mut bytemuck::cast_slice_mut(&mut scratch[skip..])[..len],
                key: Key::new(self.seed, self.scalars.step, &node.origin),
                scalars: self.scalars,
                port: &*self.port,
            };
            node.op.cpu(&mut io)?;
            drop(io);
            for (&id, words) in node.outputs.iter().zip(&outs) {
                let bytes: &[u8] = bytemuck::cast_slice(words);
                let into = self.raw(id);
                let len = into.len();
                into.copy_from_slice(&bytes[..len]);
            }
        }
        Ok(())
    }
}
