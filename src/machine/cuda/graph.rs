//! CUDA graphs: what a queue was given once, captured, and launched as one from then on.
#![allow(unsafe_code)] // graphs are captured, instantiated, changed and launched

use cudarc::driver::{result, sys};

use super::driver::{Queue, check};
use super::modules::{Function, parameters};
use crate::error::{Error, Result};
use crate::graph::op::kernel::{Launch, THREADS};

/// The driver's functions that graphs need, which CUDA 12 has all of.
const FUNCTIONS: [&[u8]; 9] = [
    b"cuStreamBeginCapture_v2\0",
    b"cuStreamEndCapture\0",
    b"cuStreamGetCaptureInfo_v2\0",
    b"cuEventRecordWithFlags\0",
    b"cuGraphInstantiateWithFlags\0",
    b"cuGraphExecKernelNodeSetParams_v2\0",
    b"cuGraphLaunch\0",
    b"cuGraphExecDestroy\0",
    b"cuGraphDestroy\0",
];

/// What to do where a driver will not capture: nothing.
const NEXT: &str = "nothing need be done: launches go one by one";

/// Whether the driver, which must be present, has what graphs need.
pub fn are_had() -> bool {
    // SAFETY: the functions are looked up, none is called.
    let has = |name: &[u8]| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name) }.is_ok();
    FUNCTIONS.into_iter().all(has)
}

/// A kernel in a graph.
#[derive(Debug, Clone, Copy)]
pub struct Node(sys::CUgraphNode);

// SAFETY: a handle of the driver's, valid in every thread.
unsafe impl Send for Node {}

/// What a queue was given, to be launched as one.
#[derive(Debug)]
pub struct Graph {
    executable: sys::CUgraphExec,
    /// What it was made of: its nodes name those of `executable`.
    captured: sys::CUgraph,
    /// Kernels whose parameters are the step's, in their order.
    varying: Vec<Node>,
    /// How many of them have been renewed for the next launch.
    renewed: usize,
}

// SAFETY: a graph may be used by any thread, one at a time: each is used by that of its queue.
unsafe impl Send for Graph {}
// SAFETY: as above; nothing is done with a shared one.
unsafe impl Sync for Graph {}

impl Graph {
    /// Makes what was captured ready; the kernels of `varying` change between launches.
    ///
    /// # Errors
    /// Where the driver refuses it.
    fn new(captured: sys::CUgraph, varying: Vec<Node>) -> Result<Graph> {
        let mut graph = Graph {
            executable: std::ptr::null_mut(),
            captured,
            varying,
            renewed: 0,
        };
        let plain = sys::CUgraphInstantiate_flags(0);
        // SAFETY: a graph that the driver just gave.
        let made = unsafe { result::graph::instantiate(captured, plain) };
        graph.executable = check(|| "a CUDA graph".to_string(), made)?;
        Ok(graph)
    }

    /// Gives the next of the kernels that vary the values in `words` for the coming launch; `what` says whose it is.
    ///
    /// # Errors
    /// Where the driver refuses it, or there are no more such kernels.
    pub fn renew(
        &mut self,
        function: Function,
        launch: &Launch,
        words: &mut [u64],
        what: impl Fn() -> String,
    ) -> Result<()> {
        let node = self.varying.get(self.renewed).copied();
        let node = node.ok_or_else(|| {
            let why = format!("{} was not captured", what());
            Error::value("CUDA graph", launch.entry, why, "report this plan")
        })?;
        self.renewed += 1;
        let mut parameters = parameters(launch, words)?;
        let params = sys::CUDA_KERNEL_NODE_PARAMS {
            func: function.0,
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: THREADS,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            kernelParams: parameters.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        // SAFETY: a node of this graph's; the driver copies parameters before it returns.
        let set =
            unsafe { sys::cuGraphExecKernelNodeSetParams_v2(self.executable, node.0, &params) };
        check(
            || format!("kernel {} of {} in a graph", launch.entry, what()),
            set.result(),
        )
    }

    /// Queues all of it.
    ///
    /// # Errors
    /// Where the device refuses it.
    pub fn launch(&mut self, queue: &Queue) -> Result<()> {
        self.renewed = 0;
        // SAFETY: both live; what it touches is live memory, as when it was captured.
        let launched = unsafe { result::graph::launch(self.executable, queue.stream) };
        check(|| "a CUDA graph".to_string(), launched)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: each made once and destroyed once; none where `new` failed.
        unsafe {
            if !self.executable.is_null() {
                let _ = result::graph::exec_destroy(self.executable);
            }
            let _ = result::graph::destroy(self.captured);
        }
    }
}

/// What `fill` queues as a graph; none where the driver will not.
pub fn captured(queue: &mut Queue, fill: impl Fn(&Queue) -> Result<()>) -> Option<Graph> {
    if !are_had() {
        return None;
    }
    queue.begin_capture().ok()?;
    let filled = fill(queue);
    let graph = queue.end_capture(Vec::new());
    filled.and(graph).ok()
}

impl Queue {
    /// What is queued from now on is kept for a graph, and not done.
    ///
    /// # Errors
    /// Where the driver refuses it.
    pub fn begin_capture(&mut self) -> Result<()> {
        let own = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        let begun = unsafe { result::stream::begin_capture(self.stream, own) };
        check(|| "capturing a stream".to_string(), begun)?;
        self.captures = true;
        Ok(())
    }

    /// The graph of what was queued since [`Queue::begin_capture`], where it could all be kept.
    ///
    /// # Errors
    /// Where something was queued that a graph cannot hold.
    pub fn end_capture(&mut self, varying: Vec<Node>) -> Result<Graph> {
        self.captures = false;
        // SAFETY: the stream lives, and captures.
        let captured = unsafe { result::stream::end_capture(self.stream) };
        let captured = check(|| "capturing a stream".to_string(), captured)?;
        Graph::new(captured, varying)
    }

    /// What was captured last: in a single queue, that which all that comes depends on.
    ///
    /// # Errors
    /// Where nothing is being captured.
    pub fn last_captured(&self) -> Result<Node> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut nodes, mut count) = (std::ptr::null(), 0);
        // SAFETY: places to write to, or none where the answer is not wanted.
        let asked = unsafe {
            sys::cuStreamGetCaptureInfo_v2(
                self.stream,
                &mut status,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                &mut nodes,
                &mut count,
            )
        };
        check(|| "what was captured".to_string(), asked.result())?;
        let active = status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE;
        match active && count == 1 {
            // SAFETY: one handle, read before anything else is queued.
            true => Ok(Node(unsafe { *nodes })),
            false => {
                let why = "it ended before all was captured";
                Err(Error::value("CUDA graph", "capture", why, NEXT))
            }
        }
    }
}
