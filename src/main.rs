//! The command line of memfit.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
