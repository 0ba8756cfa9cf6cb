#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use super::{ContainerdFiles, RuntimeFiles};
use crate::error::{Error, Trouble};

const LONG: Duration = Duration::from_secs(60);

struct Etc {
    folder: TempDir,
}

impl Etc {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn files(&self) -> ContainerdFiles {
        ContainerdFiles::new(self.path("config.toml"), self.path("containerd"))
    }

    /// A program in containerd's place.
    fn program(&self, script: &str) {
        let path = self.write("containerd", format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Everything in the folder, so that nothing of the agent's stays.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn trouble<T: std::fmt::Debug>(result: Result<T, Error>) -> (Trouble, String) {
    match result.unwrap_err() {
        Error::Look { trouble, message } => (trouble, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn imports_are_read_breadth_first_each_once() {
    let etc = Etc::new();
    etc.write("config.toml", "imports = [\"conf.d/*.toml\", \"one.toml\"]");
    etc.write("conf.d/b.toml", "imports = [\"../deep.toml\"]");
    etc.write("conf.d/a.toml", "imports = [\"../config.toml\", \"../deep.toml\"]");
    etc.write("conf.d/c.conf", "no = 1");
    etc.write("one.toml", "");
    etc.write("deep.toml", "this is no TOML");
    let files = etc.files().config().await.unwrap();
    let names: Vec<&Path> = files.iter().map(|f| f.path.strip_prefix(etc.folder.path()).unwrap()).collect();
    assert_eq!(names, ["config.toml", "conf.d/a.toml", "conf.d/b.toml", "one.toml", "deep.toml"].map(Path::new));
    assert_eq!(files[4].text, "this is no TOML");
}

#[tokio::test]
async fn without_a_main_file_there_is_nothing_but_a_missing_import_is_told() {
    let etc = Etc::new();
    assert_eq!(etc.files().config().await.unwrap(), []);
    etc.write("config.toml", "imports = [\"none.toml\"]");
    let (what, message) = trouble(etc.files().config().await);
    assert_eq!(what, Trouble::Missing);
    assert!(message.contains("none.toml: does not exist, but ") && message.ends_with("config.toml imports it"), "{message}");
    // A pattern that fits nothing imports nothing.
    etc.write("config.toml", "imports = [\"none/*.toml\"]");
    assert_eq!(etc.files().config().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_too_large_or_no_file_is_not_read() {
    let etc = Etc::new();
    etc.write("config.toml", vec![b'#'; 1 << 20]);
    assert_eq!(etc.files().config().await.unwrap()[0].text.len(), 1 << 20);
    etc.write("config.toml", vec![b'#'; (1 << 20) + 1]);
    assert_eq!(trouble(etc.files().config().await).0, Trouble::Garbled);
    fs::remove_file(etc.path("config.toml")).unwrap();
    nix::unistd::mkfifo(&etc.path("config.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(trouble(etc.files().config().await).1.ends_with("is no regular file"));
    fs::remove_file(etc.path("config.toml")).unwrap();
    fs::create_dir(etc.path("config.toml")).unwrap();
    assert!(trouble(etc.files().config().await).1.ends_with("is no regular file"));
}

#[tokio::test]
async fn names_of_a_folder() {
    let etc = Etc::new();
    etc.write("net.d/20-b.conf", "");
    etc.write("net.d/10-a.conflist", "");
    assert_eq!(etc.files().list(&etc.path("net.d")).await.unwrap(), Some(vec!["10-a.conflist".to_owned(), "20-b.conf".to_owned()]));
    assert_eq!(etc.files().list(&etc.path("none")).await.unwrap(), None);
}

#[tokio::test]
async fn a_file_is_replaced_only_while_it_holds_what_was_read() {
    let etc = Etc::new();
    let path = etc.write("config.toml", "old");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    }
    let before = fs::metadata(&path).unwrap();
    let files = etc.files();
    assert!(matches!(files.replace(&path, "other", "new").await, Err(Error::RepairChanged { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    files.replace(&path, "old", "new").await.unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert_eq!((after.uid(), after.gid(), after.mode()), (before.uid(), before.gid(), before.mode()));
    assert_eq!(etc.names(), ["config.toml"], "nothing of the agent's stays");
}

#[tokio::test]
async fn a_file_that_is_gone_is_not_made_again() {
    let etc = Etc::new();
    assert!(matches!(etc.files().replace(&etc.path("config.toml"), "old", "new").await, Err(Error::RepairChanged { .. })));
    assert_eq!(etc.names(), [] as [&str; 0]);
}

#[tokio::test]
async fn bytes_that_are_no_text_are_not_taken_for_what_replaces_them() {
    let etc = Etc::new();
    let path = etc.write("config.toml", b"# caf\xe9\n");
    let read = etc.files().config().await.unwrap().remove(0).text;
    assert_eq!(read, "# caf\u{fffd}\n");
    assert!(matches!(etc.files().replace(&path, &read, "new").await, Err(Error::RepairChanged { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"# caf\xe9\n");
}

#[tokio::test]
async fn what_a_link_points_at_is_replaced() {
    let etc = Etc::new();
    let real = etc.write("real/config.toml", "old");
    symlink(&real, etc.path("config.toml")).unwrap();
    etc.files().replace(&etc.path("config.toml"), "old", "new").await.unwrap();
    assert_eq!(fs::read_to_string(&real).unwrap(), "new");
    assert!(fs::symlink_metadata(etc.path("config.toml")).unwrap().is_symlink());
}

#[tokio::test]
async fn backups_stand_beside_the_file_and_each_has_its_name() {
    let etc = Etc::new();
    let path = etc.write("config.toml", "text");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let (one, two) = (etc.files().back_up(&path).await.unwrap(), etc.files().back_up(&path).await.unwrap());
    assert_ne!(one, two);
    for kept in [one, two] {
        let name = kept.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("config.toml.pvelet-20"), "{name}");
        assert_eq!((fs::read_to_string(&kept).unwrap().as_str(), fs::metadata(&kept).unwrap().mode() & 0o777), ("text", 0o600));
    }
    assert_eq!(etc.names().len(), 3);
    assert_eq!(trouble(etc.files().back_up(&etc.path("none")).await).0, Trouble::Missing);
}

#[tokio::test]
async fn a_dump_is_believed_only_when_it_is_a_configuration() {
    const WHOLE: &str = "echo 'version = 2'; echo '[plugins]'";
    let etc = Etc::new();
    let text = "version = 2";
    assert_eq!(trouble(etc.files().dump(text, LONG).await).0, Trouble::Missing, "there is no program");
    etc.program(&format!("test \"$(cat \"$2\")\" = '{text}' || exit 7; test \"$3 $4\" = 'config dump' || exit 8; {WHOLE}"));
    assert_eq!(etc.files().dump(text, LONG).await.unwrap(), "version = 2\n[plugins]\n");
    etc.program("exit 0");
    assert_eq!(trouble(etc.files().dump(text, LONG).await).0, Trouble::Garbled);
    etc.program("echo 'time=x level=warning msg=y' >&2; echo \"containerd: failed to load TOML: $2: (3, 20): bad\" >&2; exit 1");
    let (what, message) = trouble(etc.files().dump(text, LONG).await);
    assert_eq!(what, Trouble::Failed);
    assert_eq!(message, format!("failed to load TOML: {}: (3, 20): bad", etc.path("config.toml").display()));
    etc.program("kill -9 $$");
    assert_eq!(trouble(etc.files().dump(text, LONG).await).0, Trouble::Failed);
    etc.program(WHOLE);
    let (what, message) = trouble(etc.files().dump("version = 3", LONG).await);
    assert_eq!(what, Trouble::Failed);
    assert!(message.contains("has version 3, but this containerd knows none above 2"), "{message}");
    let (what, _) = trouble(etc.files().dump("imports = [\"none.toml\"]", LONG).await);
    assert_eq!(what, Trouble::Missing, "a missing import is told whatever the program says");
    etc.program("exec sleep 60");
    assert_eq!(trouble(etc.files().dump(text, Duration::from_millis(50)).await).0, Trouble::Silent);
    assert_eq!(etc.names(), ["containerd"], "no copy stays");
}

#[tokio::test]
async fn what_dead_agents_left_is_removed_and_nothing_else() {
    let etc = Etc::new();
    etc.write("config.toml", "imports = [\"conf.d/*.toml\"]");
    etc.write("conf.d/a.toml", "");
    let real = etc.write("real/b.toml", "");
    symlink(&real, etc.path("conf.d/b.toml")).unwrap();
    // No kernel gives out that number; the first process always runs.
    let (dead, own, other) = (i32::MAX, std::process::id(), 1);
    for folder in ["", "conf.d/", "real/"] {
        etc.write(&format!("{folder}.a.toml.pvelet-new-{dead}-0"), "");
        etc.write(&format!("{folder}.a.toml.pvelet-new-{own}-4294967295"), "");
        etc.write(&format!("{folder}.a.toml.pvelet-new-{other}-0"), "");
        etc.write(&format!("{folder}.a.toml.swp"), "");
        fs::create_dir_all(etc.path(&format!("{folder}.b.toml.pvelet-new-{dead}-1"))).unwrap();
    }
    etc.write(&format!("elsewhere/.a.toml.pvelet-new-{dead}-0"), "");
    etc.files().tidy().await.unwrap();
    for folder in ["", "conf.d", "real"] {
        let mut left: Vec<String> = fs::read_dir(etc.path(folder))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n.starts_with('.'))
            .collect();
        left.sort();
        let mut wanted = [format!(".a.toml.pvelet-new-{other}-0"), ".a.toml.swp".to_owned(), format!(".b.toml.pvelet-new-{dead}-1")];
        wanted.sort();
        assert_eq!(left, wanted, "in {folder}: of processes that run, of others, and what is no file");
    }
    assert!(etc.path(&format!("elsewhere/.a.toml.pvelet-new-{dead}-0")).exists());
    // Where containerd was never installed.
    Etc::new().files().tidy().await.unwrap();
    ContainerdFiles::new("/none/here/config.toml", "/none").tidy().await.unwrap();
}

#[tokio::test]
async fn the_ten_newest_backups_of_a_file_stay() {
    let etc = Etc::new();
    let path = etc.write("config.toml", "text");
    let old = |n: u32| format!("config.toml.pvelet-20250101T0000{n:02}Z");
    for n in 0..12 {
        etc.write(&old(n), "");
    }
    // Those of another file, and what a person has kept.
    let others = ["b.toml.pvelet-20240101T000000Z", "config.toml.pvelet-20240101T000000Z.good", "config.toml.old"];
    others.iter().for_each(|name| drop(etc.write(name, "")));
    let kept = etc.files().back_up(&path).await.unwrap();
    let backups = |etc: &Etc| etc.names().into_iter().filter(|n| n.starts_with("config.toml.pvelet-2025")).collect::<Vec<_>>();
    assert_eq!(backups(&etc), (3..12).map(old).collect::<Vec<_>>());
    assert!(kept.exists() && others.iter().all(|name| etc.path(name).exists()));
    // With a clock that was set back the newest is still the one that was just made.
    fs::remove_file(&kept).unwrap();
    for n in 0..12 {
        etc.write(&format!("config.toml.pvelet-29990101T0000{n:02}Z"), "");
    }
    let kept = etc.files().back_up(&path).await.unwrap();
    assert_eq!((backups(&etc).len(), kept.exists()), (0, true));
    assert_eq!(etc.names().iter().filter(|n| n.starts_with("config.toml.pvelet-2999")).count(), 9);
    for n in 20..23 {
        etc.write(&format!("config.toml.pvelet-29990101T0000{n:02}Z-2"), "");
    }
    etc.files().tidy().await.unwrap();
    assert_eq!(etc.names().iter().filter(|n| n.starts_with("config.toml.pvelet-2999")).count(), 10);
}
