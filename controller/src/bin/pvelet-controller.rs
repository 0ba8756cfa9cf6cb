//! `pvelet-controller`: see [`pvelet_controller::run`].

use std::process::ExitCode;

fn main() -> ExitCode {
    pvelet_controller::run::main(std::env::args_os())
}
