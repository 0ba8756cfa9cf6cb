//! ifquery: whether interfaces are as the live files declare them.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    NetPaths, command, failed,
    ifupdown::{READING, check_names, scratch_folder},
};
use crate::error::Error;

/// How often it is looked whether an ifquery that was told to read has come so far.
const GATE_PAUSE: Duration = Duration::from_millis(5);

/// Where interfaces differ from what is declared, once `when` says so: one line each.
///
/// Starting takes ifquery most of its time. So it is started at once, and reads the live files when it is told. It has looked at the kernel by
/// then, and hears of each change since; should it call anything different, another one is asked that begins from nothing. Errors:
/// `NetworkFailed`, also where `when` is dropped.
pub(super) async fn compare(paths: &NetPaths, interfaces: &[String], when: oneshot::Receiver<()>) -> Result<Vec<String>, Error> {
    compare_by("ifquery", scratch_folder(paths), &paths.etc_network.join("interfaces"), interfaces, when).await
}

/// The same by another program. `folder`: for the pipe.
async fn compare_by(
    program: &str,
    folder: &Path,
    live: &Path,
    interfaces: &[String],
    mut when: oneshot::Receiver<()>,
) -> Result<Vec<String>, Error> {
    let unwanted = |_| failed("ifquery -c is not wanted any more");
    if interfaces.is_empty() {
        return when.await.map(|()| Vec::new()).map_err(unwanted);
    }
    check_names(interfaces)?;
    let args = |more: &[&OsStr]| -> Vec<OsString> {
        let first = ["-c", "-o", "json"].into_iter().map(OsStr::new).chain(more.iter().copied());
        first.chain(interfaces.iter().map(OsStr::new)).map(OsStr::to_owned).collect()
    };
    let mut told = false;
    if let Ok(gate) = Gate::new(folder) {
        let args = args(&["-i".as_ref(), gate.0.as_os_str()]);
        let mut early = pin!(command::ask(program, &args, differences));
        tokio::select! {
            // It was to wait.
            _ = &mut early => {}
            said = &mut when => {
                said.map_err(unwanted)?;
                told = true;
                let answered = async { tokio::join!(early, gate.open(live)).0 };
                match tokio::time::timeout(READING, answered).await {
                    Ok(Ok(Some(found))) if found.is_empty() => return Ok(found),
                    other => tracing::debug!(?other, "ifquery is asked again"),
                }
            }
        }
    }
    if !told {
        when.await.map_err(unwanted)?;
    }
    let ended = command::run(program, &args(&[]), READING).await?;
    differences(&ended.stdout).ok_or_else(|| failed(format!("ifquery -c: {}", ended.complaint())))
}

/// A named pipe in the place of a file: who reads it stands still until it is opened. Removed when dropped.
struct Gate(PathBuf);

impl Gate {
    fn new(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("compare.interfaces");
        // That of an agent which was killed.
        let _ = fs::remove_file(&path);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)
            .map_err(|e| failed(format!("{}: {e}", path.display())))?;
        Ok(Self(path))
    }

    /// Lets the reader read what this file declares, once it is there.
    async fn open(&self, live: &Path) {
        let text = format!("source {}\n", live.display());
        loop {
            // Nobody is waited for here: opening it to write fails as long as it has no reader.
            let opened = fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.0);
            match opened {
                Err(e) if e.raw_os_error() == Some(nix::libc::ENXIO) => tokio::time::sleep(GATE_PAUSE).await,
                // Less than the pipe holds. Without it the reader ends with nothing to compare, which is no answer.
                Ok(mut gate) => return drop(gate.write_all(text.as_bytes())),
                Err(error) => return tracing::debug!(%error, "the pipe to ifquery"),
            }
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What `ifquery -c -o json` calls different.
fn differences(json: &str) -> Option<Vec<String>> {
    let list: Vec<serde_json::Value> = serde_json::from_str(json).ok()?;
    let mut found = Vec::new();
    for interface in &list {
        let name = interface["name"].as_str().unwrap_or("?");
        let status = &interface["config_status"];
        for (key, values) in status.as_object().into_iter().flatten() {
            let texts: Vec<&str> = match values {
                serde_json::Value::Array(list) => list.iter().filter_map(|v| v.as_str()).collect(),
                other => other.as_str().into_iter().collect(),
            };
            if texts.contains(&"fail") && counts(key) {
                found.push(format!("{name}: {key} is not as declared"));
            }
        }
    }
    Some(found)
}

/// Whether a difference is a real one. The kernel is compared by the agent itself; of ifupdown2's view only what it has no false alarm about
/// counts.
fn counts(key: &str) -> bool {
    matches!(key, "vlan-id" | "vlan-raw-device" | "vlan-protocol" | "bridge-ports" | "bridge-vlan-aware" | "mtu" | "address")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// An ifquery that only says what it was told, and of which interface the MTU fails: `early` where it reads a pipe, else `late`.
    fn ifquery(dir: &Path, early: &str, late: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("ifquery");
        let answer = |mtu: &str| format!("printf '[{{\"name\":\"v100\",\"config_status\":{{\"mtu\":\"%s\"}}}}]\\n' {mtu}");
        let script = format!(
            "#!/bin/sh\n\
             case \"$*\" in\n\
             *-i*) echo early >>\"$0.calls\"; cat \"$5\" >>\"$0.calls\"; {}; exec tail -f /dev/null ;;\n\
             *) echo \"late $*\" >>\"$0.calls\"; {} ;;\n\
             esac\n",
            answer(early),
            answer(late)
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    async fn compared(dir: &Path, program: &str) -> Result<Vec<String>, Error> {
        let (say, when) = oneshot::channel();
        let names = ["v100".to_owned()];
        let compared = compare_by(program, dir, Path::new("/etc/network/interfaces"), &names, when);
        let started = async {
            // It has said that it runs, and nobody has told it to read.
            while !dir.join("ifquery.calls").exists() {
                tokio::task::yield_now().await;
            }
            say.send(()).unwrap();
        };
        tokio::join!(compared, started).0
    }

    #[tokio::test]
    async fn what_is_started_early_reads_when_it_is_told_and_is_not_waited_for_once_it_has_answered() {
        let dir = tempfile::tempdir().unwrap();
        let program = ifquery(dir.path(), "pass", "fail");
        assert_eq!(compared(dir.path(), &program).await, Ok(Vec::new()));
        let calls = fs::read_to_string(dir.path().join("ifquery.calls")).unwrap();
        assert_eq!(calls, "early\nsource /etc/network/interfaces\n");
        assert!(!dir.path().join("compare.interfaces").exists());
    }

    #[tokio::test]
    async fn what_was_started_early_is_believed_only_where_it_agrees() {
        for (late, wanted) in [("pass", vec![]), ("fail", vec!["v100: mtu is not as declared".to_owned()])] {
            let dir = tempfile::tempdir().unwrap();
            let program = ifquery(dir.path(), "fail", late);
            assert_eq!(compared(dir.path(), &program).await, Ok(wanted));
            let calls = fs::read_to_string(dir.path().join("ifquery.calls")).unwrap();
            assert_eq!(calls, "early\nsource /etc/network/interfaces\nlate -c -o json v100\n");
        }
    }

    #[tokio::test]
    async fn one_that_ends_before_it_is_told_is_started_again_when_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let program = ifquery(dir.path(), "fail", "pass");
        let script = fs::read_to_string(&program).unwrap();
        fs::write(&program, script.replace("cat \"$5\"", "exit 1")).unwrap();
        assert_eq!(compared(dir.path(), &program).await, Ok(Vec::new()));
        assert_eq!(fs::read_to_string(dir.path().join("ifquery.calls")).unwrap(), "early\nlate -c -o json v100\n");
    }

    #[tokio::test]
    async fn nothing_is_compared_for_a_change_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let program = ifquery(dir.path(), "pass", "pass");
        for names in [vec![], vec!["v100".to_owned()]] {
            let (say, when) = oneshot::channel();
            drop(say);
            compare_by(&program, dir.path(), Path::new("/i"), &names, when).await.unwrap_err();
        }
        assert!(!dir.path().join("compare.interfaces").exists());
    }

    #[test]
    fn differences_that_ifquery_tells_are_found() {
        let json = r#"[{"name":"v100","auto":true,"config":{"mtu":"1400"},"config_status":{"mtu":"fail","vlan-id":["pass"],"bridge-fd":"fail"},"status":"fail"}]"#;
        assert_eq!(differences(json).unwrap(), ["v100: mtu is not as declared"]);
        assert_eq!(differences("[]").unwrap(), Vec::<String>::new());
        assert_eq!(differences("no json"), None);
    }
}
