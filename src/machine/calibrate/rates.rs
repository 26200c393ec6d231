//! Peak rates of this machine: products, memory, copies, disk.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::graph::op::Element;
use crate::graph::op::gemm::{Mat, matmul, matmul_scratch};
use crate::machine::probe::{pool, quartile};
use crate::machine::train::memory;
use crate::spec::job::Backend;
use crate::spec::units::Bytes;

/// Sides of the products whose best rate is the peak.
const SIDES: [usize; 3] = [512, 1024, 1536];

/// Bytes of one of the triad's arrays in memory, and in a core's first cache.
const FAR: usize = 192 << 20;
const NEAR: usize = 8 << 10;

/// Bytes written and read to find the disk's rate.
const FILE: usize = 256 << 20;

/// Best rates of matrix products, FLOP/s.
#[derive(Debug, Clone, Copy)]
pub(super) struct Products {
    pub(super) f32: f64,
    pub(super) bf16: f64,
    pub(super) f16: f64,
}

/// The best rate of products in each format: on `threads` together, or that of one times their number if it is higher.
/// A thread alone finds a quiet moment more easily, and all of them are never faster than each alone.
pub(super) fn products(threads: u32) -> Result<Products> {
    Ok(Products {
        f32: best_product::<f32>(threads)?,
        bf16: best_product::<bf16>(threads)?,
        f16: best_product::<f16>(threads)?,
    })
}

fn best_product<T: Element>(threads: u32) -> Result<f64> {
    let alone = pool(1)?.install(|| product_rate::<T>(SIDES[0], 1, 60));
    let rate = |&side: &usize| product_rate::<T>(side, threads, 6);
    let together = pool(threads)?.install(|| SIDES.iter().map(rate).fold(0.0, f64::max));
    Ok(together.max(alone * f64::from(threads)))
}

fn product_rate<T: Element>(side: usize, threads: u32, times: u32) -> f64 {
    let operand = |seed: usize| -> Vec<T> {
        let value = |i: usize| T::narrow(((i * 7 + seed) % 13) as f32 - 6.0);
        (0..side * side).map(value).collect()
    };
    let (a, b, mut c) = (operand(1), operand(2), operand(0));
    let bytes = matmul_scratch(T::DTYPE, T::DTYPE, Backend::Cpu { threads });
    let mut scratch = vec![0.0f32; (bytes.0 / 4) as usize];
    let mut best = f64::INFINITY;
    for _ in 0..times {
        let begin = Instant::now();
        let (a, b) = (Mat::new(&a, side, side), Mat::new(&b, side, side));
        let scratch = bytemuck::cast_slice_mut(&mut scratch);
        matmul(black_box(&mut c[..]), side, a, b, false, scratch);
        best = best.min(begin.elapsed().as_secs_f64());
    }
    2.0 * (side as f64).powi(3) / best
}

/// Best rates of the streaming triad `a = b + s c`, B/s: out of the first cache, which nothing passes, and out of memory.
pub(super) fn triads(threads: u32) -> Result<(f64, f64)> {
    let near = pool(1)?.install(|| triad(1, NEAR, 4_000));
    let far = pool(threads)?.install(|| triad(threads, FAR, 1));
    Ok((near * f64::from(threads), far))
}

/// The rate of triads over arrays of `bytes` a thread, each walked `times` times.
fn triad(threads: u32, bytes: usize, times: usize) -> f64 {
    let len = bytes / 4 / if times == 1 { threads as usize } else { 1 };
    let arrays = || [vec![0.0f32; len], vec![1.0; len], vec![2.0; len]];
    let mut sets: Vec<[Vec<f32>; 3]> = (0..threads).map(|_| arrays()).collect();
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let begin = Instant::now();
        sets.par_iter_mut().with_max_len(1).for_each(|[a, b, c]| {
            for _ in 0..times {
                add_scaled(black_box(&mut a[..]), b, c);
            }
        });
        best = best.min(begin.elapsed().as_secs_f64());
    }
    (3 * 4 * len * times * threads as usize) as f64 / best
}

#[inline(never)]
fn add_scaled(a: &mut [f32], b: &[f32], c: &[f32]) {
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a = b + 3.0 * c;
    }
}

/// The rate of one thread's copies in memory, counted one way, B/s.
pub fn copy_rate() -> f64 {
    let (from, mut to) = (vec![1u8; FAR], vec![0u8; FAR]);
    let once = || {
        let begin = Instant::now();
        black_box(&mut to[..]).copy_from_slice(black_box(&from[..]));
        begin.elapsed().as_secs_f64()
    };
    FAR as f64 / quartile(std::iter::repeat_with(once).take(8).collect())
}

/// Rates of writing a file in `folder` until it is on the device, and of reading it back once the system has
/// forgotten its pages, B/s.
pub(super) fn disk_rates(folder: &Path) -> Result<(f64, f64)> {
    let path = folder.join(format!(".memfit-calibrate-{}", std::process::id()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|e| Error::io(folder, "create a file in", e))?;
    std::fs::remove_file(&path).map_err(|e| Error::io(&path, "unlink", e))?;
    file_rates(&mut file).map_err(|e| Error::io(folder, "write and read a file in", e))
}

fn file_rates(file: &mut File) -> std::io::Result<(f64, f64)> {
    let mut block = vec![0x5au8; 4 << 20];
    let begin = Instant::now();
    for _ in 0..FILE / block.len() {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let written = begin.elapsed().as_secs_f64();
    forget(file);
    file.seek(SeekFrom::Start(0))?;
    let begin = Instant::now();
    for _ in 0..FILE / block.len() {
        file.read_exact(&mut block)?;
    }
    let read = begin.elapsed().as_secs_f64();
    Ok((FILE as f64 / written, FILE as f64 / read))
}

/// Asks the system to drop the file's pages, so that reading it means the device.
#[allow(unsafe_code)]
fn forget(file: &File) {
    // SAFETY: a system call on a descriptor that is open; it changes no memory of ours.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Seconds until a thread that sleeps notices what another says: half of a call and its answer.
pub(super) fn wake() -> f64 {
    let (call, called) = std::sync::mpsc::channel::<()>();
    let (answer, answered) = std::sync::mpsc::channel::<()>();
    let times = std::thread::scope(|scope| {
        scope.spawn(move || called.iter().try_for_each(|()| answer.send(())));
        let round = || {
            // Both are asleep when a call comes late, as streams are.
            std::thread::sleep(Duration::from_micros(200));
            let begin = Instant::now();
            let heard = call.send(()).is_ok() && answered.recv().is_ok();
            heard.then(|| begin.elapsed().as_secs_f64() / 2.0)
        };
        let times = std::iter::repeat_with(round).take(300).flatten().collect();
        drop(call);
        times
    });
    quartile(times)
}

/// Bytes the process keeps for each thread after products of every format.
pub(super) fn slab(threads: u32) -> Result<Bytes> {
    let side = 1024;
    let data = vec![1.0f32; 3 * side * side];
    let mut out = vec![0.0f32; side * side];
    let before = memory::resident();
    let pool = pool(threads)?;
    pool.install(|| {
        let (a, b) = data.split_at(side * side);
        let (a, b) = (
            Mat::new(a, side, side),
            Mat::new(&b[..side * side], side, side),
        );
        (0..4).for_each(|_| matmul(&mut out, side, a, b, false, &mut []));
    });
    let grown = memory::resident().saturating_sub(before);
    Ok(Bytes(grown.0 / u64::from(threads.max(1))))
}
