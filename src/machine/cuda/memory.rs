//! Memory of the device, host memory that is pinned, and what moves bytes between them.
#![allow(unsafe_code)] // memory is taken and given back, and copies are queued

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::driver::{Gpu, Queue, check};
use crate::error::{Error, Result};
use crate::spec::units::Bytes;

/// Memory of the device, all that a set of programs takes of it.
#[derive(Debug)]
pub struct Memory {
    base: sys::CUdeviceptr,
    bytes: u64,
}

impl Memory {
    /// Takes exactly `bytes`; nothing where they are none.
    ///
    /// # Errors
    /// Where the device has not as many in one piece.
    pub fn new(gpu: &Gpu, bytes: Bytes) -> Result<Memory> {
        gpu.bind()?;
        let base = match bytes {
            Bytes::ZERO => 0,
            _ => {
                // SAFETY: a fresh piece; given back once, when this is dropped.
                let taken = unsafe { result::malloc_sync(bytes.0 as usize) };
                check(|| format!("{bytes} ({}) of {}", bytes.0, gpu.name), taken)?
            }
        };
        Ok(Memory {
            base,
            bytes: bytes.0,
        })
    }

    /// The address of bytes `offset..offset + bytes`.
    ///
    /// # Errors
    /// Where they are not all within.
    pub fn at(&self, offset: u64, bytes: u64) -> Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.base + offset),
            _ => Err(Error::value(
                "device bytes",
                format!("{offset}+{bytes}"),
                format!("they leave an arena of {}", self.bytes),
                "report this plan",
            )),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: taken in `new`, given back once, when no program runs.
            let _ = unsafe { result::free_sync(self.base) };
        }
    }
}

/// Pins `bytes` of this process's memory from `at` on, so that copies go at the link's speed beside other work.
///
/// # Errors
/// Where the system or the driver will not pin as many.
pub(super) fn pin(at: *mut c_void, bytes: usize) -> Result<()> {
    // SAFETY: the caller's mapping, which outlives the pinning: `unpin` comes first.
    let pinned = unsafe { sys::cuMemHostRegister_v2(at, bytes, 0) }.result();
    check(|| format!("pinning {}", Bytes(bytes as u64)), pinned)
}

/// Ends what [`pin`] began.
pub(super) fn unpin(at: *mut c_void) {
    // SAFETY: pinned by `pin`; a lost device forgets by itself.
    let _ = unsafe { sys::cuMemHostUnregister(at) };
}

/// Queues a copy within the device, from the host, to the host, or a fill.
#[derive(Debug, Clone, Copy)]
pub enum Transfer<'a> {
    /// Device to device.
    Within {
        /// Source.
        from: u64,
        /// Destination.
        to: u64,
        /// Length.
        bytes: u64,
    },
    /// Host to device.
    In {
        /// Source.
        from: &'a [u8],
        /// Destination.
        to: u64,
    },
    /// Device to host.
    Out {
        /// Source.
        from: u64,
        /// Destination, which nobody else touches until the copy is done.
        to: *mut u8,
        /// Length.
        bytes: u64,
    },
    /// Every byte becomes `value`.
    Fill {
        /// Destination.
        to: u64,
        /// The byte.
        value: u8,
        /// Length.
        bytes: u64,
    },
}

impl Queue {
    /// Queues a transfer.
    ///
    /// # Errors
    /// Where the device refuses it.
    pub fn transfer(&self, transfer: Transfer) -> Result<()> {
        // SAFETY: addresses are of live memory of the device, in bounds by `Memory::at`; host memory is of an arena that
        // outlives the walk, and `check` proved that nobody touches it meanwhile.
        let queued = unsafe {
            match transfer {
                Transfer::Within { from, to, bytes } => {
                    result::memcpy_dtod_async(to, from, bytes as usize, self.stream)
                }
                Transfer::In { from, to } => result::memcpy_htod_async(to, from, self.stream),
                Transfer::Out { from, to, bytes } => {
                    sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes as usize, self.stream).result()
                }
                Transfer::Fill { to, value, bytes } => {
                    result::memset_d8_async(to, value, bytes as usize, self.stream)
                }
            }
        };
        check(|| "a copy".to_string(), queued)
    }
}
