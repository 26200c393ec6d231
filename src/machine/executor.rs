//! The machine a plan runs on: that of the backend it is lowered for.

use std::path::Path;

use super::cpu::{Cpu, Roles, Settings};
use super::cuda::Cuda;
use super::timeline::Timeline;
use crate::error::Result;
use crate::graph::op::{Port, Scalars};
use crate::program::{Program, height};
use crate::spec::job::{Backend, PerPlace};
use crate::spec::units::Bytes;

/// A machine with the memory of a plan's programs.
pub enum Executor {
    /// This machine's cores.
    Cpu(Box<Cpu>),
    /// An NVIDIA GPU.
    Cuda(Box<Cuda>),
}

impl Executor {
    /// The machine of `backend`, with room for `programs`.
    ///
    /// # Errors
    /// Where it is not there, memory is refused, or an op has no kernel for it.
    pub fn open(
        programs: &[Program],
        backend: Backend,
        folder: &Path,
        settings: Settings,
    ) -> Result<Executor> {
        Ok(match backend {
            Backend::Cpu { .. } => {
                let cpu = Cpu::new(height(programs), backend, folder, settings)?;
                Executor::Cpu(Box::new(cpu))
            }
            Backend::Cuda { .. } => {
                Executor::Cuda(Box::new(Cuda::new(programs, folder, settings)?))
            }
        })
    }

    /// Programs that take the place of those it was opened with, in the same memory.
    ///
    /// # Errors
    /// Where an op has no kernel for it.
    pub fn prepare(&mut self, programs: &[Program]) -> Result<()> {
        match self {
            Executor::Cpu(_) => Ok(()),
            Executor::Cuda(cuda) => cuda.prepare(programs),
        }
    }

    /// Walks `program` once.
    ///
    /// # Errors
    /// The first failure of any instruction.
    pub fn run(
        &mut self,
        program: &Program,
        port: &dyn Port,
        scalars: Scalars,
    ) -> Result<Timeline> {
        match self {
            Executor::Cpu(cpu) => cpu.run(program, port, scalars),
            Executor::Cuda(cuda) => cuda.run(program, port, scalars),
        }
    }

    /// The largest end address handed out so far in each place.
    pub fn mark(&self) -> PerPlace<Bytes> {
        match self {
            Executor::Cpu(cpu) => cpu.mark(),
            Executor::Cuda(cuda) => cuda.mark(),
        }
    }

    /// Bytes of each role in each place when those handed out and not yet freed were most.
    pub fn roles(&self) -> PerPlace<Roles> {
        match self {
            Executor::Cpu(cpu) => cpu.roles(),
            Executor::Cuda(cuda) => cuda.roles(),
        }
    }

    /// The GPU's machine, where it is one.
    pub fn cuda(&self) -> Option<&Cuda> {
        match self {
            Executor::Cpu(_) => None,
            Executor::Cuda(cuda) => Some(cuda),
        }
    }
}
