//! The command line of memfit.

mod cli;

/// A search makes and forgets programs by the hundred: half of its time is the allocator's, and this one takes half as long as the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
