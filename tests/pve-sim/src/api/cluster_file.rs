//! Changes of the cluster's configuration files, under the cluster lock that PVE takes for each.

use std::{fs, io};

use super::{Call, Failure};
use crate::storage::lock;

/// Changes one file: reads it, lets `edit` make the new text, writes it. Every error gets `<what> failed: ` in front.
///
/// # Errors
/// When the lock is not had in time, there is no quorum, or `edit` refuses.
pub(super) fn change(call: &Call, name: &str, what: &str, edit: impl FnOnce(&str) -> Result<String, Failure>) -> Result<(), Failure> {
    let failed = |error: Failure| match error {
        Failure::Died(text) => Failure::Died(format!("{what} failed: {text}")),
        other => other,
    };
    locked(call, name, edit).map_err(failed)
}

fn locked(call: &Call, name: &str, edit: impl FnOnce(&str) -> Result<String, Failure>) -> Result<(), Failure> {
    let lock_name = format!("file-{}", name.replace(['.', '/'], "_"));
    let _lock = lock::take_cluster(&call.layout, &lock_name, call.settings.lock_factor, &|_| {})?;
    let path = call.layout.etc_pve().join(name);
    let old = read(&path)?;
    let new = edit(&old)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("tmp.{}", std::process::id()));
    fs::write(&temporary, new)?;
    Ok(fs::rename(&temporary, &path)?)
}

/// A file's text; missing is empty.
pub(super) fn read(path: &std::path::Path) -> Result<String, Failure> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => Ok(other?),
    }
}
