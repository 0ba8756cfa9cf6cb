//! Packages of the programs that the tests run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use tempfile::TempDir;

/// The version of the packages that the others are older or newer than.
pub(crate) const VERSION: &str = "0.5.0-1";
/// One that comes later.
pub(crate) const LATER: &str = "0.6.0-1";

/// The repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Both streams.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs to a good end and returns what is printed.
pub(crate) fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Packages, made once for all tests. The folder is the last test's to remove.
pub(crate) struct Packages {
    pub(crate) agent: PathBuf,
    pub(crate) pveletctl: PathBuf,
    /// The agent in a later version, the same otherwise.
    pub(crate) later: PathBuf,
    /// What making them printed.
    pub(crate) said: String,
    /// Whether a package that somebody has built before is still in `target/debian`.
    pub(crate) kept: bool,
}

/// A package of somebody's in `target/debian`, as far as its name goes.
struct Built(PathBuf);

impl Built {
    fn new() -> Self {
        let folder = repository().join("target/debian");
        fs::create_dir_all(&folder).unwrap();
        let architecture = must(Command::new("dpkg").arg("--print-architecture"));
        let this = Self(folder.join(format!("pvelet-agent_0-1_{}.deb", architecture.trim())));
        fs::write(&this.0, "").unwrap();
        this
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Packages {
    pub(crate) fn get() -> &'static Self {
        static MADE: OnceLock<Packages> = OnceLock::new();
        MADE.get_or_init(Self::make)
    }

    fn make() -> Self {
        let dir = repository().join("target/test-packages");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let built = Built::new();
        let said = must(Command::new(repository().join("packaging/debian/build.sh")).args(["debug", VERSION]).arg(&dir));
        let kept = built.0.exists();
        let file = |name: &str| {
            let start = format!("{name}_{VERSION}_");
            let mut files = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
            files.find(|p| p.file_name().unwrap().to_string_lossy().starts_with(&start)).unwrap_or_else(|| panic!("no {start}*: {said}"))
        };
        let (agent, pveletctl) = (file("pvelet-agent"), file("pveletctl"));
        let later = dir.join("later.deb");
        let work = TempDir::with_prefix("pvelet-later-").unwrap();
        let root = work.path().join("root");
        must(Command::new("dpkg-deb").arg("--raw-extract").arg(&agent).arg(&root));
        let control = root.join("DEBIAN/control");
        fs::write(&control, fs::read_to_string(&control).unwrap().replace(VERSION, LATER)).unwrap();
        must(Command::new("dpkg-deb").args(["--root-owner-group", "-Zgzip", "-z1", "--build"]).arg(&root).arg(&later));
        Self { agent, pveletctl, later, said, kept }
    }
}
