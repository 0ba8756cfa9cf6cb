//! ifupdown2: how its programs are called. What they say by their exit status is passed on; whoever calls looks at the kernel.

use std::{
    ffi::{OsStr, OsString},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Action, NetPaths, Step, command, failed, units};
use crate::{error::Error, host::units::SystemdUnits};

/// A check of a text, or a comparison, takes a second on a slow host.
const READING: Duration = Duration::from_secs(30);
/// What ifupdown2 ends with at once while another one of it runs.
const BUSY: i32 = 89;
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Where ifupdown2 has its lock.
const LOCKS: &str = "/run/network";
/// What ifupdown2's verdict on a text depends on, beside the text.
const JUDGES: [&str; 8] = [
    "/usr/share/ifupdown2",
    "/usr/share/ifupdown2/__main__.py",
    "/usr/share/ifupdown2/addons",
    "/etc/network/ifupdown2",
    "/etc/network/ifupdown2/ifupdown2.conf",
    "/etc/network/ifupdown2/addons.conf",
    "/etc/network/ifupdown2/policy.d",
    "/var/lib/ifupdown2/policy.d",
];
/// How often it is looked whether an ifquery that was told to read has come so far.
const GATE_PAUSE: Duration = Duration::from_millis(5);

/// Runs its arguments: a word that says what is done ("up", "down"), how many interfaces, the interfaces; and so on. All of them are run,
/// whatever became of the first; the status is that of the last that failed. While another ifupdown2 runs (89), such as somebody's `ifreload`,
/// it is tried again: whoever started the script ends it.
const SCRIPT: &str = r#"
try() {
    while :; do
        "$@"
        tried=$?
        [ "$tried" -eq 89 ] || return "$tried"
        sleep 1
    done
}
status=0
file=$1
shift
while [ $# -ge 3 ]; do
    verb=$1; shift
    count=$1; shift
    line=
    while [ "$count" -gt 0 ]; do line="$line $1"; shift; count=$((count - 1)); done
    # Without -u it goes by what it remembers of the ifup.
    how=
    [ "$verb" = down ] && how=-u
    echo "if$verb$line"
    if [ -n "$file" ]; then try "if$verb" $how -i "$file" $line || status=$?; else try "if$verb" $how $line || status=$?; fi
done
exit $status
"#;

/// The words for [`SCRIPT`]: neighbours with the same verb are one call, since each start of ifupdown2 takes half a second.
fn words(steps: &[Step]) -> Vec<OsString> {
    let verb = |step: &Step| if step.action == Action::Down { "down" } else { "up" };
    let mut words = Vec::new();
    for group in steps.chunk_by(|a, b| verb(a) == verb(b)) {
        words.push(group.first().map_or("up", verb).into());
        words.push(group.len().to_string().into());
        words.extend(group.iter().map(|s| OsString::from(&s.interface)));
    }
    words
}

/// Names as the kernel has them; anything else could be read as an option or as several words.
fn check_names<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
    for name in names {
        let good = !name.is_empty()
            && name.len() <= 15
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !good {
            return Err(Error::Internal(format!("'{}' is no interface's name", name.escape_debug())));
        }
    }
    Ok(())
}

/// In memory, where there is room: the disk may be full.
fn scratch_folder(paths: &NetPaths) -> &Path {
    let folder = [Path::new("/run/pvelet"), paths.state.as_path()].into_iter().find(|f| fs::create_dir_all(f).is_ok());
    folder.unwrap_or(&paths.state)
}

/// A file that ifupdown2 reads; removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(paths: &NetPaths, name: &str, text: &str) -> Result<Self, Error> {
        let path = scratch_folder(paths).join(name);
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(text.as_bytes())
        };
        write().map_err(|e| failed(format!("{}: {e}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs steps in the transient unit; returns what the tools wrote.
pub(super) async fn run_steps(
    paths: &NetPaths,
    bus: Option<&SystemdUnits>,
    steps: &[Step],
    file: Option<&str>,
    patience: Duration,
) -> Result<String, Error> {
    check_names(steps.iter().map(|s| &s.interface))?;
    let scratch = file.map(|text| Scratch::new(paths, "steps.interfaces", text)).transpose()?;
    let mut argv: Vec<OsString> = ["/bin/sh", "-c", SCRIPT, "steps"].map(OsString::from).to_vec();
    argv.push(scratch.as_ref().map(|s| s.0.clone().into_os_string()).unwrap_or_default());
    argv.extend(words(steps));
    fs::create_dir_all(&paths.state).map_err(|e| failed(format!("{}: {e}", paths.state.display())))?;
    let log = paths.state.join("steps.log");
    let result = units::run(bus, &argv, &log, patience).await;
    let said = tail(&log);
    match result {
        Ok(()) => Ok(said),
        Err(error) => {
            let last = command::last_lines(&said);
            Err(failed(if last.is_empty() { error.to_string() } else { format!("{last} ({error})") }))
        }
    }
}

fn tail(log: &Path) -> String {
    const KEPT: usize = 16 << 10;
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(KEPT)..]).into_owned()
}

/// Whether a text is one that ifupdown2 takes, asked where nobody notices: ifupdown2's own lock is not taken, for which somebody's `ifreload`
/// would be turned away. `None`: that cannot be told here, or not so.
pub(super) async fn check_aside(paths: &NetPaths, bus: &SystemdUnits, text: &str) -> Option<Result<(), Error>> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let scratch = Scratch::new(paths, &format!("check-{next}.interfaces"), text).ok()?;
    let log = Scratch::new(paths, &format!("check-{next}.log"), "").ok()?;
    let mut argv: Vec<String> = ["/bin/sh", "-c", "exec ifup -s -a -i \"$1\"", "check"].map(str::to_owned).to_vec();
    argv.push(scratch.0.to_str()?.to_owned());
    let unit = format!("pvelet-network-check-{next}.service");
    let looked = units::look_aside(bus, &unit, (&argv, LOCKS, log.0.to_str()?), READING).await;
    match looked {
        Ok(result) if result == "done" => Some(verdict(&tail(&log.0))),
        // Nor does it say that it is wrong: it was killed, or could not be started so.
        other => {
            tracing::debug!(?other, "a declaration was not checked aside");
            None
        }
    }
}

/// What ifupdown2 makes of a text, from what it says. It complains about what it does not understand with a status of 0, too; and ends with 1
/// for a mere warning, such as that a bridge has the MTU of its ports anyway, or that a VLAN's is above its parent's, which stands in another
/// file.
fn verdict(said: &str) -> Result<(), Error> {
    if !said.contains("error:") {
        return Ok(());
    }
    Err(failed(format!("ifupdown2 does not take what was to be declared: {}", command::last_lines(said))))
}

/// What changes whenever ifupdown2 or its settings do: a verdict holds as long.
pub(super) fn mark() -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in JUDGES {
        let stat = fs::metadata(path).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec(), m.len()));
        stat.hash(&mut hasher);
    }
    hasher.finish()
}

/// Whether a text is one that ifupdown2 takes.
pub(super) async fn check_text(paths: &NetPaths, text: &str) -> Result<(), Error> {
    let scratch = Scratch::new(paths, "check.interfaces", text)?;
    let mut args: Vec<OsString> = ["-s", "-a", "-i"].map(OsString::from).to_vec();
    args.push(scratch.0.clone().into_os_string());
    let end = Instant::now() + READING;
    let ended = loop {
        let ended = command::run("ifup", &args, READING).await?;
        if ended.code != Some(BUSY) || Instant::now() >= end {
            break ended;
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    };
    if matches!(ended.code, Some(0 | 1)) {
        return verdict(&ended.stderr);
    }
    Err(failed(format!("ifupdown2 does not take what was to be declared: {}", ended.complaint())))
}

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

    fn step(action: Action, interface: &str) -> Step {
        Step { action, interface: interface.to_owned() }
    }

    #[test]
    fn neighbours_with_the_same_verb_are_one_call() {
        let steps = [step(Action::Down, "a"), step(Action::Up, "b"), step(Action::Change, "c"), step(Action::Down, "d")];
        assert_eq!(words(&steps), ["down", "1", "a", "up", "2", "b", "c", "down", "1", "d"]);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the script is tried with programs that only say how they were called")]
    fn the_script_runs_every_step_and_passes_a_failure_on() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for (name, status) in [("ifup", 0), ("ifdown", 7)] {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\necho \"called {name} $*\"\nexit {status}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let run = |file: &str| {
            let words = words(&[step(Action::Down, "a"), step(Action::Up, "b"), step(Action::Up, "c")]);
            let path = format!("{}:/usr/bin:/bin", dir.path().display());
            let mut command = std::process::Command::new("/bin/sh");
            let out = command.env("PATH", path).args(["-c", SCRIPT, "steps", file]).args(words).output().unwrap();
            (String::from_utf8(out.stdout).unwrap(), out.status.code())
        };
        assert_eq!(run(""), ("ifdown a\ncalled ifdown -u a\nifup b c\ncalled ifup b c\n".into(), Some(7)));
        assert_eq!(run("/f").0, "ifdown a\ncalled ifdown -u -i /f a\nifup b c\ncalled ifup -i /f b c\n");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the script is tried with a program that only says how it was called")]
    fn the_script_waits_for_another_ifupdown2() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        script("ifup", "#!/bin/sh\n[ -e \"$0.ran\" ] || { : >\"$0.ran\"; exit 89; }\necho \"called ifup $*\"\n");
        script("sleep", "#!/bin/sh\necho slept\n");
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let mut command = std::process::Command::new("/bin/sh");
        let out = command.env("PATH", path).args(["-c", SCRIPT, "steps", ""]).args(words(&[step(Action::Up, "b")])).output().unwrap();
        assert_eq!((String::from_utf8(out.stdout).unwrap().as_str(), out.status.code()), ("ifup b\nslept\ncalled ifup b\n", Some(0)));
    }

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
    fn no_option_and_no_second_word_passes_as_a_name() {
        for bad in ["", "-a", "a b", "a;b", "$(x)", "sixteen-bytes-xx", "a/b"] {
            assert!(check_names([&bad.to_owned()]).is_err(), "{bad}");
        }
        check_names([&"bond0.70".to_owned(), &"vmbr_x-1".to_owned()]).unwrap();
    }

    #[test]
    fn a_warning_refuses_no_text_and_an_error_does() {
        verdict("warning: vmbr70: bridge inherits mtu from its ports\n").unwrap();
        let error = verdict("info: x\nerror: /f: line 3: iface a: invalid syntax 'b'\n").unwrap_err().to_string();
        assert!(error.contains("does not take") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn differences_that_ifquery_tells_are_found() {
        let json = r#"[{"name":"v100","auto":true,"config":{"mtu":"1400"},"config_status":{"mtu":"fail","vlan-id":["pass"],"bridge-fd":"fail"},"status":"fail"}]"#;
        assert_eq!(differences(json).unwrap(), ["v100: mtu is not as declared"]);
        assert_eq!(differences("[]").unwrap(), Vec::<String>::new());
        assert_eq!(differences("no json"), None);
    }
}
