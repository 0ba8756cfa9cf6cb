//! What the agent leaves beside containerd's files: copies that it could not remove because it was killed, and backups.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use super::files::{NUMBER, failed, read_all};
use crate::{error::Error, host::process};

/// So many backups of a file stay.
const BACKUPS: usize = 10;

/// Where processes are looked up.
const PROC: &str = "/proc";

/// A number without a sign.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The pid and the number in the name of a copy, `.<file>.pvelet-new-<pid>-<number>`.
fn copy(name: &str) -> Option<(i32, u32)> {
    let (file, made) = name.strip_prefix('.')?.rsplit_once(".pvelet-new-")?;
    let (pid, of_process) = made.split_once('-').filter(|_| !file.is_empty())?;
    Some((number(pid)?, number(of_process)?))
}

/// The file in the name of a backup, `<file>.pvelet-20260131T235959Z`, and what orders its backups. Of those of one second the later have a number.
fn backup(name: &str) -> Option<(&str, (&str, u32))> {
    let (file, made) = name.rsplit_once(".pvelet-")?;
    let (at, later) = made.split_once('-').map_or((made, Some(1)), |(at, later)| (at, number(later)));
    let (day, time) = at.strip_suffix('Z')?.split_once('T')?;
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    (!file.is_empty() && digits(day, 8) && digits(time, 6)).then_some((file, (at, later?)))
}

/// Names of regular files in a folder; none where there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(folder, &e)),
    };
    let files = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_file()));
    Ok(files.filter_map(|e| e.file_name().into_string().ok()).collect())
}

/// Removes files; the error is that of the first that could not be.
fn remove(files: impl IntoIterator<Item = PathBuf>) -> Result<(), Error> {
    let mut result = Ok(());
    for file in files {
        match fs::remove_file(&file) {
            Ok(()) => tracing::info!(file = %file.display(), "removed what is of no use any more"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => result = result.and(Err(failed(&file, &e))),
        }
    }
    result
}

/// What orders the backups of a file: whether it was just made, else when.
type Order<'n> = (bool, (&'n str, u32));

/// Removes backups in a folder beyond the newest of each file. `kept`, which was just made, is the newest, whatever the clock says.
pub(super) fn prune(folder: &Path, kept: Option<&Path>) -> Result<(), Error> {
    let names = names(folder)?;
    let mut backups: BTreeMap<&str, Vec<(Order<'_>, &String)>> = BTreeMap::new();
    for name in &names {
        if let Some((file, order)) = backup(name) {
            let just_made = kept.is_some_and(|k| k == folder.join(name));
            backups.entry(file).or_default().push(((just_made, order), name));
        }
    }
    let mut old = Vec::new();
    for mut of_file in backups.into_values() {
        of_file.sort_unstable_by(|a, b| b.cmp(a));
        old.extend(of_file.into_iter().skip(BACKUPS).map(|(_, name)| folder.join(name)));
    }
    remove(old)
}

/// Removes the copies of processes that run no more, and old backups. This process may make copies meanwhile.
pub(super) fn tidy(main: &Path) -> Result<(), Error> {
    let beside = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut folders = BTreeSet::from([beside(main)]);
    // Copies of a file lie beside it, or beside what it is a link to.
    for file in read_all(main).unwrap_or_default() {
        folders.insert(beside(&file.path));
        folders.extend(fs::canonicalize(&file.path).map(|real| beside(&real)));
    }
    let mut result = Ok(());
    for folder in &folders {
        let names = names(folder)?;
        // After the names were read: what this process has made has a lower number.
        let next = NUMBER.load(Ordering::Relaxed);
        let of_dead = |(pid, number): (i32, u32)| {
            // The agent may get the number of one before, after a reboot.
            if u32::try_from(pid) == Ok(std::process::id()) { number >= next } else { process::stat(Path::new(PROC), pid).is_none() }
        };
        result = result.and(remove(names.iter().filter(|n| copy(n).is_some_and(of_dead)).map(|n| folder.join(n))));
    }
    result.and(prune(&beside(main), None))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        for (name, found) in [
            (".config.toml.pvelet-new-12-3", Some((12, 3))),
            (".config.toml.pvelet-20260131T235959Z.pvelet-new-1-0", Some((1, 0))),
            ("config.toml.pvelet-new-12-3", None),
            (".config.toml.pvelet-new-12", None),
            (".config.toml.pvelet-new-12-", None),
            (".config.toml.pvelet-new--12-3", None),
            (".config.toml.pvelet-new-+12-3", None),
            (".config.toml.pvelet-new-12-3.swp", None),
            (".pvelet-new-12-3", None),
            (".config.toml.swp", None),
        ] {
            assert_eq!(copy(name), found, "{name}");
        }
        for (name, found) in [
            ("config.toml.pvelet-20260131T235959Z", Some(("config.toml", ("20260131T235959Z", 1)))),
            ("config.toml.pvelet-20260131T235959Z-12", Some(("config.toml", ("20260131T235959Z", 12)))),
            ("config.toml.pvelet-20260131", None),
            ("config.toml.pvelet-20260131T235959Z-", None),
            ("config.toml.pvelet-20260131T235959Z-x", None),
            ("config.toml.pvelet-20260131T235959Z.mine", None),
            (".pvelet-20260131T235959Z", None),
            ("config.toml.bak", None),
            ("config.toml", None),
        ] {
            assert_eq!(backup(name), found, "{name}");
        }
    }
}
