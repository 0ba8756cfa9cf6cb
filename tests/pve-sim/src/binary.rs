//! Where the `pve-sim` binary is: guests, tasks and clusters are processes that execute it.

use std::{
    env, io,
    path::{Path, PathBuf},
};

const NAME: &str = "pve-sim";

/// The path of the `pve-sim` binary: `$PVE_SIM_BIN`, this very executable, or the one beside the current test's executable.
///
/// # Errors
/// `NotFound`, with what to do, when there is none.
pub fn binary() -> io::Result<PathBuf> {
    if let Some(path) = env::var_os("PVE_SIM_BIN") {
        return Ok(path.into());
    }
    let current = env::current_exe()?;
    if current.file_name().is_some_and(|name| name == NAME) {
        return Ok(current);
    }
    // target/debug/deps/<test> or target/debug/examples/<name>: the binary stands one folder up, or in the same.
    let beside = current.ancestors().skip(1).take(2).map(|folder: &Path| folder.join(NAME)).find(|path| path.is_file());
    beside.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "there is no pve-sim binary: run `cargo build -p pve-sim`, or set PVE_SIM_BIN")
    })
}
