//! Files of the kubelet, and its command line.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{LARGEST, look};
use crate::error::{Error, Trouble};

/// The most files that are listed below a folder, and how deep it is looked at.
const MOST: usize = 1000;
const DEEPEST: usize = 8;

/// The error of a file that could not be read.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> Error {
    let trouble = match error.kind() {
        io::ErrorKind::NotFound => Trouble::Missing,
        io::ErrorKind::PermissionDenied => Trouble::Denied,
        _ => Trouble::Failed,
    };
    look(trouble, format!("{} cannot be read: {error}", path.display()))
}

/// Reads a file, no more than [`LARGEST`]. A FIFO or a device is no file: opening it might hang, reading it never end.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(path, &e)),
        Ok(meta) if !meta.is_file() => return Err(look(Trouble::Garbled, format!("{} is no file", path.display()))),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let all = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    match all {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unreadable(path, &e)),
        Ok(_) if bytes.len() as u64 > LARGEST => {
            Err(look(Trouble::Garbled, format!("{} is larger than {} KiB", path.display(), LARGEST / 1024)))
        }
        Ok(_) => Ok(Some(bytes)),
    }
}

/// The files below a folder, in the order of their paths.
pub(super) fn below(folder: &Path) -> Result<Option<Vec<PathBuf>>, Error> {
    let mut found = Vec::new();
    match collect(folder, DEEPEST, &mut found) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(folder, &e)),
        Ok(()) => {}
    }
    if found.len() > MOST {
        return Err(look(Trouble::Garbled, format!("{} holds more than {MOST} files", folder.display())));
    }
    Ok(Some(found))
}

fn collect(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.take(MOST + 1).collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        match entry.file_type()?.is_dir() {
            true if depth > 0 => collect(&entry.path(), depth - 1, found)?,
            true => {}
            false => found.push(entry.path()),
        }
        if found.len() > MOST {
            break;
        }
    }
    Ok(())
}

/// The arguments of a process.
pub(super) fn command_line(proc: &Path, pid: u32) -> Result<Vec<String>, Error> {
    let path = proc.join(pid.to_string()).join("cmdline");
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes)) {
        // A process that ends meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ESRCH) => Ok(Vec::new()),
        Err(e) => Err(unreadable(&path, &e)),
        Ok(_) => {
            let text = String::from_utf8_lossy(&bytes);
            Ok(text.split_terminator('\0').map(str::to_owned).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        assert_eq!(read(&path).unwrap(), None);
        fs::write(&path, "kind: X\n").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"kind: X\n");
        let most = usize::try_from(LARGEST).unwrap();
        fs::write(&path, vec![b'#'; most]).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().len(), most);
        fs::write(&path, vec![b'#'; most + 1]).unwrap();
        assert!(read(&path).unwrap_err().to_string().ends_with("is larger than 1024 KiB"));
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&fifo, dir.path()] {
            assert!(read(path).unwrap_err().to_string().ends_with("is no file"));
        }
    }

    #[test]
    fn files_below_a_folder_come_in_the_order_in_which_the_kubelet_merges_them() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(below(&dir.path().join("none")).unwrap(), None);
        fs::create_dir_all(dir.path().join("20-sub")).unwrap();
        for name in ["90-last.conf", "20-sub/b.conf", "20-sub/a.conf", "10-first.conf", "README"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> =
            below(dir.path()).unwrap().unwrap().iter().map(|p| p.strip_prefix(dir.path()).unwrap().display().to_string()).collect();
        assert_eq!(names, ["10-first.conf", "20-sub/a.conf", "20-sub/b.conf", "90-last.conf", "README"]);
    }

    #[test]
    fn the_command_line_of_a_process_is_told_and_that_of_none_is_empty() {
        let own = command_line(Path::new("/proc"), std::process::id()).unwrap();
        assert_eq!(own, std::env::args().collect::<Vec<_>>());
        assert!(command_line(Path::new("/proc"), u32::MAX).unwrap().is_empty());
    }
}
