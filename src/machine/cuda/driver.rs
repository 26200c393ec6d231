//! NVIDIA's driver, loaded when it is asked for: whether it is there, a device of it, streams and events.
#![allow(unsafe_code)] // every call of a C library; each wrapper keeps what its functions ask for

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::error::{Error, Result};
use crate::spec::units::Bytes;

/// What the driver calls the whole of a device's memory and what is free of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Free.
    pub free: Bytes,
    /// In total.
    pub total: Bytes,
}

/// A device in use by this process. Dropped, it gives back all that the process had of it.
#[derive(Debug)]
pub struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Its name, as the driver tells it.
    pub name: String,
    /// Compute capability times ten.
    pub capability: u32,
}

// SAFETY: a context may be used by any thread that makes it current.
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Gpu {}

/// Turns the driver's refusal of `what` into an error.
pub(super) fn check<T>(what: impl FnOnce() -> String, answer: Answer<T>) -> Result<T> {
    answer.map_err(|refused| {
        let why = refused.error_string();
        let why = why.map_or("it gives no reason".into(), |s| {
            s.to_string_lossy().into_owned()
        });
        let name = refused.error_name();
        let name = name.map_or("unknown".into(), |s| s.to_string_lossy().into_owned());
        Error::value(
            what(),
            name,
            format!("the NVIDIA driver refused: {why}"),
            next(refused),
        )
    })
}

type Answer<T> = std::result::Result<T, DriverError>;

/// What to do about a refusal.
fn next(refused: DriverError) -> &'static str {
    use sys::cudaError_enum::{
        CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_NO_DEVICE,
        CUDA_ERROR_OUT_OF_MEMORY,
    };
    match refused.0 {
        CUDA_ERROR_OUT_OF_MEMORY => {
            "end what else uses the GPU (see nvidia-smi), or give a smaller --gpu"
        }
        CUDA_ERROR_ILLEGAL_ADDRESS | CUDA_ERROR_LAUNCH_FAILED => {
            "this is a defect of a kernel: report the plan; saves made before are whole"
        }
        CUDA_ERROR_NO_DEVICE => "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu",
        _ => "check the GPU with nvidia-smi and run again; saves made before are whole",
    }
}

/// Whether the driver's library can be loaded: to be asked before anything else of it.
pub fn is_present() -> bool {
    // SAFETY: loads a library of that name and lets it go.
    unsafe { sys::is_culib_present() }
}

impl Gpu {
    /// The first device this process may see.
    ///
    /// # Errors
    /// Where there is no driver or no device.
    pub fn open() -> Result<Gpu> {
        if !is_present() {
            return Err(Error::value(
                "--device",
                "cuda",
                "no NVIDIA driver is installed here (libcuda.so.1 is not found)",
                "install the driver, run on a machine with an NVIDIA GPU, or use --device cpu",
            ));
        }
        let named = |what: &'static str| move || what.to_string();
        check(named("starting the NVIDIA driver"), result::init())?;
        let count = check(named("counting GPUs"), result::device::get_count())?;
        if count == 0 {
            let why = "the NVIDIA driver sees no GPU";
            let next = "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu";
            return Err(Error::value("--device", "cuda", why, next));
        }
        let device = check(named("opening the GPU"), result::device::get(0))?;
        let name = check(named("naming the GPU"), result::device::get_name(device))?;
        let capability = capability(device)?;
        // SAFETY: the device is one the driver just gave; released once, when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = check(named("taking the GPU into use"), context)?;
        let gpu = Gpu {
            device,
            context,
            name,
            capability,
        };
        gpu.bind()?;
        Ok(gpu)
    }

    /// Makes the device that of the calling thread.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as this.
        let bound = unsafe { result::ctx::set_current(self.context) };
        check(|| format!("using {}", self.name), bound)
    }

    /// How much of its memory is free.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn room(&self) -> Result<Room> {
        self.bind()?;
        let (free, total) = check(
            || format!("memory of {}", self.name),
            result::mem_get_info(),
        )?;
        Ok(Room {
            free: Bytes(free as u64),
            total: Bytes(total as u64),
        })
    }

    /// Waits for everything on the device.
    ///
    /// # Errors
    /// What failed on it since the last wait.
    pub fn settle(&self) -> Result<()> {
        self.bind()?;
        check(
            || format!("work on {}", self.name),
            result::ctx::synchronize(),
        )
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`. A device that is lost cannot be told anything: its refusal is of no use.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

fn capability(device: sys::CUdevice) -> Result<u32> {
    use sys::CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let ask = |what| {
        // SAFETY: the device is one the driver gave.
        let answer = unsafe { result::device::get_attribute(device, what) };
        check(|| "compute capability".to_string(), answer)
    };
    Ok((ask(MAJOR)? * 10 + ask(MINOR)?) as u32)
}

/// A queue of the device.
#[derive(Debug)]
pub struct Queue {
    pub(super) stream: sys::CUstream,
    /// Whether what is queued is kept for a graph instead of done.
    pub(super) captures: bool,
}

// SAFETY: a stream may be used by any thread; ours use each from one at a time.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// A queue that no other queue waits for.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn new() -> Result<Queue> {
        let kind = result::stream::StreamKind::NonBlocking;
        let made = result::stream::create(kind);
        Ok(Queue {
            stream: check(|| "a stream".to_string(), made)?,
            captures: false,
        })
    }

    /// Waits for what was queued.
    ///
    /// # Errors
    /// What failed in it.
    pub fn settle(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this.
        check(|| "work of a stream".to_string(), unsafe {
            result::stream::synchronize(self.stream)
        })
    }

    /// Holds what is queued from now on until what `mark` stands for is done.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn wait(&self, mark: &Mark) -> Result<()> {
        let plain = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        let waits = unsafe { result::stream::wait_event(self.stream, mark.0, plain) };
        check(|| "an event".to_string(), waits)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

/// A point in a queue.
#[derive(Debug)]
pub struct Mark(sys::CUevent);

// SAFETY: an event may be used by any thread.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl Mark {
    /// A mark that stands for nothing yet; with its time where it is `timed`.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn new(timed: bool) -> Result<Mark> {
        let flags = match timed {
            true => sys::CUevent_flags::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        let made = result::event::create(flags);
        Ok(Mark(check(|| "an event".to_string(), made)?))
    }

    /// It stands for the end of what is in `queue` now; in a graph, for that end in its latest launch.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn record(&self, queue: &Queue) -> Result<()> {
        let external = sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as u32;
        // SAFETY: both live.
        let recorded = unsafe {
            match queue.captures {
                true => sys::cuEventRecordWithFlags(self.0, queue.stream, external).result(),
                false => result::event::record(self.0, queue.stream),
            }
        };
        check(|| "an event".to_string(), recorded)
    }

    /// Waits for what it stands for.
    ///
    /// # Errors
    /// What failed on the device.
    pub fn settle(&self) -> Result<()> {
        // SAFETY: it lives.
        let done = unsafe { result::event::synchronize(self.0) };
        check(|| "work that an event waits for".to_string(), done)
    }

    /// Seconds from `earlier` to it; both must be done.
    ///
    /// # Errors
    /// Where one was never recorded.
    pub fn since(&self, earlier: &Mark) -> Result<f64> {
        // SAFETY: both live.
        let elapsed = unsafe { result::event::elapsed(earlier.0, self.0) };
        Ok(f64::from(check(|| "times of events".to_string(), elapsed)?) / 1e3)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
