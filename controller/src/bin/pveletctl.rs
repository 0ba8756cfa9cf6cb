//! The command line for people; everything is in [`pvelet_controller::cli`].

use std::process::ExitCode;

use pvelet_controller::cli::{self, Io};

#[tokio::main]
async fn main() -> ExitCode {
    Box::pin(cli::run(std::env::args_os(), &Io::standard())).await.into()
}
