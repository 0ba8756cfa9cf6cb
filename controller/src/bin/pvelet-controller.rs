//! `pvelet-controller`: see [`pvelet_controller::run`].

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// It gives back what is free, of which there is much after a thousand hosts have told at once what they have.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    pvelet_controller::run::main(std::env::args_os())
}
