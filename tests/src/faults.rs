//! The table of `make test-health`: a line for each fault that a test makes for real.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The file to which tests write their lines, where it is named: several test programs write to one.
const FILE: &str = "PVELET_FAULTS";

/// How the mending of a fault went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// What did not work works again.
    Yes,
    /// Nothing is found any more; the machine lacks something else for a pod sandbox.
    Gone,
    /// It could not work, and all is as before it was tried.
    Undone,
    /// It was to be mended, and is not.
    No,
    /// A person has to see to it.
    ByHand,
    /// The test is about finding it.
    NotTried,
}

impl Repaired {
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Gone => "yes (no sandbox here: image or systemd missing)",
            Self::Undone => "undone, all as before",
            Self::No => "NO",
            Self::ByHand => "by hand",
            Self::NotTried => "-",
        }
    }
}

/// A fault that is being made: not found and not mended until that is told. When it goes, also because its test fails, its line is written.
#[derive(Debug)]
pub struct Fault {
    file: Option<PathBuf>,
    name: String,
    check: String,
    found: bool,
    repaired: Repaired,
}

impl Fault {
    /// One that is to be found by this check.
    pub fn new(name: &str, check: &str) -> Self {
        Self::made(file(), name, check)
    }

    /// As [`Self::new`], with the file for its line.
    pub fn to(file: &Path, name: &str, check: &str) -> Self {
        Self::made(Some(file.to_owned()), name, check)
    }

    fn made(file: Option<PathBuf>, name: &str, check: &str) -> Self {
        Self { file, name: name.to_owned(), check: check.to_owned(), found: false, repaired: Repaired::No }
    }

    /// The check has found it.
    pub fn found(&mut self) {
        self.found = true;
    }

    /// How its mending went.
    pub fn repaired(&mut self, how: Repaired) {
        self.repaired = how;
    }

    /// It was found, and that is all there is to show.
    pub fn only_found(mut self, how: Repaired) {
        self.found();
        self.repaired(how);
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let Some(path) = &self.file else { return };
        let line = format!("{}\t{}\t{}\t{}\n", self.name, self.check, self.found, self.repaired.word());
        // One write of a line: others write, too.
        let written = File::options().create(true).append(true).open(path).and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprintln!("{FILE}: {error}");
        }
    }
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The check.
    pub check: String,
    /// What was done to the host.
    pub name: String,
    /// Whether the check found it.
    pub found: bool,
    /// How its mending went.
    pub repaired: String,
}

impl Line {
    /// Whether all went as it should.
    pub fn is_good(&self) -> bool {
        self.found && self.repaired != Repaired::No.word()
    }
}

/// Where tests write their lines; `None`: nowhere.
pub fn file() -> Option<PathBuf> {
    std::env::var_os(FILE).map(PathBuf::from)
}

/// The lines that tests have written, by check and name. Errors: of the file, which may be missing; `InvalidData`: it holds something else.
pub fn read(path: &Path) -> io::Result<Vec<Line>> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let line = |text: &str| {
        let [name, check, found, repaired] = text.split('\t').collect::<Vec<_>>()[..] else { return None };
        Some(Line { check: check.into(), name: name.into(), found: found.parse().ok()?, repaired: repaired.into() })
    };
    let lines: Option<Vec<Line>> = text.lines().map(line).collect();
    let mut lines = lines.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{} holds no faults", path.display())))?;
    lines.sort();
    Ok(lines)
}
